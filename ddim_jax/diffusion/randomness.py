"""Random keys by identity, not by history.

A key is folded from the seed, then from the purpose, then from what it is for (a training step, an image, a time), and
never split from a key that was used before. So a number drawn does not depend on what was drawn earlier.
"""

import enum

import jax
from jaxtyping import Array, Key

from .types import Integer


class Purpose(enum.IntEnum):
    """The first thing folded into every key, so that no two purposes share a random number."""

    INIT = 0
    DATA = 1
    TRAINING = 2
    SAMPLING = 3
    VALIDATION = 4


def purpose_key(seed: Integer, purpose: Purpose) -> Key[Array, ""]:
    """The root key of a purpose.

    Equation: fold_in(key(seed), purpose), threefry: rbg would give an image other noise alone than in a batch.

    Args:
        seed: integer in 0 … 2³²−1.
        purpose: what the numbers are for.

    Returns:
        A scalar typed key.

    Raises:
        ValueError: a seed out of range.

    >>> bool((purpose_key(0, Purpose.INIT) == purpose_key(0, Purpose.SAMPLING)))
    False
    """
    if not 0 <= seed < 2**32:
        raise ValueError(f"seed is {seed}; it must be an integer from 0 to {2**32 - 1}.")
    return jax.random.fold_in(jax.random.key(int(seed), impl="threefry2x32"), int(purpose))
