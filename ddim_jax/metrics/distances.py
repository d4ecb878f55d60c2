"""Distances between two sets of images, as functions of their features, computed in float64.

Features are (M, D) of the reference and (N, D) of the samples. In nearest-neighbour statistics,
the ball of a point reaches to the k-th nearest other point of its own set, inclusive.
With `subsets`, (R, N) bool, the result is (R,): the statistic of each of these subsets of the
samples. Work that they share is done once.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from jax.typing import ArrayLike
from threadpoolctl import threadpool_limits

Numbers = ArrayLike | Sequence
Subsets = np.ndarray | None
Result = Any  # a float; with subsets (R,)


def frechet_distance(
    features_a: Numbers, features_b: Numbers, *, subsets: Subsets = None
) -> Result:
    """The Fréchet distance between Gaussians fitted to two sets of features.

    Equation: ‖μ_a − μ_b‖² + tr(Σ_a + Σ_b − 2 (Σ_a^½ Σ_b Σ_a^½)^½), Σ with divisor N − 1.
    It is called FID only for Inception features. It depends on N, so report both with it.

    >>> round(frechet_distance([[0.0], [2.0]], [[3.0], [5.0]]), 6)
    9.0

    Source: Heusel et al., arXiv:1706.08500, Eq. 6; Dowson and Landau 1982.
    """
    a, b, chosen = _inputs(features_a, features_b, subsets)
    a_mean, variances, axes = _principal_axes(a)
    root, b = np.sqrt(variances), b @ axes
    distances = []
    # OpenBLAS's threads wait for each other: on small matrices one thread is ten times as fast.
    with threadpool_limits(1 if len(axes) < 512 else None, "blas"):
        for subset in chosen:
            points = b[subset]
            mean = points.mean(0)
            centred = points - mean
            covariance = centred.T @ centred / (len(centred) - 1)
            cross = np.linalg.eigvalsh(root[:, None] * covariance * root)
            overlap = 2 * np.sqrt(np.clip(cross, 0, None)).sum()
            spread = variances.sum() + np.trace(covariance) - overlap
            distances.append(np.sum((a_mean - mean) ** 2) + max(spread, 0))
    return _result(np.array(distances), subsets)


def kernel_distance(features_a: Numbers, features_b: Numbers, *, subsets: Subsets = None) -> Result:
    """The squared maximum mean discrepancy under the kernel k(x, y) = (x·y/D + 1)³.

    Equation: mean_{i≠j} k(a_i, a_j) + mean_{i≠j} k(b_i, b_j) − 2 mean_{i,j} k(a_i, b_j).
    It is called KID only for Inception features. It is unbiased at every N, so it can be below 0.

    >>> kernel_distance([[0.0], [2.0]], [[1.0], [1.0]])
    -19.0

    Source: Bińkowski et al., arXiv:1801.01401, Eq. 4 and §3.1.
    """
    a, b, chosen = _inputs(features_a, features_b, subsets)
    weights, sizes = chosen.T.astype(np.float64), chosen.sum(1)
    within_a = _pairs(a, np.ones((len(a), 1))) / (len(a) * (len(a) - 1))
    within_b = _pairs(b, weights) / (sizes * (sizes - 1))
    across = sum(k.sum(0) for _, k in _cubic(a, b)) @ weights / (len(a) * sizes)
    return _result(within_a + within_b - 2 * across, subsets)


def precision(real: Numbers, fake: Numbers, k: int = 3, *, subsets: Subsets = None) -> Result:
    """The share of fake points near real ones: mean_j 1[fake_j in the ball of some real_i].

    >>> precision([[0.0], [1.0], [2.0]], [[2.5], [9.0]], k=1)
    0.5

    Source: Kynkäänniemi et al., arXiv:1904.06991, Eq. 1 and 2.
    """
    real, fake, chosen = _inputs(real, fake, subsets)
    counts = sum(inside.sum(0) for inside in _balls(real, fake, k))
    return _result(chosen @ (counts > 0).astype(np.float64) / chosen.sum(1), subsets)


def recall(real: Numbers, fake: Numbers, k: int = 3, *, subsets: Subsets = None) -> Result:
    """The share of real points near fake ones: `precision` with the sets exchanged.

    >>> recall([[0.0], [1.0], [2.0], [9.0]], [[0.0], [1.5]], k=1)
    0.75
    """
    real, fake, chosen = _inputs(real, fake, subsets)
    radii = _radii_within(fake, chosen, k)
    covered = np.zeros((len(chosen), len(real)), bool)
    for rows, squares in _squared_distances(real, fake):
        i, j = np.nonzero(squares <= radii.max(0))  # few pairs are within any subset's balls
        squares = squares[i, j]
        for hit, radius in zip(covered[:, rows], radii, strict=True):
            hit[i[squares <= radius[j]]] = True
    return _result(covered.mean(1), subsets)


def density(real: Numbers, fake: Numbers, k: int = 5, *, subsets: Subsets = None) -> Result:
    """How many real balls have a fake point, over k: mean_j #{i: fake_j in the ball of real_i} / k.

    About 1 for equal distributions; above 1 if fake points crowd where real points are dense.

    >>> density([[0.0], [1.0], [2.0]], [[1.5], [9.0]], k=1)
    1.0

    Source: Naeem et al., arXiv:2002.09797, Eq. 4.
    """
    real, fake, chosen = _inputs(real, fake, subsets)
    counts = sum(inside.sum(0) for inside in _balls(real, fake, k))
    return _result(chosen @ counts / (k * chosen.sum(1)), subsets)


def coverage(real: Numbers, fake: Numbers, k: int = 5, *, subsets: Subsets = None) -> Result:
    """The share of real points whose ball has a fake one: mean_i 1[ball of real_i has a fake_j].

    It grows with N/M, so report both. Subsets of N/2 get balls of 2k, which contain as many.

    >>> coverage([[0.0], [1.0], [3.0]], [[2.5], [9.0]], k=1)  # 2.5 is within 2 of 3 only
    0.3333333333333333

    Source: Naeem et al., arXiv:2002.09797, Eq. 5.
    """
    real, fake, chosen = _inputs(real, fake, subsets)
    scales = np.round(len(fake) / chosen.sum(1))
    covered = np.zeros(len(chosen))
    for scale in set(scales):
        members = chosen[scales == scale].T.astype(np.float32)
        covered[scales == scale] = sum(
            (inside.astype(np.float32) @ members > 0).sum(0)
            for inside in _balls(real, fake, k, int(scale))
        )
    return _result(covered / len(real), subsets)


def paired_differences(images_a: Numbers, images_b: Numbers) -> np.ndarray:
    """The root mean square difference between image i of one set and image i of the other.

    >>> paired_differences([[0.0, 0.0], [1.0, 1.0]], [[3.0, 3.0], [1.0, 1.0]])
    array([3., 0.])
    """
    a, b = np.asarray(images_a, np.float64), np.asarray(images_b, np.float64)
    if a.shape != b.shape or a.size == 0 or a.ndim < 1:
        raise ValueError(
            f"images have shapes {a.shape} and {b.shape}; give arrays of one shape (N ≥ 1, ...)."
        )
    return np.sqrt(((a - b) ** 2).reshape(len(a), -1).mean(1))


def _inputs(
    features_a: Numbers, features_b: Numbers, subsets: Subsets
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    a, b = np.asarray(features_a, np.float64), np.asarray(features_b, np.float64)
    chosen = np.ones((1, *b.shape[:1]), bool) if subsets is None else subsets
    if (
        (a.ndim, b.ndim, a.shape[1:]) != (2, 2, b.shape[1:])
        or (chosen.dtype, chosen.shape[1:]) != (bool, b.shape[:1])
        or min(len(a), *chosen.sum(1)) < 2
    ):
        raise ValueError(
            f"features have shapes {a.shape} and {b.shape}, subsets {chosen.shape} {chosen.dtype}; "
            "give (M, D), (N, D) and (R, N) bool, with M ≥ 2 and 2 samples in each subset."
        )
    return a, b, chosen


def _result(values: np.ndarray, subsets: Subsets) -> Result:
    return float(values[0]) if subsets is None else values


def _principal_axes(a: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean and variances along the eigenvectors of Σ_a, and the eigenvectors themselves."""
    variances, axes = np.linalg.eigh(np.atleast_2d(np.cov(a, rowvar=False)))
    return a.mean(0) @ axes, np.clip(variances, 0, None), axes


def _pairs(x: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Σ_{i≠j} w_i w_j k(x_i, x_j) for every column w: (N, D), (N, R) → (R,)."""
    all_pairs = sum(((k @ weights) * weights[rows]).sum(0) for rows, k in _cubic(x, x))
    return all_pairs - ((x**2).mean(1) + 1) ** 3 @ weights


def _cubic(a: np.ndarray, b: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
    for rows in _blocks(len(a), len(b)):
        k = a[rows] @ b.T / a.shape[1] + 1
        yield rows, k * k * k


def _balls(real: np.ndarray, fake: np.ndarray, k: int, scale: int = 1) -> Iterator[np.ndarray]:
    """Blocks of rows of 1[fake_j in the ball of real_i], reaching to the (scale·k)-th neighbour."""
    radii = _nearest(real, k, len(real), scale * k)[0][:, -1:]
    return (squares <= radii[rows] for rows, squares in _squared_distances(real, fake))


def _radii_within(points: np.ndarray, chosen: np.ndarray, k: int) -> np.ndarray:
    """Squared distances to the k-th neighbour within each subset, −1 for points outside of it."""
    # Except with probability below 1e-10, k of this many neighbours are in a random half.
    count, size = k if chosen.all() else 4 * k + 40, int(chosen.sum(1).min())
    near, index = _nearest(points, k, size, count)
    radii = np.full(chosen.shape, -1.0)
    for radius, subset in zip(radii, chosen, strict=True):
        while (counts := subset[index[subset]].cumsum(1, np.int32))[:, -1].min() < k:
            near, index = _nearest(points, k, size, 2 * index.shape[1])
        radius[subset] = near[subset, np.argmax(counts == k, axis=1)]
    return radii


def _nearest(points: np.ndarray, k: int, size: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Squared distances of each point's nearest others, ascending, and their indices."""
    if not 1 <= k < size:
        raise ValueError(
            f"k is {k} for {size} points (half of the set in a bootstrap); give 1 ≤ k < {size}."
        )
    count = min(count, len(points) - 1)
    near, index = np.empty((len(points), count)), np.empty((len(points), count), int)
    for rows, squares in _squared_distances(points, points):
        np.fill_diagonal(squares[:, rows], np.inf)  # a point is not its own neighbour
        nearest = np.argpartition(squares, count - 1, axis=1)[:, :count]
        order = np.take_along_axis(squares, nearest, 1).argsort(1)
        index[rows] = np.take_along_axis(nearest, order, 1)
        near[rows] = np.take_along_axis(squares, index[rows], 1)
    return near * (1 + 1e-9), index  # a point on the sphere is inside, despite rounding


def _squared_distances(a: np.ndarray, b: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
    """Blocks of rows of ‖a_i − b_j‖²."""
    a, b = a - a.mean(0), b - a.mean(0)  # else features far from 0 lose digits
    squares_a, squares_b = (a**2).sum(1), (b**2).sum(1)
    for rows in _blocks(len(a), len(b)):
        scale = squares_a[rows, None] + squares_b
        squares = scale - 2 * a[rows] @ b.T
        yield rows, np.where(squares < 1e-12 * scale, 0, squares)  # equal points are at exactly 0


def _blocks(rows: int, columns: int) -> Iterator[slice]:
    """Slices of 8 MiB of float64, so that 10,000 × 10,000 numbers are never in memory at once."""
    step = max(1, 2**20 // columns)
    return (slice(start, min(start + step, rows)) for start in range(0, rows, step))


class Statistic(NamedTuple):
    """A function (reference, samples) of features, and how it is shown."""

    label: str
    function: Callable[..., Any]
    larger_is_better: bool = False


STATISTICS: dict[str, Statistic] = {
    "frechet": Statistic("Fréchet distance", frechet_distance),
    "kernel": Statistic("kernel distance", kernel_distance),
    "precision": Statistic("precision (k=3)", precision, True),
    "recall": Statistic("recall (k=3)", recall, True),
    "density": Statistic("density (k=5)", density, True),
    "coverage": Statistic("coverage (k=5)", coverage, True),
}
