"""Random numbers that depend on what they are for, not on what was drawn before.

A key is folded from the seed, then from the purpose, then from what it is for: a training step, an
image, a time. It is never split from another key.

    (1)  key_i = fold_in(fold_in(key(seed), SAMPLING), i)
         x_T = normal(fold_in(key_i, 0)),   z_t = normal(fold_in(key_i, t))

So an image does not depend on its batch, and two σ schedules share their random numbers. All
numbers are float32, also under jax_enable_x64.
"""

import enum
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key, UInt32

from .types import Integer, Numbers

Keys = Key[Array, " keys"]
Seed = Integer | UInt32[Array, ""]


class Purpose(enum.IntEnum):
    """The first thing folded into every key, so that no two purposes share a random number."""

    INIT = 0
    DATA = 1
    TRAINING = 2
    SAMPLING = 3
    VALIDATION = 4
    ESTIMATION = 5
    LIKELIHOOD = 6


def purpose_key(seed: Seed, purpose: Purpose) -> Key[Array, ""]:
    """The root key of a purpose, fold_in(key(seed), purpose).

    A traced seed (uint32) gives the same bits, so a compiled program can make its own keys. Always
    threefry: with rbg, an image's noise would depend on its batch.

    >>> bool(purpose_key(0, Purpose.INIT) == purpose_key(0, Purpose.SAMPLING))
    False
    """
    if not isinstance(seed, jax.core.Tracer) and not 0 <= int(seed) < 2**32:
        raise ValueError(f"seed is {seed}; it must be an integer from 0 to {2**32 - 1}.")
    key = jax.random.key(jnp.asarray(seed, jnp.uint32), impl="threefry2x32")
    return jax.random.fold_in(key, int(purpose))


def image_keys(seed: Seed, indices: Numbers, purpose: Purpose = Purpose.SAMPLING) -> Keys:
    """The keys (B,) of the images with indices (B,) for a seed, (1); either may be traced.

    >>> bool(image_keys(0, [7, 8])[1] == image_keys(0, [8])[0])
    True
    """
    if not isinstance(indices, jax.core.Tracer):
        indices = np.asarray(indices)
        in_range = not indices.size or (indices.min() >= 0 and indices.max() < 2**32)
        if indices.ndim != 1 or not in_range:
            raise ValueError(
                f"indices are {indices}; give a one-dimensional array of integers "
                f"from 0 to {2**32 - 1}."
            )
    indices = jnp.asarray(indices, jnp.uint32)
    return jax.vmap(jax.random.fold_in, (None, 0))(purpose_key(seed, purpose), indices)


def initial_noise(keys: Keys, shape: tuple[int, ...]) -> Float[Array, "B *dims"]:
    """The noise x_T (B, *shape) that each image starts from, (1).

    >>> initial_noise(image_keys(0, [0, 1]), (8, 8, 1)).shape
    (2, 8, 8, 1)
    """
    return noise_rows(keys, 0, math.prod(shape)).reshape(len(keys), *shape)


def check_keys(keys: Keys, images: Any, name: str) -> None:
    """Refuse anything but one key per image."""
    if keys.shape != images.shape[:1]:
        shapes = f"keys have shape {keys.shape} for {name} of shape {images.shape}"
        raise ValueError(f"{shapes}; give one key per image: image_keys(seed, indices).")


def noise_rows(keys: Keys, t: Any, size: int) -> Float[Array, "B size"]:
    """z_t of (1), one row per image: the same numbers, drawn in half the time on a CPU."""

    def draw(key: Key[Array, ""]) -> Float[Array, " size"]:
        return jax.random.normal(jax.random.fold_in(key, t), (size,), jnp.float32)

    # Neither of these settings of JAX may change an image: its precision, nor this one.
    with jax.threefry_partitionable(True):
        return jax.vmap(draw)(keys)
