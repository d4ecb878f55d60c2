"""The UNet of DDPM and DDIM (arXiv:2006.11239, appendix B; arXiv:2010.02502, appendix D.1).

    t ── temb ──────────────────────────┐ (added inside every residual block)
    x ── conv_in ── down 0 … L−1 ── mid ── up L−1 … 0 ── norm_out ── conv_out ── ε
                       └── skips, one per block and downsampling ──┘ (concatenated)

Layers have the names of the official checkpoints (`down.1.attn.0.q`). Only this file depends on
Flax: elsewhere a network is a nested dict of float32 arrays, and a function

    apply(params, x, t, *, label=None, dropout_key=None) → ε

with x (B, H, W, C) in about [−1, 1] and t (B,) in 0 … T−1. label (B,) is in 0 … num_classes, where
num_classes means no label, as does None. Dropout is active only if a key is given.
`config.variants` is what networks of diffusers do otherwise; a reader of the paper may skip it.
"""

import functools
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, Key

from ..config import UNetConfig
from ..diffusion.keys import Purpose, purpose_key
from .convolution import after_upsampling, convolution, convolution_to_train
from .layers import group_norm, initial_values, sinusoidal_embedding

Params = dict[str, Any]
Images = Float[Array, "B H W C"]
Maps = Float[Array, "B _ _ _"]  # inside the network, height, width and channels change
Embedding = Float[Array, "B _"]
Times = Int[Array, " B"]

# `initial_values` sets the values: a key and a draw per layer would take a second to trace.
_ZEROS = nnx.initializers.zeros_init()
_NO_KEYS: Any = SimpleNamespace(params=lambda: None)


class Build(NamedTuple):
    """What layers are built from: the architecture, the data type of products, the convolution."""

    config: UNetConfig
    dtype: Any
    convolve: Callable[..., Any]


def build_unet(config: UNetConfig, seed: int) -> tuple[Callable[..., Images], Params]:
    """The network as `apply`, and its initial parameters.

    >>> config = UNetConfig(8, 1, 8, (1,), blocks=1, attention_resolutions=(), groups=2)
    >>> apply, params = build_unet(config, seed=0)
    >>> jax.jit(apply)(params, jnp.zeros((2, 8, 8, 1)), jnp.array([0, 999])).shape
    (2, 8, 8, 1)
    """
    config.check()
    # One compiled program makes all values; under `jax.eval_shape` it costs nothing.
    values = jax.jit(functools.partial(initial_values, unet_shapes(config), config.zero_init))
    return unet_apply(config), values(purpose_key(seed, Purpose.INIT))


def unet_shapes(config: UNetConfig) -> Params:
    """The parameters as jax.ShapeDtypeStruct; nothing is computed."""
    return _network(config, "float32", False, False)[1]


@functools.lru_cache
def _network(config: UNetConfig, dtype: str, remat: bool, to_train: bool) -> tuple[Any, Params]:
    """The structure of the network, and the shapes of its parameters."""
    build = Build(config, jnp.dtype(dtype), convolution_to_train if to_train else convolution)
    graph, state = nnx.split(nnx.eval_shape(lambda: UNet(build, remat)))
    return graph, jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), nnx.to_pure_dict(state)
    )


def unet_apply(
    config: UNetConfig, dtype: str = "float32", remat: bool = False, to_train: bool = False
) -> Callable[..., Images]:
    """The network as `apply`, without making parameters.

    Args:
        config: the architecture.
        dtype: of activations and products, "float32" or "bfloat16". The normalisations' statistics,
            the softmax, the last convolution, the output and the gradients are always float32.
        remat: recompute each block's activations in the backward pass instead of storing them.
        to_train: faster gradients on CPUs; `apply` then supports only reverse-mode differentiation.
    """
    graph, _ = _network(config, dtype, remat, to_train)

    def apply(
        params: Params,
        x: Images,
        t: Times,
        *,
        label: Times | None = None,
        dropout_key: Key[Array, ""] | None = None,
    ) -> Images:
        if label is not None and not config.num_classes:
            raise ValueError(
                "a label was given to a network without classes; train with --model.num-classes."
            )
        if label is None and config.num_classes and not config.variants.null_class:
            known = f"0 to {config.num_classes - 1}"
            raise ValueError(f"this network needs a label for every image; give --label {known}.")
        return nnx.merge(graph, params)(x, t, label, dropout_key)

    return apply


class UNet(nnx.Module):
    """ε_θ(x_t, t) for images of one size."""

    def __init__(self, build: Build, remat: bool):
        config, kinds = build.config, build.config.variants
        widths = [config.channels * multiplier for multiplier in config.multipliers]
        attends = [
            config.image_size >> i in config.attention_resolutions for i in range(len(widths))
        ]
        self.config = config
        width = 4 * config.channels
        dense = [_dense(inputs, width, build) for inputs in (config.channels, width)]
        self.temb = nnx.Dict(dense=nnx.List(dense))
        # One row per class, and one for no label, which label dropout trains and guidance needs.
        table = nnx.Embed(config.class_rows() or 1, width, embedding_init=_ZEROS, rngs=_NO_KEYS)
        self.classes = table if config.num_classes else None
        self.conv_in = _conv(config.image_channels, config.channels, 3, build)
        self.block = nnx.remat(_block, static_argnums=(1,)) if remat else _block

        skips, width = [config.channels], config.channels
        down = []
        for level, out in enumerate(widths):
            inputs = [width] + [out] * (config.blocks - 1)
            last = level == len(widths) - 1
            # Padded on the right and at the bottom, as in the official code.
            pad = [(int(kinds.symmetric_downsampling), 1)] * 2
            conv = None if last else _conv(out, out, 3, build, strides=2, padding=pad)
            down.append(Level(inputs, out, attends[level], build, downsample=conv))
            skips += [out] * (config.blocks + (not last))
            width = out
        self.down = nnx.List(down)
        self.mid = Middle(width, build)

        up = []
        upsampled = build._replace(convolve=after_upsampling(build.convolve))
        for level, out in reversed(list(enumerate(widths))):
            inputs = [w + skips.pop() for w in [width] + [out] * config.blocks]
            conv = _conv(out, out, 3, upsampled) if level else None
            up.append(Level(inputs, out, attends[level], build, upsample=conv))
            width = out
        self.up = nnx.List(up[::-1])  # index = resolution level, as in the official names

        self.norm_out = GroupNorm(width, build)
        self.conv_out = _conv(
            width, config.image_channels, 3, build._replace(dtype=jnp.dtype("float32"))
        )

    def __call__(
        self, x: Images, t: Times, label: Times | None, dropout_key: Key[Array, ""] | None
    ) -> Images:
        rngs = None if dropout_key is None else nnx.Rngs(dropout=dropout_key)
        first, second = self.temb.dense
        frequencies, kinds = self.config.channels // 2, self.config.variants
        waves = sinusoidal_embedding(t, frequencies, kinds.frequency_shift, kinds.cosine_first)
        embedding = second(nnx.silu(first(waves)))
        if self.classes is not None:
            if label is None:
                label = jnp.full_like(t, self.classes.num_embeddings - 1)
            embedding = embedding + self.classes(label)
        h = self.conv_in(x)
        skips = [h]
        for level in self.down:
            for j in range(len(level.block)):
                h = self.block(level, j, h, embedding, rngs)
                skips.append(h)
            if level.downsample is not None:
                h = level.downsample.conv(h)
                skips.append(h)
        h = self.mid(h, embedding, rngs)
        for level in reversed(self.up):
            for j in range(len(level.block)):
                h = jnp.concatenate([h, skips.pop()], axis=-1)
                h = self.block(level, j, h, embedding, rngs)
            if level.upsample is not None:
                h = level.upsample.conv(h)
        return self.conv_out(nnx.silu(self.norm_out(h)))


class Level(nnx.Module):
    """The residual blocks of one resolution, attention after each, and the change of resolution."""

    def __init__(
        self,
        inputs: list[int],
        out: int,
        attends: bool,
        build: Build,
        downsample: Any = None,
        upsample: Any = None,
    ):
        self.block = nnx.List([ResidualBlock(width, out, build) for width in inputs])
        self.attn = nnx.List([Attention(out, build) for _ in inputs] if attends else [])
        self.downsample = nnx.Dict(conv=downsample) if downsample else None
        self.upsample = nnx.Dict(conv=upsample) if upsample else None


def _block(level: Level, j: int, h: Maps, embedding: Embedding, rngs: nnx.Rngs | None) -> Maps:
    """Block j of a level and its attention: the unit of rematerialisation."""
    h = level.block[j](h, embedding, rngs)
    return level.attn[j](h) if level.attn else h


class Middle(nnx.Module):
    """Block, attention, block at the lowest resolution."""

    def __init__(self, width: int, build: Build):
        self.block_1 = ResidualBlock(width, width, build)
        self.attn_1 = Attention(width, build, norm=build.config.variants.middle_norm)
        self.block_2 = ResidualBlock(width, width, build)

    def __call__(self, h: Maps, embedding: Embedding, rngs: nnx.Rngs | None) -> Maps:
        return self.block_2(self.attn_1(self.block_1(h, embedding, rngs)), embedding, rngs)


class ResidualBlock(nnx.Module):
    """h + conv(dropout(silu(norm(conv(silu(norm h)) + dense(silu(embedding)))))).

    With `scale_shift`, dense(silu(embedding)) = (a, b), and norm(…) is (1 + a) · norm(conv(…)) + b.
    """

    def __init__(self, inputs: int, out: int, build: Build):
        self.norm1 = GroupNorm(inputs, build)
        self.conv1 = _conv(inputs, out, 3, build)
        self.scale_shift = build.config.variants.scale_shift
        width = 2 * out if self.scale_shift else out
        self.temb_proj = _dense(4 * build.config.channels, width, build)
        self.norm2 = GroupNorm(out, build)
        self.dropout = nnx.Dropout(build.config.dropout)
        self.conv2 = _conv(out, out, 3, build)
        self.nin_shortcut = _conv(inputs, out, 1, build) if inputs != out else None

    def __call__(self, x: Maps, embedding: Embedding, rngs: nnx.Rngs | None) -> Maps:
        h = self.conv1(nnx.silu(self.norm1(x)))
        embedding = self.temb_proj(nnx.silu(embedding))[:, None, None, :]
        if self.scale_shift:
            scale, shift = jnp.split(embedding, 2, axis=-1)
            h = self.norm2(h) * (1 + scale) + shift
        else:
            h = self.norm2(h + embedding)
        h = self.dropout(nnx.silu(h), deterministic=rngs is None, rngs=rngs)
        return self.conv2(h) + (x if self.nin_shortcut is None else self.nin_shortcut(x))


class Attention(nnx.Module):
    """x + proj(softmax(q kᵀ/√C) v) over all positions, in each head of C channels."""

    def __init__(self, width: int, build: Build, norm: bool = True):
        self.heads = build.config.heads(width)
        self.norm = GroupNorm(width, build) if norm else None
        self.q, self.k, self.v, self.proj_out = (_dense(width, width, build) for _ in range(4))

    def __call__(self, x: Maps) -> Maps:
        batch, height, width, channels = x.shape
        h = (x if self.norm is None else self.norm(x)).reshape(batch, height * width, 1, channels)
        split = (batch, height * width, self.heads, channels // self.heads)
        q, k, v = (layer(h).reshape(split) for layer in (self.q, self.k, self.v))
        h = jax.nn.dot_product_attention(q, k, v).reshape(h.shape)
        return x + self.proj_out(h).reshape(x.shape)


class GroupNorm(nnx.Module):
    """`group_norm` with a scale and a bias for each channel."""

    def __init__(self, width: int, build: Build):
        self.scale, self.bias = nnx.Param(jnp.ones(width)), nnx.Param(jnp.zeros(width))
        self.groups, self.eps = build.config.groups, build.config.variants.norm_eps

    def __call__(self, x: Maps) -> Maps:
        return group_norm(x, self.scale[...], self.bias[...], self.groups, self.eps)


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
