from functools import partial

import numpy as np
import pytest
import scipy.stats

from ddim_jax import metrics
from ddim_jax.metrics import (
    Points,
    Spread,
    bootstrap,
    bootstrap_difference,
    coverage,
    density,
    difference,
    frechet_distance,
    half_samples,
    interval,
    jackknife,
    kernel_distance,
    mean_interval,
    precision,
    recall,
)

STATISTICS = [frechet_distance, kernel_distance, precision, recall, density, coverage]
JACKKNIFED = [frechet_distance, kernel_distance, precision, density]
DRAWS, SIMULATIONS, LEVEL, N = 250, 80, 0.8, 80
REAL = np.random.default_rng(10).normal(size=(150, 3))


def mean_value(reference, values):
    """A statistic of one's own: the mean of the values less that of the reference."""
    return float(np.mean(values) - np.mean(reference))


def draw(rng, scale=1.25):
    return 0.4 + scale * rng.normal(size=(N, 3))


def lengths(_, samples):
    """A statistic of the user's: median length."""
    return float(np.median(np.linalg.norm(samples, axis=1)))


def alone(statistic, real, draws):
    return np.array([statistic(real, samples) for samples in draws])


def spread(statistic, samples, seed=0):
    if statistic in JACKKNIFED:
        return jackknife(statistic, REAL, samples)
    return half_samples(statistic, REAL, samples, resamples=40, seed=seed)


def assert_nominal(intervals, values):
    """They cover the mean of other values at their level, and are as wide as these spread."""
    covered = sum(low <= np.mean(values) <= high for _, low, high in intervals)
    least, most = scipy.stats.binom.interval(0.998, len(intervals), LEVEL)
    assert least <= covered <= most
    errors = np.array([high - low for _, low, high in intervals]) / (
        2 * scipy.stats.norm.ppf((1 + LEVEL) / 2)
    )
    assert 0.87 < np.sqrt(np.mean(errors**2)) / np.std(values) < 1.2


@pytest.mark.parametrize("statistic", [*STATISTICS, mean_value, lengths])
def test_intervals_cover_the_expected_value_at_their_rate(statistic):
    rng = np.random.default_rng(11)
    values = alone(statistic, REAL, [draw(rng) for _ in range(DRAWS)])
    intervals = [interval(spread(statistic, draw(rng), i), LEVEL) for i in range(SIMULATIONS)]
    assert_nominal(intervals, values)


def test_the_bias_of_the_distance_is_not_added_twice():
    rng = np.random.default_rng(16)
    real = rng.normal(size=(250, 12))
    draws = [1.5 * rng.normal(size=(60, 12)) for _ in range(DRAWS)]
    values = alone(frechet_distance, real, draws)
    # What it would be without the bias at N = 60.
    assert np.mean(values) > 1.1 * frechet_distance(real, np.concatenate(draws))
    intervals = [
        interval(jackknife(frechet_distance, real, samples), LEVEL)
        for samples in draws[:SIMULATIONS]
    ]
    assert_nominal(intervals, values)


@pytest.mark.parametrize("n", [24, 64, 320])
def test_intervals_of_the_frechet_distance_cover_in_64_dimensions(n):
    """With fewer samples than dimensions, as many, and more; spectra as images have them."""
    rng = np.random.default_rng(17)
    scales = 1 / np.arange(1, 65)
    real = Points(rng.normal(size=(1000, 64)) * scales)
    draws = [0.3 * scales + 1.3 * rng.normal(size=(n, 64)) * scales for _ in range(DRAWS)]
    values = alone(frechet_distance, real, draws)
    spreads = [jackknife(frechet_distance, real, samples) for samples in draws[:SIMULATIONS]]
    assert_nominal([interval(one, LEVEL) for one in spreads], values)


@pytest.mark.parametrize("statistic", [frechet_distance, kernel_distance, recall])
def test_paired_intervals_are_narrower_and_cover(statistic):
    rng = np.random.default_rng(12)

    def cells():
        a = draw(rng)
        return a, 1.1 * a + 0.02 * rng.normal(size=a.shape)

    pairs = [cells() for _ in range(DRAWS)]
    a, b = (alone(statistic, REAL, draws) for draws in zip(*pairs, strict=True))
    values = a - b
    intervals, ratios = [], []
    for seed in range(SIMULATIONS):
        a, b = cells()
        spreads = spread(statistic, a, seed), spread(statistic, b, seed)
        intervals.append(difference(*spreads, LEVEL))
        value, low, high = intervals[-1]
        if seed < 10:
            assert value == pytest.approx(statistic(REAL, a) - statistic(REAL, b))
            each = [interval(one, LEVEL) for one in spreads]
            ratios.append((high - low) / np.hypot(*(one.high - one.low for one in each)))
    assert_nominal(intervals, values)
    assert np.mean(ratios) < 0.75


def test_only_a_difference_counts_what_both_halves_share():
    """The halves' means are equally far from the mean of all, so (1) is 0 and (2) is not."""
    samples = np.random.default_rng(18).normal(size=40)

    def square(_, x):
        return (x.mean() - samples.mean()) ** 2

    _, low, high = bootstrap(square, 0.0, samples)
    assert high - low < 1e-12
    still = np.full(40, samples.mean())
    _, low, high = bootstrap_difference(square, 0.0, samples, still, resamples=4000)
    # About the square of a normal number of variance v, whose variance is 2 v².
    error = np.sqrt(2) * samples.var(ddof=1) / 40
    assert high - low == pytest.approx(2 * 1.96 * error, rel=0.1)


@pytest.mark.parametrize("statistic", [*STATISTICS, partial(recall, k=2), partial(coverage, k=2)])
def test_an_interval_holds_the_statistic_and_repeats_on_a_seed(statistic):
    samples = draw(np.random.default_rng(13))[:41]
    run = partial(bootstrap, statistic, REAL, samples, resamples=50)
    value, low, high = run()
    assert value == pytest.approx(statistic(REAL, samples), rel=1e-12)
    assert low < value < high
    assert run() == run(seed=0) != run(seed=1)
    assert run(level=0.5).high < high


@pytest.mark.parametrize("statistic", [recall, partial(recall, k=2)])
def test_what_subsets_share_changes_nothing(statistic):
    samples = draw(np.random.default_rng(14))[:60]
    plain = bootstrap(lambda *sets: statistic(*sets), REAL, samples, resamples=20)
    np.testing.assert_allclose(bootstrap(statistic, REAL, samples, resamples=20), plain, rtol=1e-9)


def test_the_interval_of_a_mean_by_hand():
    # Mean 3, squared deviations 4 + 1 + 0 + 9 = 14, so an error of √(14/3/4).
    error = np.sqrt(14 / 12)
    values = [1.0, 2.0, 3.0, 6.0]
    assert mean_interval(values) == pytest.approx((3, 3 - 1.959964 * error, 3 + 1.959964 * error))
    assert mean_interval(values, 0.6826894921) == pytest.approx((3, 3 - error, 3 + error))


def test_the_interval_of_a_mean_is_the_limit_of_its_bootstrap():
    """The error of the bootstrap's width is 1/√(2 · resamples), of which four are allowed."""
    values = np.random.default_rng(15).exponential(size=400)

    def mean(_, x, subsets):  # a user's statistic may take subsets, too
        return subsets @ x / subsets.sum(1)

    resamples = 20_000
    ours, theirs = (
        mean_interval(values, 0.9),
        bootstrap(mean, 0.0, values, resamples=resamples, level=0.9),
    )
    assert ours.value == pytest.approx(theirs.value, rel=1e-12)
    width = theirs.high - theirs.low
    assert ours.high - ours.low == pytest.approx(width, rel=4 / np.sqrt(2 * resamples))
    one_by_one = bootstrap(mean_value, 0.0, values[:40])
    np.testing.assert_allclose(one_by_one, bootstrap(mean, 0.0, values[:40]), rtol=1e-12)


def test_refusals():
    x = np.zeros((8, 2))
    with pytest.raises(ValueError, match="samples have shapes"):
        bootstrap_difference(mean_value, 0.0, x, x[:7])
    for few in (x[:3], 0.0):
        with pytest.raises(ValueError, match="samples have the shape"):
            bootstrap(mean_value, 0.0, few)
        with pytest.raises(ValueError, match="samples have the shape"):
            jackknife(kernel_distance, x, few)
    with pytest.raises(ValueError, match="must come from one method"):
        difference(*(jackknife(precision, x, x[:n]) for n in (7, 8)))
    with pytest.raises(ValueError, match="resamples is 1"):
        bootstrap(mean_value, 0.0, x, resamples=1)
    for level in (0.0, 1.0):
        with pytest.raises(ValueError, match=f"level is {level}"):
            bootstrap(mean_value, 0.0, x, level=level)
        with pytest.raises(ValueError, match=f"level is {level}"):
            mean_interval(x[0], level)
    for values in (x, x[0, :1], 0.0):
        with pytest.raises(ValueError, match="values have the shape"):
            mean_interval(values)
    with pytest.raises(ValueError, match=r"k is 4 for 4 points \(half"):
        bootstrap(partial(recall, k=4), x, x)


def test_the_interval_of_a_share_ends_at_0_and_1():
    for value, name, expected in (
        (0.99, "recall", (0.9704, 0.99, 1.0)),
        (0.01, "coverage", (0.0, 0.01, 0.0296)),
        (1.5, "density", (1.4804, 1.5, 1.5196)),
        (0.01, "frechet", (-0.0096, 0.01, 0.0296)),
    ):
        ends = metrics.STATISTICS[name].interval(Spread(value, np.array([0.01]), np.zeros(0)))
        assert (ends.low, ends.value, ends.high) == pytest.approx(expected, abs=1e-4)
