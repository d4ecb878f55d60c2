from functools import partial

import numpy as np
import pytest
import scipy.linalg
import scipy.stats

from ddim_jax.metrics import (
    bootstrap,
    bootstrap_difference,
    coverage,
    density,
    frechet_distance,
    kernel_distance,
    mean_value,
    paired_differences,
    precision,
    recall,
)

STATISTICS = [frechet_distance, kernel_distance, precision, recall, density, coverage]


def test_frechet_against_a_general_matrix_square_root():
    rng = np.random.default_rng(0)
    a, b = (
        rng.normal(size=(300, 6)) @ rng.normal(size=(6, 6)),
        rng.normal(size=(200, 6)) @ rng.normal(size=(6, 6)) + 1,
    )
    cov_a, cov_b = np.cov(a.T), np.cov(b.T)
    root = scipy.linalg.sqrtm(cov_a @ cov_b).real
    expected = np.sum((a.mean(0) - b.mean(0)) ** 2) + np.trace(cov_a + cov_b - 2 * root)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-9)
    assert frechet_distance(b, a) == pytest.approx(expected, rel=1e-9)


def test_frechet_of_diagonal_gaussians_with_a_constant_pixel():
    rng = np.random.default_rng(1)
    a = rng.normal(size=(500, 3)) * [1, 2, 0]
    b = a * [3, 1, 1] + [0, 0, 5]
    deviations = a.std(0, ddof=1)
    assert frechet_distance(a, b) == pytest.approx(
        np.sum((a.mean(0) - b.mean(0)) ** 2) + np.sum((deviations * [2, 0, 0]) ** 2), rel=1e-6
    )
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-6)


def test_float32_features_are_computed_in_float64():
    a = np.random.default_rng(2).normal(size=(100, 4)).astype(np.float32) + 1000
    assert frechet_distance(a, a + np.float32(0.5)) == pytest.approx(1.0, rel=1e-3)


def test_frechet_of_shifted_and_scaled_gaussians():
    # Population: D (μ² + (σ − 1)²).
    rng = np.random.default_rng(3)
    a, b = rng.normal(size=(40_000, 3)), 0.5 + 2 * rng.normal(size=(40_000, 3))
    assert frechet_distance(a, b) == pytest.approx(3 * (0.25 + 1), rel=0.02)


def test_kernel_against_a_double_loop():
    rng = np.random.default_rng(4)
    a, b = rng.normal(size=(13, 5)) + 1, rng.normal(size=(9, 5)) * 2

    def mean(x, y, same):
        return np.mean(
            [
                (sum(p * q) / 5 + 1) ** 3
                for i, p in enumerate(x)
                for j, q in enumerate(y)
                if not (same and i == j)
            ]
        )

    expected = mean(a, a, True) + mean(b, b, True) - 2 * mean(a, b, False)
    assert kernel_distance(a, b) == pytest.approx(expected, rel=1e-12)


def test_kernel_is_unbiased_for_gaussians_in_closed_form():
    # k(x, y) = Σ_p C(3, p) (xy)^p in one dimension, so the population value is Σ_p C(3, p) (E x^p − E y^p)².
    shift, scale = 0.5, 1.5
    moments = np.array([[0, 1, 0], [shift, shift**2 + scale**2, shift**3 + 3 * shift * scale**2]])
    expected = np.dot([3, 3, 1], (moments[0] - moments[1]) ** 2)
    rng = np.random.default_rng(5)
    draws = [
        kernel_distance(rng.normal(size=(10, 1)), shift + scale * rng.normal(size=(15, 1)))
        for _ in range(2500)
    ]
    error = np.std(draws) / np.sqrt(len(draws))
    assert abs(np.mean(draws) - expected) < 3 * error < 0.25 * expected
    null = [kernel_distance(rng.normal(size=(5, 2)), rng.normal(size=(5, 2))) for _ in range(1500)]
    assert abs(np.mean(null)) < 3 * np.std(null) / np.sqrt(len(null)) < 0.7
    assert min(null) < 0


def balls(points, k):
    """Radius of each point's ball, by loops."""
    return [
        sorted(np.linalg.norm(p - q) for j, q in enumerate(points) if j != i)[k - 1]
        for i, p in enumerate(points)
    ]


def inside(points, k, others):
    """[i, j]: others[j] is in the ball of points[i]."""
    return np.array(
        [
            [np.linalg.norm(q - p) <= r for q in others]
            for p, r in zip(points, balls(points, k), strict=True)
        ]
    )


@pytest.mark.parametrize("k", [1, 2, 4])
@pytest.mark.parametrize("offset", [0, 1e7])
def test_neighbours_against_loops(k, offset):
    rng = np.random.default_rng(6)
    real, fake = rng.normal(size=(40, 2)) + offset, rng.normal(size=(30, 2)) * 1.2 + 0.5 + offset
    of_real, of_fake = inside(real, k, fake), inside(fake, k, real)
    assert precision(real, fake, k) == pytest.approx(of_real.any(0).mean())
    assert recall(real, fake, k) == pytest.approx(of_fake.any(0).mean())
    assert density(real, fake, k) == pytest.approx(of_real.sum() / k / 30)
    assert coverage(real, fake, k) == pytest.approx(of_real.any(1).mean())


def test_neighbours_in_blocks_of_rows():
    rng = np.random.default_rng(7)
    real, fake = (
        rng.normal(size=(1500, 2)),
        rng.normal(size=(1400, 2)) * 1.5,
    )  # 2²⁰ entries are fewer than 1500 × 1400
    for points, others, statistic in ((real, fake, precision), (fake, real, recall)):
        squares = ((points[:, None] - points) ** 2).sum(-1)
        radii = np.sort(squares, axis=1)[:, 3]
        expected = (((points[:, None] - others) ** 2).sum(-1) <= radii[:, None]).any(0).mean()
        assert statistic(real, fake) == pytest.approx(expected)


def test_neighbours_of_equal_sets_of_distant_sets_and_of_collapse():
    real = np.random.default_rng(8).normal(size=(60, 3))
    # Each ball holds its centre and k others, the one on the sphere included.
    assert (
        precision(real, real),
        recall(real, real),
        density(real, real),
        coverage(real, real),
    ) == (1, 1, 6 / 5, 1)
    assert [statistic(real, real + 100) for statistic in STATISTICS[2:]] == [0, 0, 0, 0]
    for i in range(60):
        collapsed = np.tile(
            real[i], (60, 1)
        )  # every fake is one real point, whose ball has no radius
        assert (precision(real, collapsed), recall(real, collapsed)) == (1, 1 / 60)
    assert coverage(real, collapsed) == np.mean(inside(real, 5, real[-1:]))
    assert density(real, collapsed) == pytest.approx(
        12 * coverage(real, collapsed)
    )  # 60 of 60 in each ball that holds one


def test_paired_differences_of_images():
    a = np.random.default_rng(9).normal(size=(4, 8, 8, 3))
    b = a + np.array([0, 1, -2, 3])[:, None, None, None]
    np.testing.assert_allclose(paired_differences(a, b), [0, 1, 2, 3], atol=1e-12)
    b = a.copy()
    b[0, 0, 0, 0] += 1
    np.testing.assert_allclose(paired_differences(a, b), [1 / np.sqrt(192), 0, 0, 0], atol=1e-12)


SIMULATIONS, LEVEL, N = 100, 0.8, 120
REAL = np.random.default_rng(10).normal(size=(250, 3))


def draw(rng, scale=1.25):
    return 0.4 + scale * rng.normal(size=(N, 3))


def lengths(_, samples):
    """A statistic of the user's: median length."""
    return float(np.median(np.linalg.norm(samples, axis=1)))


def assert_nominal(intervals, values):
    """The intervals cover the mean of other draws of the value at the nominal rate, and are as wide as its deviation asks."""
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
    values = [statistic(REAL, draw(rng)) for _ in range(400)]
    intervals = [
        bootstrap(statistic, REAL, draw(rng), resamples=40, level=LEVEL, seed=i)
        for i in range(SIMULATIONS)
    ]
    assert_nominal(intervals, values)


def test_the_bias_of_the_distance_is_not_added_twice():
    rng = np.random.default_rng(16)
    real = rng.normal(size=(250, 12))
    draws = [1.5 * rng.normal(size=(60, 12)) for _ in range(400)]
    values = [frechet_distance(real, samples) for samples in draws]
    assert np.mean(values) > 1.1 * frechet_distance(
        real, np.concatenate(draws)
    )  # what it would be without the bias at N = 60
    intervals = [
        bootstrap(frechet_distance, real, samples, resamples=40, level=LEVEL)
        for samples in draws[:SIMULATIONS]
    ]
    assert_nominal(intervals, values)


@pytest.mark.parametrize("statistic", [frechet_distance, kernel_distance, recall])
def test_paired_intervals_are_narrower_and_cover(statistic):
    rng = np.random.default_rng(12)

    def cells():
        a = draw(rng)
        return a, 1.1 * a + 0.02 * rng.normal(size=a.shape)

    values = [statistic(REAL, a) - statistic(REAL, b) for a, b in (cells() for _ in range(400))]
    options, intervals, ratios = {"resamples": 40, "level": LEVEL}, [], []
    for seed in range(SIMULATIONS):
        a, b = cells()
        value, low, high = bootstrap_difference(statistic, REAL, a, b, seed=seed, **options)
        intervals.append((value, low, high))
        if seed < 10:
            assert value == pytest.approx(statistic(REAL, a) - statistic(REAL, b))
            each = [bootstrap(statistic, REAL, x, seed=seed, **options) for x in (a, b)]
            ratios.append((high - low) / np.hypot(*(one.high - one.low for one in each)))
    assert_nominal(intervals, values)
    assert np.mean(ratios) < 0.75


@pytest.mark.parametrize("statistic", [*STATISTICS, partial(recall, k=2), partial(coverage, k=2)])
def test_an_interval_holds_the_statistic_and_repeats_on_a_seed(statistic):
    samples = draw(np.random.default_rng(13))[:41]
    interval = bootstrap(statistic, REAL, samples)
    assert interval.value == pytest.approx(statistic(REAL, samples), rel=1e-12)
    assert interval.low < interval.value < interval.high
    assert (
        interval
        == bootstrap(statistic, REAL, samples, seed=0)
        != bootstrap(statistic, REAL, samples, seed=1)
    )
    assert bootstrap(statistic, REAL, samples, level=0.5).high < interval.high


@pytest.mark.parametrize(
    "statistic", [frechet_distance, kernel_distance, precision, recall, density]
)
def test_what_subsets_share_changes_nothing(statistic):
    samples = draw(np.random.default_rng(14))[:60]
    plain = bootstrap(lambda *sets: statistic(*sets), REAL, samples, resamples=20)
    np.testing.assert_allclose(bootstrap(statistic, REAL, samples, resamples=20), plain, rtol=1e-9)


def test_the_interval_of_a_mean_is_the_one_of_its_standard_error():
    values = np.random.default_rng(15).exponential(size=400)
    _, low, high = bootstrap(mean_value, 0.0, values, resamples=4000)
    assert high - low == pytest.approx(2 * 1.96 * values.std(ddof=1) / 20, rel=0.05)


@pytest.mark.parametrize(("a", "b"), [((1, 3), (5, 3)), ((5, 3), (5, 2)), ((5,), (5,))])
@pytest.mark.parametrize("statistic", STATISTICS)
def test_refusals(statistic, a, b):
    with pytest.raises(ValueError, match="features have shapes"):
        statistic(np.zeros(a), np.zeros(b))


@pytest.mark.parametrize("k", [0, 8])
@pytest.mark.parametrize("statistic", STATISTICS[2:])
def test_refusals_of_neighbours(statistic, k):
    with pytest.raises(ValueError, match=f"k is {k} for 8 points"):
        statistic(np.zeros((8, 2)), np.zeros((8, 2)), k)


def test_refusals_of_images_and_intervals():
    x = np.zeros((8, 2))
    for a, b in ((x, x[:7]), (x[:0], x[:0]), (0.0, 0.0)):
        with pytest.raises(ValueError, match="images have shapes"):
            paired_differences(a, b)
    for sets in ((x, x[:7]), (x[:3], x[:3]), (0.0, 0.0)):
        with pytest.raises(ValueError, match="samples have shapes"):
            bootstrap_difference(mean_value, 0.0, *sets)
    for options in ({"resamples": 1}, {"level": 1.0}, {"level": 0.0}):
        with pytest.raises(ValueError, match="resamples is"):
            bootstrap(mean_value, 0.0, x, **options)
    with pytest.raises(ValueError, match=r"k is 4 for 4 points \(half"):
        bootstrap(partial(recall, k=4), x, x)
