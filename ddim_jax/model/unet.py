"""The UNet of DDPM and DDIM (Ho et al., arXiv:2006.11239, appendix B; the DDIM paper, arXiv:2010.02502, appendix D.1).

    t ── temb ──────────────────────────┐ (added inside every residual block)
    x ── conv_in ── down 0 … L−1 ── mid ── up L−1 … 0 ── norm_out ── conv_out ── ε
                       └── skips, one a block and one a downsampling ──┘ (concatenated)

Layers carry the names of the official checkpoints (`down.1.attn.0.q`), so that published weights map name by name.
This is the only file that knows the network's library: outside, a network is `apply(params, x, t)` and a nested dict.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, Key

from ..config import UNetConfig
from ..diffusion.randomness import Purpose, purpose_key

Params = dict[str, Any]
Images = Float[Array, "B H W C"]
Maps = Float[Array, "B _ _ _"]  # inside the network, height, width and channels change
Embedding = Float[Array, "B _"]

_INIT = nnx.initializers.variance_scaling(1.0, "fan_avg", "uniform")


def build_unet(config: UNetConfig, seed: int) -> tuple[Callable[..., Images], Params]:
    """The network as a function, and its initial parameters.

    Args:
        config: the architecture.
        seed: integer in 0 … 2³²−1; equal seeds give equal parameters.

    Returns:
        apply(params, x, t, *, dropout_key=None) → ε of x's shape, with x (B, H, W, C) in about [−1, 1] and t (B,) int32 in
        0 … T−1; dropout acts only where a key is given. And params, a nested dict of float32 arrays.

    Raises:
        ValueError: an architecture that does not fit its image size.

    >>> config = UNetConfig(8, 1, channels=8, multipliers=(1,), blocks=1, attention_resolutions=(), groups=2)
    >>> apply, params = build_unet(config, seed=0)
    >>> apply(params, jnp.zeros((2, 8, 8, 1)), jnp.array([0, 999])).shape
    (2, 8, 8, 1)

    Source: arXiv:2006.11239, appendix B.
    """
    config.check()

    def init(key: Key[Array, ""]) -> Params:
        return nnx.to_pure_dict(nnx.state(UNet(config, nnx.Rngs(params=key))))

    # Jitted, the initial weights are one program, and under `jax.eval_shape` they are shapes that cost nothing.
    return unet_apply(config), jax.jit(init)(purpose_key(seed, Purpose.INIT))


def unet_apply(config: UNetConfig) -> Callable[..., Images]:
    """The network as a function of its parameters, without making any: `build_unet`'s first result."""
    graph, _ = nnx.split(nnx.eval_shape(lambda: UNet(config, nnx.Rngs(params=0))))

    def apply(params: Params, x: Images, t: Int[Array, " B"], *, dropout_key: Key[Array, ""] | None = None) -> Images:
        return nnx.merge(graph, params)(x, t, dropout_key)

    return apply


class UNet(nnx.Module):
    """ε_θ(x_t, t) for images of one size."""

    def __init__(self, config: UNetConfig, rngs: nnx.Rngs):
        widths = [config.channels * multiplier for multiplier in config.multipliers]
        sizes = [config.image_size >> level for level in range(len(widths))]
        attends = [size in config.attention_resolutions for size in sizes]
        self.frequencies = config.channels // 2
        self.temb = TimeEmbedding(config.channels, rngs)
        self.conv_in = _conv(config.image_channels, config.channels, 3, rngs)

        skips, width = [config.channels], config.channels
        down = []
        for level, out in enumerate(widths):
            inputs = [width] + [out] * (config.blocks - 1)
            last = level == len(widths) - 1
            down.append(Level(config, inputs, out, attends[level], None if last else Downsample(out, rngs), rngs))
            skips += [out] * (config.blocks + (not last))
            width = out

        self.down = nnx.List(down)
        self.mid = Middle(config, width, rngs)

        up = []
        for level, out in reversed(list(enumerate(widths))):
            inputs = [w + skips.pop() for w in [width] + [out] * config.blocks]
            up.append(Level(config, inputs, out, attends[level], Upsample(out, rngs) if level else None, rngs))
            width = out
        self.up = nnx.List(up[::-1])  # index = resolution level, as in the official names

        self.norm_out = _norm(width, config, rngs)
        self.conv_out = _conv(width, config.image_channels, 3, rngs, zero=config.zero_init)

    def __call__(self, x: Images, t: Int[Array, " B"], dropout_key: Key[Array, ""] | None) -> Images:
        rngs = None if dropout_key is None else nnx.Rngs(dropout=dropout_key)
        embedding = self.temb(sinusoidal_embedding(t, self.frequencies))
        h = self.conv_in(x)
        skips = [h]
        for level in self.down:
            for j, block in enumerate(level.block):
                h = level.attend(j, block(h, embedding, rngs))
                skips.append(h)
            if level.downsample is not None:
                h = level.downsample(h)
                skips.append(h)
        h = self.mid(h, embedding, rngs)
        for level in reversed(self.up):
            for j, block in enumerate(level.block):
                h = level.attend(j, block(jnp.concatenate([h, skips.pop()], axis=-1), embedding, rngs))
            if level.upsample is not None:
                h = level.upsample(h)
        return self.conv_out(nnx.silu(self.norm_out(h)))


class TimeEmbedding(nnx.Module):
    """Two dense layers over the sinusoids of t, to 4·channels."""

    def __init__(self, channels: int, rngs: nnx.Rngs):
        self.dense = nnx.List([_dense(channels, 4 * channels, rngs), _dense(4 * channels, 4 * channels, rngs)])

    def __call__(self, sinusoids: Embedding) -> Embedding:
        return self.dense[1](nnx.silu(self.dense[0](sinusoids)))


class Level(nnx.Module):
    """The residual blocks of one resolution, attention after each, and the change of resolution that follows."""

    def __init__(self, config: UNetConfig, inputs: list[int], out: int, attends: bool, resample: Any, rngs: nnx.Rngs):
        self.block = nnx.List([ResidualBlock(config, width, out, rngs) for width in inputs])
        self.attn = nnx.List([Attention(config, out, rngs) for _ in inputs] if attends else [])
        self.downsample = resample if isinstance(resample, Downsample) else None
        self.upsample = resample if isinstance(resample, Upsample) else None

    def attend(self, j: int, h: Maps) -> Maps:
        return self.attn[j](h) if self.attn else h


class Middle(nnx.Module):
    """Block, attention, block at the lowest resolution."""

    def __init__(self, config: UNetConfig, width: int, rngs: nnx.Rngs):
        self.block_1 = ResidualBlock(config, width, width, rngs)
        self.attn_1 = Attention(config, width, rngs)
        self.block_2 = ResidualBlock(config, width, width, rngs)

    def __call__(self, h: Maps, embedding: Embedding, rngs: nnx.Rngs | None) -> Maps:
        return self.block_2(self.attn_1(self.block_1(h, embedding, rngs)), embedding, rngs)


class ResidualBlock(nnx.Module):
    """h + conv(dropout(silu(norm(conv(silu(norm h)) + dense(silu(embedding))))))."""

    def __init__(self, config: UNetConfig, inputs: int, out: int, rngs: nnx.Rngs):
        self.norm1 = _norm(inputs, config, rngs)
        self.conv1 = _conv(inputs, out, 3, rngs)
        self.temb_proj = _dense(4 * config.channels, out, rngs)
        self.norm2 = _norm(out, config, rngs)
        self.dropout = nnx.Dropout(config.dropout)
        self.conv2 = _conv(out, out, 3, rngs, zero=config.zero_init)
        self.nin_shortcut = _conv(inputs, out, 1, rngs) if inputs != out else None

    def __call__(self, x: Maps, embedding: Embedding, rngs: nnx.Rngs | None) -> Maps:
        h = self.conv1(nnx.silu(self.norm1(x)))
        h = h + self.temb_proj(nnx.silu(embedding))[:, None, None, :]
        h = self.dropout(nnx.silu(self.norm2(h)), deterministic=rngs is None, rngs=rngs)
        return self.conv2(h) + (x if self.nin_shortcut is None else self.nin_shortcut(x))


class Attention(nnx.Module):
    """x + proj(softmax(q kᵀ/√C) v) over all positions, one head."""

    def __init__(self, config: UNetConfig, width: int, rngs: nnx.Rngs):
        self.norm = _norm(width, config, rngs)
        self.q, self.k, self.v = (_dense(width, width, rngs) for _ in range(3))
        self.proj_out = _dense(width, width, rngs, zero=config.zero_init)

    def __call__(self, x: Maps) -> Maps:
        batch, height, width, channels = x.shape
        h = self.norm(x).reshape(batch, height * width, 1, channels)
        h = jax.nn.dot_product_attention(self.q(h), self.k(h), self.v(h))
        return x + self.proj_out(h).reshape(x.shape)


class Downsample(nnx.Module):
    """Halve the resolution: a stride-2 convolution, padded on the right and below as the official one."""

    def __init__(self, width: int, rngs: nnx.Rngs):
        self.conv = _conv(width, width, 3, rngs, strides=2, padding=[(0, 1), (0, 1)])

    def __call__(self, x: Maps) -> Maps:
        return self.conv(x)


class Upsample(nnx.Module):
    """Double the resolution: repeat each pixel, then a convolution."""

    def __init__(self, width: int, rngs: nnx.Rngs):
        self.conv = _conv(width, width, 3, rngs)

    def __call__(self, x: Maps) -> Maps:
        return self.conv(x.repeat(2, axis=1).repeat(2, axis=2))


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


def _norm(width: int, config: UNetConfig, rngs: nnx.Rngs) -> nnx.GroupNorm:
    return nnx.GroupNorm(width, config.groups, epsilon=1e-6, use_fast_variance=False, rngs=rngs)


def _dense(inputs: int, out: int, rngs: nnx.Rngs, *, zero: bool = False) -> nnx.Linear:
    return nnx.Linear(inputs, out, kernel_init=nnx.initializers.zeros if zero else _INIT, rngs=rngs)


def _conv(inputs: int, out: int, size: int, rngs: nnx.Rngs, *, zero: bool = False, **options: Any) -> nnx.Conv:
    kernel_init = nnx.initializers.zeros if zero else _INIT
    return nnx.Conv(inputs, out, (size, size), kernel_init=kernel_init, rngs=rngs, **options)
