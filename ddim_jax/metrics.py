"""Distances between sets of images, as pure functions over their features, and bootstrap intervals for them.

The half-sample bootstrap: a resample splits the N generated samples at random into two halves, h and h̄. Given the reference,
the halves are independent sets of N/2, so over splits and samples, whatever the statistic T and its bias,

    E var (T(h) − T(h̄))/2 = var T_{N/2} / 2,                                       (1)

which is var T_N where the variance falls as 1/N. No sample is drawn twice: a duplicate would be its own nearest neighbour.
The Fréchet and the kernel distance have var T_N = L/N + Q/N², where (1) gives L/N + 2Q/N²: the interval is wider than it need
be, by at most √2, as the two distributions come so close that L vanishes, and never narrower.

For recall and coverage (1) is too small for the difference of two cells made from the same noise: what moves a sample by less
than the distance to its neighbours changes little, and in a half the neighbours are further. There the variance is

    var T(h) = var (T(h) − T(h̄))/2 + var (T(h) + T(h̄))/2,                          (2)

that of the delete-half jackknife, equal to (1) for a mean.

The interval is normal and centred on T, which is unbiased for what the interval covers: its own expected value at this N.
A percentile interval would miss it, for a resample adds the bias of T a second time.
"""

from collections.abc import Callable, Iterator
from functools import partial
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from threadpoolctl import threadpool_limits

from .diffusion.types import Numbers


class Interval(NamedTuple):
    """A statistic and the ends of its confidence interval."""

    value: float
    low: float
    high: float


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
    return _on_all(_frechet, features_a, features_b)


def kernel_distance(features_a: Numbers, features_b: Numbers) -> float:
    """The squared maximum mean discrepancy of two sets of features under a cubic kernel.

    Equation: mean_{i≠j} k(a_i, a_j) + mean_{i≠j} k(b_i, b_j) − 2 mean_{i,j} k(a_i, b_j), k(x, y) = (x·y/D + 1)³.

    It is called KID only for Inception features. Its expected value is the same at every N.

    Args:
        features_a: (N, D), N ≥ 2.
        features_b: (M, D), M ≥ 2.

    Returns:
        The unbiased estimate, which can be below 0; computed in float64.

    Raises:
        ValueError: features that are not (N ≥ 2, D) with one D.

    >>> kernel_distance([[0.0], [2.0]], [[1.0], [1.0]])
    -19.0

    Source: Bińkowski et al., arXiv:1801.01401, Eq. 4 and §3.1.
    """
    return _on_all(_kernel, features_a, features_b)


def precision(real: Numbers, fake: Numbers, k: int = 3) -> float:
    """The share of fake points near real ones.

    Equation: mean_j 1[fake_j in some ball of real_i], a ball reaching to the k-th nearest other point of its set, inclusive.

    Args:
        real: (M, D), M > k.
        fake: (N, D), N ≥ 2.
        k: the neighbour that sets the radius, ≥ 1.

    Returns:
        A share in 0…1.

    Raises:
        ValueError: features that are not (N ≥ 2, D) with one D; k not in 1…M − 1.

    >>> precision([[0.0], [1.0], [2.0]], [[2.5], [9.0]], k=1)
    0.5

    Source: Kynkäänniemi et al., arXiv:1904.06991, Eq. 1 and 2.
    """
    return _on_all(_precision, real, fake, k=k)


def recall(real: Numbers, fake: Numbers, k: int = 3) -> float:
    """The share of real points near fake ones: `precision` with the sets exchanged.

    Equation: mean_i 1[real_i in some ball of fake_j], a ball reaching to the k-th nearest other point of its set, inclusive.

    Args:
        real: (M, D), M ≥ 2.
        fake: (N, D), N > k.
        k: the neighbour that sets the radius, ≥ 1.

    Returns:
        A share in 0…1.

    Raises:
        ValueError: features that are not (N ≥ 2, D) with one D; k not in 1…N − 1.

    >>> recall([[0.0], [1.0], [2.0], [9.0]], [[0.0], [1.5]], k=1)
    0.75

    Source: Kynkäänniemi et al., arXiv:1904.06991, Eq. 1 and 2.
    """
    return _on_all(_recall, real, fake, k=k)


def density(real: Numbers, fake: Numbers, k: int = 5) -> float:
    """How many real balls hold a fake point, against the k that a real point would find.

    Equation: mean_j (number of balls of real_i that hold fake_j) / k, a ball reaching to the k-th nearest other real point.

    Args:
        real: (M, D), M > k.
        fake: (N, D), N ≥ 2.
        k: the neighbour that sets the radius, ≥ 1.

    Returns:
        The density, ≥ 0; about 1 for equal distributions, and above it where fakes crowd where real points are dense.

    Raises:
        ValueError: features that are not (N ≥ 2, D) with one D; k not in 1…M − 1.

    >>> density([[0.0], [1.0], [2.0]], [[1.5], [9.0]], k=1)
    1.0

    Source: Naeem et al., arXiv:2002.09797, Eq. 4.
    """
    return _on_all(_density, real, fake, k=k)


def coverage(real: Numbers, fake: Numbers, k: int = 5) -> float:
    """The share of real points whose ball holds a fake point.

    Equation: mean_i 1[some fake_j in the ball of real_i], a ball reaching to the k-th nearest other real point, inclusive.

    Args:
        real: (M, D), M > k.
        fake: (N, D), N ≥ 2.
        k: the neighbour that sets the radius, ≥ 1.

    Returns:
        A share in 0…1; it grows with N/M, so print both.

    Raises:
        ValueError: features that are not (N ≥ 2, D) with one D; k not in 1…M − 1.

    >>> coverage([[0.0], [1.0], [3.0]], [[2.5], [9.0]], k=1)  # 2.5 is within 2 of 3, not within 1 of 1
    0.3333333333333333

    Source: Naeem et al., arXiv:2002.09797, Eq. 5.
    """
    return _on_all(_coverage, real, fake, k=k)


def paired_differences(images_a: Numbers, images_b: Numbers) -> np.ndarray:
    """How far each image of one set is from the same image of another.

    Equation: d_i = √mean((a_i − b_i)²).

    Args:
        images_a: (N, ...).
        images_b: the same shape.

    Returns:
        (N,) root mean square differences, float64; `bootstrap(mean_value, 0.0, ...)` gives their mean an interval.

    Raises:
        ValueError: shapes that differ or have no image.

    >>> paired_differences([[0.0, 0.0], [1.0, 1.0]], [[3.0, 3.0], [1.0, 1.0]])
    array([3., 0.])

    Source: root mean square error.
    """
    a, b = np.asarray(images_a, np.float64), np.asarray(images_b, np.float64)
    if a.shape != b.shape or a.size == 0 or a.ndim < 1:
        raise ValueError(
            f"images have shapes {a.shape} and {b.shape}; give two of one shape (N ≥ 1, ...)."
        )
    return np.sqrt(((a - b) ** 2).reshape(len(a), -1).mean(1))


def mean_value(reference: Numbers, values: Numbers) -> float:
    """The mean of values less that of a reference, as a statistic for `bootstrap`.

    Equation: mean(values) − mean(reference).

    Args:
        reference: any shape; 0.0 for the mean itself.
        values: any shape, such as the (N,) of `paired_differences`.

    Returns:
        The difference of the means.

    >>> mean_value(0.0, [1.0, 2.0])
    1.5

    Source: definition.
    """
    return float(
        np.mean(np.asarray(values, np.float64)) - np.mean(np.asarray(reference, np.float64))
    )


Statistic = Callable[..., float]  # statistic(reference, samples), symmetric in the samples


def bootstrap(
    statistic: Statistic,
    reference: Numbers,
    samples: Numbers,
    *,
    resamples: int = 200,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """A half-sample bootstrap interval of a statistic of generated samples.

    Equation: T ± z √var, var by (1); z the normal quantile of (1 + level)/2.

    It covers the expected value of the statistic over sets of N samples of the same generator against this same reference,
    which is taken as given: another reference would move all cells together. So the bias that a Fréchet distance has at this
    N is in the value and is not taken out. Its rate is a limit for large N: a skewed statistic of few samples is covered less
    often (95 % of the kernel distance of 100 heavy-tailed points was 87 %), and where no sample differs (precision 1, say) it
    has no width.

    Args:
        statistic: one of this module, `functools.partial(precision, k=5)`, or any f(reference, samples) that does not depend
            on the order of the samples and whose variance falls as 1/N; one not of this module is called 2 · resamples + 1 times.
        reference: (M, D), what the statistic takes first; fixed.
        samples: (N, ...), N ≥ 4 independent samples; twice what the statistic needs.
        resamples: splits into halves, ≥ 2.
        level: share of intervals that cover, 0 < level < 1.
        seed: of the splits.

    Returns:
        (value, low, high), value the statistic of all samples; the ends are not clipped to the statistic's range.

    Raises:
        ValueError: an argument out of range; what the statistic refuses.

    >>> [round(number, 1) for number in bootstrap(mean_value, 0.0, np.arange(100.0))]
    [49.5, 43.6, 55.4]

    Source: Saigo, Shao and Sitter 2001 (repeated half-sample bootstrap); Præstgaard and Wellner 1993 (exchangeable weights).
    """
    return _interval(statistic, reference, [samples], resamples, level, seed)


def bootstrap_difference(
    statistic: Statistic,
    reference: Numbers,
    samples_a: Numbers,
    samples_b: Numbers,
    *,
    resamples: int = 200,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """A half-sample bootstrap interval of the difference of a statistic between two cells, in pairs.

    Equation: T(a) − T(b) ± z √var, var by (2), both cells split into the same halves.

    Sample i of both cells comes from the same noise, so what the noise does to both cancels. The difference of two nearly equal
    coverages is the one that falls short: its √var was 15 % too small in simulation, so 95 % was 90 %.

    Args:
        statistic: as in `bootstrap`.
        reference: (M, D), fixed.
        samples_a: (N, ...), N ≥ 4.
        samples_b: (N, ...), sample i made from the noise of samples_a[i].
        resamples: splits into halves, ≥ 2.
        level: share of intervals that cover, 0 < level < 1.
        seed: of the splits.

    Returns:
        (value, low, high) of T(a) − T(b), covering its expected value at this N with this reference.

    Raises:
        ValueError: sets of unequal length; what `bootstrap` refuses.

    >>> bootstrap_difference(mean_value, 0.0, np.arange(8.0) + 1, np.arange(8.0))
    Interval(value=1.0, low=1.0, high=1.0)

    Source: as `bootstrap`.
    """
    return _interval(statistic, reference, [samples_a, samples_b], resamples, level, seed)


def _interval(
    statistic: Statistic, reference: Numbers, sets: list, resamples: int, level: float, seed: int
) -> Interval:
    sets = [np.asarray(samples, np.float64) for samples in sets]
    lengths = [len(samples) if samples.ndim else 0 for samples in sets]
    if min(lengths) < 4 or len(set(lengths)) > 1:
        raise ValueError(
            f"samples have shapes {[samples.shape for samples in sets]}; give (N, ...) with one N ≥ 4."
        )
    if resamples < 2 or not 0 < level < 1:
        raise ValueError(
            f"resamples is {resamples} and level {level}; give resamples ≥ 2 and 0 < level < 1."
        )
    n = lengths[0]
    first = np.random.default_rng(seed).permuted(
        np.tile(np.arange(n) < n // 2, (resamples, 1)), axis=1
    )
    subsets = np.concatenate([np.ones((1, n), bool), first, ~first])
    values = [_on_subsets(statistic, reference, samples, subsets) for samples in sets]
    value, *halves = values[0] if len(values) == 1 else values[0] - values[1]
    a, b = np.reshape(halves, (2, resamples))
    # Both about the mean, for the larger half of an odd N has another bias.
    parts = [np.var((a - b) / 2, ddof=1), np.var((a + b) / 2, ddof=1)]
    variance = parts[0] if len(sets) == 1 else sum(parts)  # (1), (2)
    reach = NormalDist().inv_cdf((1 + level) / 2) * np.sqrt(variance)
    return Interval(float(value), float(value - reach), float(value + reach))


def _on_subsets(
    statistic: Statistic, reference: Numbers, samples: np.ndarray, subsets: np.ndarray
) -> np.ndarray:
    """The statistic of each subset of the samples: (R, N) of bool → (R,)."""
    whole, options = (
        (statistic.func, statistic.keywords) if isinstance(statistic, partial) else (statistic, {})
    )
    if whole in _ON_SUBSETS:  # what the subsets share is computed once
        return _ON_SUBSETS[whole](*_features(reference, samples), subsets, **options)
    return np.array([statistic(reference, samples[subset]) for subset in subsets])


def _on_all(on_subsets: Callable, a: Numbers, b: Numbers, **options: int) -> float:
    a, b = _features(a, b)
    return float(on_subsets(a, b, np.ones((1, len(b)), bool), **options)[0])


def _features(features_a: Numbers, features_b: Numbers) -> tuple[np.ndarray, np.ndarray]:
    a, b = np.asarray(features_a, np.float64), np.asarray(features_b, np.float64)
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or min(len(a), len(b)) < 2:
        raise ValueError(
            f"features have shapes {a.shape} and {b.shape}; give (N, D) and (M, D) with N, M ≥ 2."
        )
    return a, b


# Below, each function gives a statistic of every subset: (M, D), (N, D), (R, N) of bool → (R,).


def _frechet(a: np.ndarray, b: np.ndarray, subsets: np.ndarray) -> np.ndarray:
    values, vectors = np.linalg.eigh(np.atleast_2d(np.cov(a, rowvar=False)))
    values = np.clip(values, 0, None)
    # In the eigenvectors of Σ_a the root is diagonal.
    a_mean, b = a.mean(0) @ vectors, b @ vectors
    distances = []
    # The threads of OpenBLAS wait for each other: hundreds of small matrices take one thread a tenth of the time.
    with threadpool_limits(1 if len(values) < 512 else None, "blas"):
        for subset in subsets:
            chosen = b[subset]
            mean = chosen.mean(0)
            chosen = chosen - mean
            cov = chosen.T @ chosen / (len(chosen) - 1)
            cross = np.linalg.eigvalsh(np.sqrt(values)[:, None] * cov * np.sqrt(values))
            spread = values.sum() + np.trace(cov) - 2 * np.sqrt(np.clip(cross, 0, None)).sum()
            distances.append(np.sum((a_mean - mean) ** 2) + max(spread, 0))
    return np.array(distances)


def _kernel(a: np.ndarray, b: np.ndarray, subsets: np.ndarray) -> np.ndarray:
    weights, sizes = subsets.T.astype(np.float64), subsets.sum(1)
    across = sum(k.sum(0) for _, k in _cubic(a, b)) @ weights
    within_a = _pairs(a, np.ones((len(a), 1))) / (len(a) * (len(a) - 1))
    return within_a + _pairs(b, weights) / (sizes * (sizes - 1)) - 2 * across / (len(a) * sizes)


def _precision(real: np.ndarray, fake: np.ndarray, subsets: np.ndarray, k: int = 3) -> np.ndarray:
    return subsets @ (_balls_around(real, fake, k) > 0).astype(np.float64) / subsets.sum(1)


def _density(real: np.ndarray, fake: np.ndarray, subsets: np.ndarray, k: int = 5) -> np.ndarray:
    return subsets @ _balls_around(real, fake, k) / (k * subsets.sum(1))


def _balls_around(real: np.ndarray, fake: np.ndarray, k: int) -> np.ndarray:
    """How many balls of real points hold each fake one: (N,)."""
    radii = _nearest(real, k, k)[0][:, -1:]
    return sum((squares <= radii[rows]).sum(0) for rows, squares in _squared_distances(real, fake))


def _coverage(real: np.ndarray, fake: np.ndarray, subsets: np.ndarray, k: int = 5) -> np.ndarray:
    # A ball of 2k points and half of the fakes: as many fakes a ball as before. With balls of k, (1) would be another law.
    scales = np.round(subsets.shape[1] / subsets.sum(1))
    covered = np.zeros(len(subsets))
    for scale in set(scales):
        radii = _nearest(real, k, min(k * int(scale), len(real) - 1))[0][:, -1:]
        chosen = subsets[scales == scale].T.astype(np.float32)
        covered[scales == scale] = sum(
            ((squares <= radii[rows]).astype(np.float32) @ chosen > 0).sum(0)
            for rows, squares in _squared_distances(real, fake)
        )
    return covered / len(real)


def _recall(real: np.ndarray, fake: np.ndarray, subsets: np.ndarray, k: int = 3) -> np.ndarray:
    if k >= subsets.sum(1).min():
        raise ValueError(
            f"k is {k} for {subsets.sum(1).min()} points (half of the set in a bootstrap); give 1 ≤ k < that."
        )
    # The k-th neighbour within a half is among so many of all but for a chance below 1e-10.
    near, index = _nearest(fake, k, k if subsets.all() else min(4 * k + 40, len(fake) - 1))
    radii = np.full(subsets.shape, -1.0)  # of no ball
    for row, subset in zip(radii, subsets, strict=True):
        counts = np.cumsum(subset[index[subset]], axis=1, dtype=np.int32)
        row[subset] = near[subset, np.argmax(counts == k, axis=1)]
    covered = np.zeros((len(subsets), len(real)), bool)
    for rows, squares in _squared_distances(real, fake):
        i, j = np.nonzero(
            squares <= radii.max(0)
        )  # few pairs are within reach of any subset's balls
        squares = squares[i, j]
        for found, row in zip(covered[:, rows], radii, strict=True):
            found[i[squares <= row[j]]] = True
    return covered.mean(1)


def _pairs(x: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Σ_{i≠j} w_i w_j k(x_i, x_j) for every column w: (N, D), (N, R) → (R,)."""
    total = sum(((k @ weights) * weights[rows]).sum(0) for rows, k in _cubic(x, x))
    return total - ((x**2).mean(1) + 1) ** 3 @ weights


def _cubic(a: np.ndarray, b: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
    """Blocks of rows of the kernel (a·b/D + 1)³: 10,000 × 10,000 need not be in memory at once."""
    for rows in _blocks(len(a), len(b)):
        k = a[rows] @ b.T / a.shape[1] + 1
        yield rows, k * k * k


def _squared_distances(a: np.ndarray, b: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
    """Blocks of rows of ‖a_i − b_j‖²."""
    center = a.mean(0)  # features far from 0 would cancel
    a, b = a - center, b - center
    squares_a, squares_b = (a**2).sum(1), (b**2).sum(1)
    for rows in _blocks(len(a), len(b)):
        scale = squares_a[rows, None] + squares_b
        squares = scale - 2 * a[rows] @ b.T
        yield (
            rows,
            np.where(squares < 1e-12 * scale, 0, squares),
        )  # equal points are at 0, not at a rounding error


def _blocks(rows: int, columns: int) -> Iterator[slice]:
    step = max(1, 2**20 // columns)  # 8 MiB of float64
    return (slice(start, min(start + step, rows)) for start in range(0, rows, step))


def _nearest(points: np.ndarray, k: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The squared distances of each point's nearest others, ascending, and which they are: (N, count) both."""
    if not 1 <= k < len(points):
        raise ValueError(f"k is {k} for {len(points)} points; give 1 ≤ k < that.")
    near, index = np.empty((len(points), count)), np.empty((len(points), count), int)
    for rows, squares in _squared_distances(points, points):
        squares[np.arange(len(squares)), np.arange(rows.start, rows.stop)] = (
            np.inf
        )  # not the point itself
        some = np.argpartition(squares, count - 1, axis=1)[:, :count]
        some = np.take_along_axis(some, np.argsort(np.take_along_axis(squares, some, 1), axis=1), 1)
        near[rows], index[rows] = np.take_along_axis(squares, some, 1), some
    return near * (1 + 1e-9), index  # a point on the sphere is inside, rounded either way


_ON_SUBSETS: dict[Callable, Callable[..., np.ndarray]] = {
    frechet_distance: _frechet,
    kernel_distance: _kernel,
    precision: _precision,
    recall: _recall,
    density: _density,
    coverage: _coverage,
}
