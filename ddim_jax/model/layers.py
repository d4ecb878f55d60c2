"""The computations and the initial values of the UNet's layers, as functions of arrays."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key


def sinusoidal_embedding(
    t: Int[Array, " B"], frequencies: int, shift: int = 1, cosine_first: bool = False
) -> Float[Array, "B E"]:
    """[sin ω_k t, cos ω_k t] with ω_k = 10000^(−k/(K−shift)), k = 0 … K−1, for 0-based t.

    The K − 1 in the exponent follows the code of arXiv:2006.11239; arXiv:1706.03762 has K.

    >>> sinusoidal_embedding(jnp.array([0]), 2).tolist()
    [[0.0, 0.0, 1.0, 1.0]]
    """
    omega = jnp.exp(-jnp.log(10000.0) * jnp.arange(frequencies) / (frequencies - shift))
    angle = t[:, None].astype(jnp.float32) * omega[None, :]
    waves = [jnp.sin(angle), jnp.cos(angle)]
    return jnp.concatenate(waves[::-1] if cosine_first else waves, axis=1)


def group_norm(
    x: Float[Array, "B H W C"],
    scale: Float[Array, " C"],
    bias: Float[Array, " C"],
    groups: int,
    eps: float = 1e-6,
) -> Float[Array, "B H W C"]:
    """(x − mean)/√(variance + eps) over the pixels and channels of a group, · scale + bias."""

    def mean(of: Array) -> Array:
        # Pixels first: summing few adjacent channels first, as nnx.GroupNorm does, is slow on CPUs.
        channels = of.mean(axis=(1, 2)).reshape(len(of), groups, -1)
        means = jnp.broadcast_to(channels.mean(axis=2, keepdims=True), channels.shape)
        return means.reshape(len(of), 1, 1, -1)

    scale, bias = (value.reshape(1, 1, 1, -1) for value in (scale, bias))
    x = x.astype(scale.dtype)  # float32; the next layer casts
    centred = x - mean(x)
    return centred * (jax.lax.rsqrt(mean(centred**2) + eps) * scale) + bias


def initial_values(shapes: Any, zero_init: bool, key: Key[Array, ""]) -> Any:
    """Scales 1, biases 0, and kernels uniform with variance 2/(inputs + outputs).

    With `zero_init` each block starts as the identity, and the network as 0.
    """
    # One draw for all values: one draw per layer takes 8 to 15 seconds to compile.
    count = sum(leaf.size for leaf in jax.tree.leaves(shapes))
    pool = jax.random.uniform(key, (count,), jnp.float32, minval=-1)
    start = 0

    def value(path: Any, leaf: Any) -> Array:
        nonlocal start
        *_, layer, name = (entry.key for entry in path)
        if name in ("scale", "bias"):
            return jnp.full(leaf.shape, float(name == "scale"), leaf.dtype)
        if zero_init and layer in ("conv2", "proj_out", "conv_out"):
            return jnp.zeros(leaf.shape, leaf.dtype)
        numbers = pool[start : (start := start + leaf.size)].reshape(leaf.shape)
        return numbers * math.sqrt(6 / (math.prod(leaf.shape[:-2]) * sum(leaf.shape[-2:])))

    return jax.tree.map_with_path(value, shapes)
