"""Statistics of two sets of images, as functions of their features, computed in float64.

Features are (M, D) of the reference and (N, D) of the samples, as arrays or as `Points`. In
nearest-neighbour statistics, the ball of a point reaches to the k-th nearest other point of its
own set, inclusive. Two keywords serve the intervals: `leave_one_out` also returns T without sample
i, (N,); `subsets`, (R, N) bool, returns T of each subset, (R,).
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

from .points import Numbers, Points, as_points, cubic

Subsets = np.ndarray | None
Result = Any  # a float; with leave_one_out (float, (N,)), with subsets (R,)


def kernel_distance(
    features_a: Numbers | Points, features_b: Numbers | Points, *, leave_one_out: bool = False
) -> Result:
    """The squared maximum mean discrepancy under the kernel k(x, y) = (x·y/D + 1)³.

    Equation: mean_{i≠j} k(a_i, a_j) + mean_{i≠j} k(b_i, b_j) − 2 mean_{i,j} k(a_i, b_j).
    It is called KID only for Inception features. It is unbiased at every N, so it can be below 0.

    >>> kernel_distance([[0.0], [2.0]], [[1.0], [1.0]])
    -19.0

    Source: Bińkowski et al., arXiv:1801.01401, Eq. 4 and §3.1.
    """
    a, b = as_points(features_a, features_b)
    m, n = len(a.features), len(b.features)
    within_a, within = a.cubic_sums.sum() / (m * (m - 1)), b.cubic_sums
    across = sum(kernel.sum(0) for _, kernel in cubic(a, b)) / m
    value = float(within_a + within.sum() / (n * (n - 1)) - 2 * across.mean())
    if not leave_one_out:
        return value
    others = (within.sum() - 2 * within) / ((n - 1) * (n - 2))
    return value, within_a + others - 2 * (across.sum() - across) / (n - 1)


def precision(
    real: Numbers | Points, fake: Numbers | Points, k: int = 3, *, leave_one_out: bool = False
) -> Result:
    """The share of fake points near real ones: mean_j 1[fake_j in the ball of some real_i].

    >>> precision([[0.0], [1.0], [2.0]], [[2.5], [9.0]], k=1)
    0.5

    Source: Kynkäänniemi et al., arXiv:1904.06991, Eq. 1 and 2.
    """
    counts = sum(inside.sum(0) for inside in _balls(*as_points(real, fake), k))
    return _mean(np.asarray(counts) > 0, 1, leave_one_out)


def recall(
    real: Numbers | Points, fake: Numbers | Points, k: int = 3, *, subsets: Subsets = None
) -> Result:
    """The share of real points near fake ones: `precision` with the sets exchanged.

    >>> recall([[0.0], [1.0], [2.0], [9.0]], [[0.0], [1.5]], k=1)
    0.75
    """
    real, fake = as_points(real, fake)
    chosen = _chosen(fake, subsets)
    radii = _radii_within(fake, chosen, k)
    most = radii.max(0)
    covered = np.zeros((len(chosen), len(real.features)), bool)
    for rows, squares in real.squares_to(fake):
        inside = squares <= most  # few pairs are within any subset's balls, ...
        if inside.sum() > 64 * len(inside) and len(most) > 64:  # ... unless the balls are large
            ratios = np.divide(squares, most, out=np.full(squares.shape, np.inf), where=most > 0)
            deep = np.argpartition(ratios, 63, axis=1)[:, :64]
            depth = np.take_along_axis(squares, deep, 1)
            for hit, radius in zip(covered[:, rows], radii, strict=True):
                hit |= (depth <= radius[deep]).any(1)
            inside[covered[:, rows].all(0)] = False
        i, j = np.nonzero(inside)
        near = squares[i, j]
        for hit, radius in zip(covered[:, rows], radii, strict=True):
            hit[i[near <= radius[j]]] = True
    return _of_subsets(covered.mean(1), subsets)


def density(
    real: Numbers | Points, fake: Numbers | Points, k: int = 5, *, leave_one_out: bool = False
) -> Result:
    """How many real balls have a fake point, over k: mean_j #{i: fake_j in the ball of real_i} / k.

    About 1 for equal distributions; above 1 if fake points crowd where real points are dense.

    >>> density([[0.0], [1.0], [2.0]], [[1.5], [9.0]], k=1)
    1.0

    Source: Naeem et al., arXiv:2002.09797, Eq. 4.
    """
    counts = sum(inside.sum(0) for inside in _balls(*as_points(real, fake), k))
    return _mean(np.asarray(counts), k, leave_one_out)


def coverage(
    real: Numbers | Points, fake: Numbers | Points, k: int = 5, *, subsets: Subsets = None
) -> Result:
    """The share of real points whose ball has a fake one: mean_i 1[ball of real_i has a fake_j].

    It grows with N/M, so report both. Subsets of N/2 get balls of 2k, which contain as many.

    >>> coverage([[0.0], [1.0], [3.0]], [[2.5], [9.0]], k=1)  # 2.5 is within 2 of 3 only
    0.3333333333333333

    Source: Naeem et al., arXiv:2002.09797, Eq. 5.
    """
    real, fake = as_points(real, fake)
    chosen = _chosen(fake, subsets)
    scales = np.round(len(fake.features) / chosen.sum(1))
    covered = np.zeros(len(chosen))
    for scale in set(scales):
        members = chosen[scales == scale].T.astype(np.float32)
        covered[scales == scale] = sum(
            (inside.astype(np.float32) @ members > 0).sum(0)
            for inside in _balls(real, fake, k, int(scale))
        )
    return _of_subsets(covered / len(real.features), subsets)


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


def _chosen(fake: Points, subsets: Subsets) -> np.ndarray:
    n = len(fake.features)
    chosen = np.ones((1, n), bool) if subsets is None else subsets
    if (chosen.dtype, chosen.shape[1:]) != (bool, (n,)) or min(chosen.sum(1)) < 2:
        raise ValueError(
            f"subsets are {chosen.shape} {chosen.dtype} for {n} samples; give (R, N) bool with 2 "
            "samples in each subset."
        )
    return chosen


def _of_subsets(values: np.ndarray, subsets: Subsets) -> Result:
    return float(values[0]) if subsets is None else values


def _mean(values: np.ndarray, divisor: int, leave_one_out: bool) -> Result:
    mean, others = float(values.mean() / divisor), (values.sum() - values) / (len(values) - 1)
    return (mean, others / divisor) if leave_one_out else mean


def _balls(real: Points, fake: Points, k: int, scale: int = 1) -> Iterator[np.ndarray]:
    """Blocks of rows of 1[fake_j in the ball of real_i], reaching to the (scale·k)-th neighbour."""
    size = len(real.features)
    near, _ = real.nearest(k, size, scale * k)
    radii = near[:, min(scale * k, size - 1) - 1, None]
    return (squares <= radii[rows] for rows, squares in real.squares_to(fake))


def _radii_within(points: Points, chosen: np.ndarray, k: int) -> np.ndarray:
    """Squared distances to the k-th neighbour within each subset, −1 for points outside of it."""
    # Except with probability below 1e-10, k of this many neighbours are in a random half.
    count, size = k if chosen.all() else 4 * k + 40, int(chosen.sum(1).min())
    near, index = points.nearest(k, size, count)
    radii = np.full(chosen.shape, -1.0)
    for radius, subset in zip(radii, chosen, strict=True):
        while (counts := subset[index[subset]].cumsum(1, np.int32))[:, -1].min() < k:
            near, index = points.nearest(k, size, 2 * index.shape[1])
        radius[subset] = near[subset, np.argmax(counts == k, axis=1)]
    return radii
