"""The types that signatures share. Shapes are documentation, checked under pytest only."""

from collections.abc import Sequence

import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float

Integer = int | np.integer
Real = float | int | np.number
# A number, a NumPy or JAX array, or nested lists: what np.asarray accepts.
Numbers = ArrayLike | Sequence
# (B, H, W, C), or any shape. Functions check that shapes agree; if not: ValueError.
Images = Float[Array | np.ndarray, "..."]
