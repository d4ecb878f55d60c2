"""The types that signatures share. Shapes are documentation, checked under pytest only."""

from collections.abc import Sequence

import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float

Integer = int | np.integer
Real = float | int | np.number
Numbers = (
    ArrayLike | Sequence
)  # a number, an array of NumPy or JAX, or nested lists: what np.asarray takes
# (B, H, W, C), or any shape. That two shapes agree is checked by the functions, which say so in a ValueError.
Images = Float[Array | np.ndarray, "..."]
