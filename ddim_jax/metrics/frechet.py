"""The Fréchet distance, from features or from statistics, in float64."""

from functools import cache
from typing import Any

import numpy as np
from threadpoolctl import ThreadpoolController

from .points import Numbers, Points, Statistics, as_points


def frechet_distance(
    features_a: Numbers | Points | Statistics,
    features_b: Numbers | Points,
    *,
    leave_one_out: bool = False,
) -> Any:
    """The Fréchet distance between Gaussians fitted to two sets of features.

    Equation: ‖μ_a − μ_b‖² + tr(Σ_a + Σ_b − 2 (Σ_a^½ Σ_b Σ_a^½)^½), Σ with divisor N − 1.
    It is called FID only for Inception features. It depends on N, so report both with it.

    >>> round(frechet_distance([[0.0], [2.0]], [[3.0], [5.0]]), 6)
    9.0

    Source: Heusel et al., arXiv:1706.08500, Eq. 6; Dowson and Landau 1982.
    """
    a, b = as_points(features_a, features_b)
    n, axes, mean = len(b.features), a.axes, b.features.mean(0)
    centred, shift = b.features - mean, mean - a.mean
    squares, along = np.einsum("nd,nd->n", centred, centred), centred @ shift
    x = centred @ (axes.vectors * np.sqrt(axes.variances))  # rows Σ_a^½ d_i, d_i = b_i − μ_b
    # Σ_a^½ Σ_b Σ_a^½ has the eigenvalues of the Gram matrix of its factors: take the smaller one.
    product = (x @ x.T if n <= x.shape[1] else x.T @ x) / (n - 1)
    with _blas().limit(limits=_threads(product)):
        decomposed = np.linalg.eigh(product) if leave_one_out else np.linalg.eigvalsh(product)
    variances = np.clip(decomposed[0] if leave_one_out else decomposed, 0, None)
    overlap = np.sqrt(variances).sum()
    spread = axes.variances.sum() + squares.sum() / (n - 1) - 2 * overlap
    value = float(shift @ shift + max(spread, 0))
    if not leave_one_out:
        return value
    overlaps = overlap + _overlap_changes(x, variances, decomposed[1])
    # Without d_i: μ_b − d_i/(n−1), and Σ_b of n − 1 samples about it.
    of_mean = shift @ shift - 2 * along / (n - 1) + squares / (n - 1) ** 2
    traces = (squares.sum() - n / (n - 1) * squares) / (n - 2)
    scale = np.sqrt((n - 1) / (n - 2))
    return value, of_mean + axes.variances.sum() + traces - 2 * scale * overlaps


def _overlap_changes(x: np.ndarray, variances: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    """How tr C^½ changes without each row x_i of x: C → C − c x_i x_iᵀ, c = n/(n−1)².

    C = xᵀx/(n−1) has eigenvalues κ_k, along whose eigenvectors x_i² = (n−1) κ_k h_ik. With
    √κ = (2/π) ∫_0^∞ κ/(κ + σ²) dσ and the determinant of a rank-one change, tr C^½ changes by

        (1/π) ∫_0^∞ ln(1 − n/(n−1) Σ_k h_ik κ_k/(κ_k + σ²)) dσ,

    here a sum over equal steps of ln σ. Its error falls as e^{−π²/step}: a step of ½ leaves 3e-9.
    """
    n, dual = len(x), len(x) <= x.shape[1]
    real = variances > 1e-13 * variances.max()
    kappa, vectors = variances[real], vectors[:, real]
    if not kappa.size:
        return np.zeros(n)
    least, most = np.log(kappa[[0, -1]]) / 2
    sigma = np.exp(np.arange(least - 18, most + 18, 0.5))
    shares = kappa[:, None] / (kappa[:, None] + sigma**2)
    changes = np.empty(n)
    for start in range(0, n, 2048):
        rows = slice(start, start + 2048)
        h = vectors[rows] ** 2 if dual else (x[rows] @ vectors) ** 2 / ((n - 1) * kappa)
        left = 1 - n / (n - 1) * (h @ shares)
        changes[rows] = np.log(np.maximum(left, 1e-300)) @ sigma * 0.5 / np.pi
    return changes


def frechet_of_statistics(a: Statistics, b: Statistics) -> float:
    """`frechet_distance` from two means and covariances.

    >>> x, y = [[0.0], [2.0]], [[3.0], [5.0]]
    >>> round(frechet_of_statistics(Points(x).statistics, Points(y).statistics), 6)
    9.0
    """
    if np.shape(a.covariance) != np.shape(b.covariance):
        raise ValueError(
            f"the statistics are of {len(a.mean)} features and of {len(b.mean)}; "
            "both must come from one feature extractor."
        )
    variances, vectors = Points(a).axes
    root, covariance = np.sqrt(variances), vectors.T @ np.atleast_2d(b.covariance) @ vectors
    cross = np.linalg.eigvalsh(root[:, None] * covariance * root)
    overlap = 2 * np.sqrt(np.clip(cross, 0, None)).sum()
    spread = variances.sum() + np.trace(covariance) - overlap
    return float(np.sum((a.mean - b.mean) ** 2) + max(spread, 0))


def _threads(matrix: np.ndarray) -> int | None:
    """OpenBLAS's threads wait for each other: on small matrices one is ten times as fast."""
    return 1 if len(matrix) < 512 else None


@cache
def _blas() -> ThreadpoolController:
    """The libraries that NumPy multiplies with; to find them takes a millisecond."""
    return ThreadpoolController().select(user_api="blas")
