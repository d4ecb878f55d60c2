"""Confidence intervals: in closed form for a mean, by half-sample bootstrap for any statistic T.

A resample splits the N samples at random into halves h and h̄. Given the reference, these are
independent sets of N/2. So, over splits and samples, for any T and any bias,

    E var (T(h) − T(h̄))/2 = var T_{N/2} / 2,                                       (1)

which is var T_N where the variance falls as 1/N. No sample is drawn twice: a duplicate would be
its own nearest neighbour. The Fréchet and the kernel distance have var T_N = L/N + Q/N², where (1)
gives L/N + 2Q/N²: as L vanishes the interval is too wide, by at most √2, and never too narrow.
For the difference of two sets drawn from the same noise, (1) is too small for recall and coverage:
moving a sample by less than the distance to its neighbours changes little, and in a half the
neighbours are farther away. There the variance is that of the delete-half jackknife,

    var T(h) = var (T(h) − T(h̄))/2 + var (T(h) + T(h̄))/2,                          (2)

equal to (1) for a mean. The interval is centred on T, which is unbiased for its own expected value
at this N. A percentile interval would miss it, since resampling adds the bias of T a second time.
"""

import inspect
from collections.abc import Callable
from statistics import NormalDist
from typing import NamedTuple

import numpy as np

from .distances import Numbers


class Interval(NamedTuple):
    """A statistic and the ends of its interval, which are not clipped to the statistic's range."""

    value: float
    low: float
    high: float


def mean_interval(values: Numbers, level: float = 0.95) -> Interval:
    """The normal interval of a mean: mean ± z·std/√n, std with divisor n − 1.

    >>> [round(number, 3) for number in mean_interval([1.0, 2.0, 3.0, 6.0])]
    [3.0, 0.883, 5.117]
    """
    values = np.asarray(values, np.float64)
    if values.ndim != 1 or len(values) < 2:
        raise ValueError(f"values have the shape {values.shape}; give (n,) with n ≥ 2.")
    return _normal(values.mean(), values.std(ddof=1) / np.sqrt(len(values)), level)


def bootstrap(
    statistic: Callable,
    reference: Numbers,
    samples: Numbers,
    *,
    resamples: int = 200,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """A half-sample bootstrap interval of a statistic of N ≥ 4 samples: T ± z √var with (1).

    It covers the expected value of T over sets of N samples of one generator, against this very
    reference. So the value keeps the bias that a Fréchet distance has at this N.
    `statistic` is one of this package, a `functools.partial` of one, or any f(reference, samples)
    that ignores the order of the samples and whose variance falls as 1/N. The level holds for
    large N: 95 % was 87 % for the kernel distance of 100 heavy-tailed points. If all resamples
    agree (for example, precision 1), the interval has zero width.

    >>> [round(number, 1) for number in bootstrap(lambda _, x: x.mean(), 0.0, np.arange(100.0))]
    [49.5, 43.6, 55.4]

    Source: Saigo, Shao and Sitter 2001 (half-samples); Præstgaard and Wellner 1993 (weights).
    """
    return _bootstrap(statistic, reference, [samples], resamples, level, seed)


def bootstrap_difference(
    statistic: Callable,
    reference: Numbers,
    samples_a: Numbers,
    samples_b: Numbers,
    *,
    resamples: int = 200,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """A half-sample bootstrap interval of T(a) − T(b), by (2); sample i of both has the same noise.

    Both are split into the same halves, so what the noise does to both cancels. For two nearly
    equal coverages, √var was 15 % too small in simulation: 95 % intervals covered 90 %.
    """
    return _bootstrap(statistic, reference, [samples_a, samples_b], resamples, level, seed)


def _bootstrap(
    statistic: Callable, reference: Numbers, cells: list, resamples: int, level: float, seed: int
) -> Interval:
    cells = [np.atleast_1d(np.asarray(samples, np.float64)) for samples in cells]
    n = len(cells[0])
    if n < 4 or {len(samples) for samples in cells} != {n} or resamples < 2:
        raise ValueError(
            f"samples have shapes {[samples.shape for samples in cells]} and resamples is "
            f"{resamples}; give (N, ...) with one N ≥ 4 and resamples ≥ 2."
        )
    half = np.tile(np.arange(n) < n // 2, (resamples, 1))
    half = np.random.default_rng(seed).permuted(half, axis=1)
    subsets = np.concatenate([np.ones((1, n), bool), half, ~half])
    values = [_of_subsets(statistic, reference, samples, subsets) for samples in cells]
    value, *of_halves = values[0] if len(cells) == 1 else values[0] - values[1]
    a, b = np.reshape(of_halves, (2, resamples))
    # Both are centred, since the larger half of an odd N has another bias.
    parts = [np.var((a - b) / 2, ddof=1), np.var((a + b) / 2, ddof=1)]
    return _normal(value, np.sqrt(sum(parts[: len(cells)])), level)


def _of_subsets(
    statistic: Callable, reference: Numbers, samples: np.ndarray, subsets: np.ndarray
) -> np.ndarray:
    if "subsets" in inspect.signature(statistic).parameters:
        return statistic(reference, samples, subsets=subsets)
    return np.array([statistic(reference, samples[subset]) for subset in subsets])


def _normal(value: float, error: float, level: float) -> Interval:
    if not 0 < level < 1:
        raise ValueError(f"level is {level}; give 0 < level < 1.")
    reach = NormalDist().inv_cdf((1 + level) / 2) * error
    return Interval(float(value), float(value - reach), float(value + reach))
