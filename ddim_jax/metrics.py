"""Distances between sets of images, as pure functions over their features."""

import numpy as np

from .diffusion.oracle import wasserstein2_gaussian
from .diffusion.types import Numbers


def frechet_distance(features_a: Numbers, features_b: Numbers) -> float:
    """The Fréchet distance between Gaussians fitted to two sets of features.

    Equation: ‖μ_a − μ_b‖² + tr(Σ_a + Σ_b − 2 (Σ_a^½ Σ_b Σ_a^½)^½), Σ with divisor N − 1.

    It is called FID only for Inception features; print it with its features and its N, on which it depends.

    Args:
        features_a: (N, D), N ≥ 2.
        features_b: (M, D), M ≥ 2.

    Returns:
        The distance, ≥ 0, in squared units of the features; computed in float64.

    Raises:
        ValueError: features that are not (N ≥ 2, D) with one D.

    >>> a = np.array([[0.0], [2.0]])
    >>> round(frechet_distance(a, a + 3), 6)
    9.0

    Source: Heusel et al., arXiv:1706.08500, Eq. 6; Dowson and Landau 1982.
    """
    a, b = np.asarray(features_a, np.float64), np.asarray(features_b, np.float64)
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or min(len(a), len(b)) < 2:
        raise ValueError(f"features have shapes {a.shape} and {b.shape}; give (N, D) and (M, D) with N, M ≥ 2.")
    cov_a, cov_b = (np.atleast_2d(np.cov(x, rowvar=False)) for x in (a, b))
    return sum(wasserstein2_gaussian(a.mean(0), cov_a, b.mean(0), cov_b))
