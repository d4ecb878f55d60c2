"""The UNet of DDPM and DDIM (Ho et al., arXiv:2006.11239, appendix B; the DDIM paper, arXiv:2010.02502, appendix D.1).

    t ── temb ──────────────────────────┐ (added inside every residual block)
    x ── conv_in ── down 0 … L−1 ── mid ── up L−1 … 0 ── norm_out ── conv_out ── ε
                       └── skips, one a block and one a downsampling ──┘ (concatenated)

Layers carry the names of the official checkpoints (`down.1.attn.0.q`), so that published weights map name by name.
This is the only file that knows the network's library: outside, a network is `apply(params, x, t)` and a nested dict.
"""

import functools
import math
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, Key

from ..config import UNetConfig
from ..diffusion.randomness import Purpose, purpose_key
from .convolution import after_upsampling, convolution, convolution_to_train

Params = dict[str, Any]
Images = Float[Array, "B H W C"]
Maps = Float[Array, "B _ _ _"]  # inside the network, height, width and channels change
Embedding = Float[Array, "B _"]

# Values come from `_initial_values`. To trace a key and a draw for each, which nobody would use, takes a second.
_ZEROS = nnx.initializers.zeros_init()
_NO_KEYS: Any = SimpleNamespace(params=lambda: None)


class Build(NamedTuple):
    """What layers are built from: the architecture, the type of products, the convolution."""

    config: UNetConfig
    dtype: Any
    convolve: Callable[..., Any]


def build_unet(config: UNetConfig, seed: int) -> tuple[Callable[..., Images], Params]:
    """The network as a function, and its initial parameters.

    Args:
        config: the architecture.
        seed: integer in 0 … 2³²−1; equal seeds give equal parameters.

    Returns:
        apply(params, x, t, *, label=None, dropout_key=None) → ε of x's shape, with x (B, H, W, C) in about [−1, 1], t (B,) int32
        in 0 … T−1 and label (B,) int32 in 0 … num_classes, the last meaning no label, as None does; dropout acts only where a
        key is given. And params, a nested dict of float32 arrays.

    Raises:
        ValueError: an architecture that does not fit its image size.

    >>> config = UNetConfig(8, 1, channels=8, multipliers=(1,), blocks=1, attention_resolutions=(), groups=2)
    >>> apply, params = build_unet(config, seed=0)
    >>> apply(params, jnp.zeros((2, 8, 8, 1)), jnp.array([0, 999])).shape
    (2, 8, 8, 1)

    Source: arXiv:2006.11239, appendix B.
    """
    config.check()

    # Jitted, the initial weights are one program, and under `jax.eval_shape` they are shapes that cost nothing.
    return unet_apply(config), jax.jit(partial(_initial_values, config))(
        purpose_key(seed, Purpose.INIT)
    )


def _initial_values(config: UNetConfig, key: Key[Array, ""]) -> Params:
    """Kernels uniform with variance 2/(inputs + outputs), or zero where `zero_init` asks for it; scales 1, biases 0."""
    shapes = unet_shapes(config)
    # All numbers in one draw: a draw for every layer is a program of its own, 8 to 15 seconds of compilation in all.
    pool = jax.random.uniform(key, (sum(leaf.size for leaf in jax.tree.leaves(shapes)),), minval=-1)
    start = 0

    def value(path: Any, leaf: Any) -> Array:
        nonlocal start
        *_, layer, name = (entry.key for entry in path)
        if name in ("scale", "bias"):
            return jnp.full(leaf.shape, float(name == "scale"))
        if config.zero_init and layer in ("conv2", "proj_out", "conv_out"):
            return jnp.zeros(leaf.shape)
        numbers = pool[start : (start := start + leaf.size)].reshape(leaf.shape)
        return numbers * math.sqrt(6 / (math.prod(leaf.shape[:-2]) * sum(leaf.shape[-2:])))

    return jax.tree.map_with_path(value, shapes)


def unet_shapes(config: UNetConfig) -> Params:
    """The parameters' shapes and types, as jax.ShapeDtypeStruct; nothing is computed."""
    return _network(config, "float32", False, False)[1]


@functools.lru_cache
def _network(config: UNetConfig, dtype: str, remat: bool, to_train: bool) -> tuple[Any, Params]:
    """The structure of the network, and the shapes of its parameters."""
    convolve = convolution_to_train if to_train else convolution
    build = nnx.eval_shape(lambda: UNet(Build(config, jnp.dtype(dtype), convolve), remat))
    graph, state = nnx.split(build)
    return graph, jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), nnx.to_pure_dict(state)
    )


def unet_apply(
    config: UNetConfig, dtype: str = "float32", remat: bool = False, to_train: bool = False
) -> Callable[..., Images]:
    """The network as a function of its parameters, without making any: `build_unet`'s first result.

    Args:
        config: the architecture.
        dtype: type of activations and products, "float32" or "bfloat16"; the statistics of the normalisations, the softmax,
            the last convolution and the output are float32 in any case, and so are the parameters and their gradients.
        remat: in a backward pass, recompute what happens inside a block instead of keeping it.
        to_train: make gradients on CPUs quicker; the function then knows reverse-mode differentiation only.

    Returns:
        apply(params, x, t, *, label=None, dropout_key=None), as of `build_unet`.
    """
    graph, _ = _network(config, dtype, remat, to_train)

    def apply(
        params: Params,
        x: Images,
        t: Int[Array, " B"],
        *,
        label: Int[Array, " B"] | None = None,
        dropout_key: Key[Array, ""] | None = None,
    ) -> Images:
        if label is not None and not config.num_classes:
            raise ValueError(
                "a label was given to a network without classes; train one with --model.num-classes."
            )
        return nnx.merge(graph, params)(x, t, label, dropout_key)

    return apply


class UNet(nnx.Module):
    """ε_θ(x_t, t) for images of one size."""

    def __init__(self, build: Build, remat: bool = False):
        config = build.config
        widths = [config.channels * multiplier for multiplier in config.multipliers]
        sizes = [config.image_size >> level for level in range(len(widths))]
        attends = [size in config.attention_resolutions for size in sizes]
        self.frequencies = config.channels // 2
        self.temb = TimeEmbedding(config.channels, build)
        # One row a class, and one for no class, which label dropout trains and guidance needs.
        self.classes = (
            _embed(config.num_classes + 1, 4 * config.channels) if config.num_classes else None
        )
        self.conv_in = _conv(config.image_channels, config.channels, 3, build)
        self.block = nnx.remat(_block, static_argnums=(1,)) if remat else _block

        skips, width = [config.channels], config.channels
        down = []
        for level, out in enumerate(widths):
            inputs = [width] + [out] * (config.blocks - 1)
            last = level == len(widths) - 1
            down.append(
                Level(inputs, out, attends[level], None if last else Downsample(out, build), build)
            )
            skips += [out] * (config.blocks + (not last))
            width = out

        self.down = nnx.List(down)
        self.mid = Middle(width, build)

        up = []
        for level, out in reversed(list(enumerate(widths))):
            inputs = [w + skips.pop() for w in [width] + [out] * config.blocks]
            up.append(
                Level(inputs, out, attends[level], Upsample(out, build) if level else None, build)
            )
            width = out
        self.up = nnx.List(up[::-1])  # index = resolution level, as in the official names

        self.norm_out = GroupNorm(width, build)
        self.conv_out = _conv(
            width, config.image_channels, 3, build._replace(dtype=jnp.dtype("float32"))
        )

    def __call__(
        self,
        x: Images,
        t: Int[Array, " B"],
        label: Int[Array, " B"] | None,
        dropout_key: Key[Array, ""] | None,
    ) -> Images:
        rngs = None if dropout_key is None else nnx.Rngs(dropout=dropout_key)
        embedding = self.temb(sinusoidal_embedding(t, self.frequencies))
        if self.classes is not None:
            embedding = embedding + self.classes(
                jnp.full_like(t, self.classes.num_embeddings - 1) if label is None else label
            )
        h = self.conv_in(x)
        skips = [h]
        for level in self.down:
            for j in range(len(level.block)):
                h = self.block(level, j, h, embedding, rngs)
                skips.append(h)
            if level.downsample is not None:
                h = level.downsample(h)
                skips.append(h)
        h = self.mid(h, embedding, rngs)
        for level in reversed(self.up):
            for j in range(len(level.block)):
                h = self.block(
                    level, j, jnp.concatenate([h, skips.pop()], axis=-1), embedding, rngs
                )
            if level.upsample is not None:
                h = level.upsample(h)
        return self.conv_out(nnx.silu(self.norm_out(h)))


class TimeEmbedding(nnx.Module):
    """Two dense layers over the sinusoids of t, to 4·channels."""

    def __init__(self, channels: int, build: Build):
        self.dense = nnx.List(
            [_dense(channels, 4 * channels, build), _dense(4 * channels, 4 * channels, build)]
        )

    def __call__(self, sinusoids: Embedding) -> Embedding:
        return self.dense[1](nnx.silu(self.dense[0](sinusoids)))


class Level(nnx.Module):
    """The residual blocks of one resolution, attention after each, and the change of resolution that follows."""

    def __init__(self, inputs: list[int], out: int, attends: bool, resample: Any, build: Build):
        self.block = nnx.List([ResidualBlock(width, out, build) for width in inputs])
        self.attn = nnx.List([Attention(out, build) for _ in inputs] if attends else [])
        self.downsample = resample if isinstance(resample, Downsample) else None
        self.upsample = resample if isinstance(resample, Upsample) else None


def _block(level: Level, j: int, h: Maps, embedding: Embedding, rngs: nnx.Rngs | None) -> Maps:
    """Block j of a level and its attention: the unit of rematerialisation."""
    h = level.block[j](h, embedding, rngs)
    return level.attn[j](h) if level.attn else h


class Middle(nnx.Module):
    """Block, attention, block at the lowest resolution."""

    def __init__(self, width: int, build: Build):
        self.block_1 = ResidualBlock(width, width, build)
        self.attn_1 = Attention(width, build)
        self.block_2 = ResidualBlock(width, width, build)

    def __call__(self, h: Maps, embedding: Embedding, rngs: nnx.Rngs | None) -> Maps:
        return self.block_2(self.attn_1(self.block_1(h, embedding, rngs)), embedding, rngs)


class ResidualBlock(nnx.Module):
    """h + conv(dropout(silu(norm(conv(silu(norm h)) + dense(silu(embedding))))))."""

    def __init__(self, inputs: int, out: int, build: Build):
        self.norm1 = GroupNorm(inputs, build)
        self.conv1 = _conv(inputs, out, 3, build)
        self.temb_proj = _dense(4 * build.config.channels, out, build)
        self.norm2 = GroupNorm(out, build)
        self.dropout = nnx.Dropout(build.config.dropout)
        self.conv2 = _conv(out, out, 3, build)
        self.nin_shortcut = _conv(inputs, out, 1, build) if inputs != out else None

    def __call__(self, x: Maps, embedding: Embedding, rngs: nnx.Rngs | None) -> Maps:
        h = self.conv1(nnx.silu(self.norm1(x)))
        h = h + self.temb_proj(nnx.silu(embedding))[:, None, None, :]
        h = self.dropout(nnx.silu(self.norm2(h)), deterministic=rngs is None, rngs=rngs)
        return self.conv2(h) + (x if self.nin_shortcut is None else self.nin_shortcut(x))


class Attention(nnx.Module):
    """x + proj(softmax(q kᵀ/√C) v) over all positions, one head."""

    def __init__(self, width: int, build: Build):
        self.norm = GroupNorm(width, build)
        self.q, self.k, self.v = (_dense(width, width, build) for _ in range(3))
        self.proj_out = _dense(width, width, build)

    def __call__(self, x: Maps) -> Maps:
        batch, height, width, channels = x.shape
        h = self.norm(x).reshape(batch, height * width, 1, channels)
        h = jax.nn.dot_product_attention(self.q(h), self.k(h), self.v(h))
        return x + self.proj_out(h).reshape(x.shape)


class Downsample(nnx.Module):
    """Halve the resolution: a stride-2 convolution, padded on the right and below as the official one."""

    def __init__(self, width: int, build: Build):
        self.conv = _conv(width, width, 3, build, strides=2, padding=[(0, 1), (0, 1)])

    def __call__(self, x: Maps) -> Maps:
        return self.conv(x)


class Upsample(nnx.Module):
    """Double the resolution: repeat each pixel, then a convolution."""

    def __init__(self, width: int, build: Build):
        self.conv = _conv(
            width, width, 3, build._replace(convolve=after_upsampling(build.convolve))
        )

    def __call__(self, x: Maps) -> Maps:
        return self.conv(x)


class GroupNorm(nnx.Module):
    """(x − mean)/√(variance + 10⁻⁶) over the pixels and channels of each group, then a scale and a bias for each channel."""

    def __init__(self, width: int, build: Build):
        self.scale, self.bias = nnx.Param(jnp.ones(width)), nnx.Param(jnp.zeros(width))
        self.groups = build.config.groups

    def __call__(self, x: Maps) -> Maps:
        def mean(of: Maps) -> Maps:
            # Over pixels first: a CPU adds few neighbouring channels, as nnx.GroupNorm does, at half the speed.
            channels = of.mean(axis=(1, 2)).reshape(len(of), self.groups, -1)
            means = jnp.broadcast_to(channels.mean(axis=2, keepdims=True), channels.shape)
            return means.reshape(len(of), 1, 1, -1)

        scale, bias = (value[...].reshape(1, 1, 1, -1) for value in (self.scale, self.bias))
        x = x.astype(scale.dtype)  # float32; the layer that follows casts
        centred = x - mean(x)
        return centred * (jax.lax.rsqrt(mean(centred**2) + 1e-6) * scale) + bias


def sinusoidal_embedding(t: Int[Array, " B"], frequencies: int) -> Float[Array, "B E"]:
    """[sin(ω t), cos(ω t)] with ω from 1 down to 1/10000, both ends included.

    Equation: ω_k = 10000^(−k/(K−1)),  k = 0 … K−1.

    Args:
        t: 0-based times (B,).
        frequencies: K ≥ 2.

    Returns:
        (B, 2K).

    >>> sinusoidal_embedding(jnp.array([0]), 2).tolist()
    [[0.0, 0.0, 1.0, 1.0]]

    Source: the code of arXiv:2006.11239, whose exponent divides by K − 1 where arXiv:1706.03762 divides by K.
    """
    omega = jnp.exp(-jnp.log(10000.0) * jnp.arange(frequencies) / (frequencies - 1))
    angle = t[:, None].astype(jnp.float32) * omega[None, :]
    return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=1)


def _embed(rows: int, out: int) -> nnx.Embed:
    return nnx.Embed(rows, out, embedding_init=_ZEROS, rngs=_NO_KEYS)


def _dense(inputs: int, out: int, build: Build) -> nnx.Linear:
    return nnx.Linear(inputs, out, dtype=build.dtype, kernel_init=_ZEROS, rngs=_NO_KEYS)


def _conv(inputs: int, out: int, size: int, build: Build, **options: Any) -> nnx.Conv:
    return nnx.Conv(
        inputs,
        out,
        (size, size),
        dtype=build.dtype,
        conv_general_dilated=build.convolve,
        kernel_init=_ZEROS,
        rngs=_NO_KEYS,
        **options,
    )
