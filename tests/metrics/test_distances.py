import itertools
import math

import jax
import numpy as np
import pytest
import scipy.linalg

from ddim_jax.metrics import (
    Points,
    coverage,
    density,
    frechet_distance,
    frechet_of_statistics,
    kernel_distance,
    paired_differences,
    precision,
    recall,
)

STATISTICS = [frechet_distance, kernel_distance, precision, recall, density, coverage]


def test_frechet_against_a_general_matrix_square_root():
    rng = np.random.default_rng(0)
    a, b = (rng.normal(size=(n, 6)) @ rng.normal(size=(6, 6)) + n for n in (300, 200))
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
        pairs = itertools.product(enumerate(x), enumerate(y))
        return np.mean(
            [(sum(p * q) / 5 + 1) ** 3 for (i, p), (j, q) in pairs if not same or i != j]
        )

    expected = mean(a, a, True) + mean(b, b, True) - 2 * mean(a, b, False)
    assert kernel_distance(a, b) == pytest.approx(expected, rel=1e-12)


def test_kernel_is_unbiased():
    """Over all sets of 2 and of 3 points that two laws of three atoms can give, of equal chance."""
    atoms_a, atoms_b = np.array([-1.0, 0.5, 2.0]), np.array([-0.5, 0.0, 2.5])
    sets = itertools.product(
        itertools.product(atoms_a, repeat=2), itertools.product(atoms_b, repeat=3)
    )
    values = [kernel_distance(np.c_[list(a)], np.c_[list(b)]) for a, b in sets]
    # k(x, y) = Σ_p C(3, p) (xy)^p in one dimension, so MMD² = Σ_p C(3, p) (E x^p − E y^p)².
    expected = sum(math.comb(3, p) * np.mean(atoms_a**p - atoms_b**p) ** 2 for p in (1, 2, 3))
    assert np.mean(values) == pytest.approx(expected, rel=1e-12)
    assert min(values) < 0 < expected


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


def test_blocks_of_rows():
    rng = np.random.default_rng(7)
    # 1100 × 1050 are more than the 2²⁰ numbers of a block.
    real, fake = rng.normal(size=(1100, 2)), rng.normal(size=(1050, 2)) * 1.5

    def squares(a, b):
        return ((a[:, None] - b) ** 2).sum(-1)

    def inside(points, others, k):
        return squares(points, others) <= np.sort(squares(points, points))[:, k : k + 1]

    assert precision(real, fake) == pytest.approx(inside(real, fake, 3).any(0).mean())
    assert recall(real, fake) == pytest.approx(inside(fake, real, 3).any(0).mean())
    assert density(real, fake) == pytest.approx(inside(real, fake, 5).sum() / 5 / len(fake))
    assert coverage(real, fake) == pytest.approx(inside(real, fake, 5).any(1).mean())
    within_real, within_fake = ((a @ a.T / 2 + 1) ** 3 for a in (real, fake))
    expected = -2 * ((real @ fake.T / 2 + 1) ** 3).mean()
    for k in (within_real, within_fake):
        expected += (k.sum() - np.trace(k)) / len(k) / (len(k) - 1)
    assert kernel_distance(real, fake) == pytest.approx(expected)


def test_neighbours_of_equal_sets_of_distant_sets_and_of_collapse():
    real = np.random.default_rng(8).normal(size=(60, 3))
    # Each ball holds its centre and k others, the one on the sphere included.
    equal = [statistic(real, real) for statistic in STATISTICS[2:]]
    assert equal == [1, 1, 6 / 5, 1]
    assert [statistic(real, real + 100) for statistic in STATISTICS[2:]] == [0, 0, 0, 0]
    for i in range(60):
        collapsed = np.tile(real[i], (60, 1))  # fakes that equal one real point: balls of no radius
        assert (precision(real, collapsed), recall(real, collapsed)) == (1, 1 / 60)
    assert coverage(real, collapsed) == np.mean(inside(real, 5, real[-1:]))
    # 60 of 60 fakes are in each ball that holds one.
    assert density(real, collapsed) == pytest.approx(12 * coverage(real, collapsed))


@pytest.mark.parametrize("scale", [0.1, 0.3, 0.7, 1.1])
def test_a_point_on_the_sphere_is_inside_however_it_is_rounded(scale):
    ends, beyond = np.array([[0.0], [1.0]]) * scale, np.array([[-1.0], [2.0], [7.0]]) * scale
    assert recall(beyond, ends, k=1) == precision(ends, beyond, k=1) == 2 / 3


@pytest.mark.parametrize("scale", [0.6, 1.25, 4.0])
def test_recall_of_subsets_is_what_each_gives_alone(scale):
    """Also where one fake ball, or hundreds of them, hold most of the reals."""
    rng = np.random.default_rng(14)
    real, fake = rng.normal(size=(250, 3)), 0.4 + scale * rng.normal(size=(400, 3))
    fake[7] += 30
    subsets = rng.random((7, 400)) < np.array([0.1] * 2 + [0.5] * 4 + [0.9])[:, None]
    values = recall(real, fake, subsets=subsets)
    np.testing.assert_allclose(values, [recall(real, fake[subset]) for subset in subsets])


@pytest.mark.parametrize("n", [4, 9, 12, 13, 14, 60])
@pytest.mark.parametrize("statistic", [*STATISTICS[:3], density])
def test_what_leaves_one_out_is_what_the_others_give(statistic, n):
    """At fewer samples than dimensions, as many, and more; two features never vary."""
    rng = np.random.default_rng(21)
    real, fake = (
        rng.normal(size=(80, 13)),
        0.3 + 1.2 * rng.normal(size=(n, 13)) @ np.diag(np.logspace(0, -4, 13)),
    )
    real[:, 3], fake[:, 8] = 2, 5
    value, without = statistic(real, fake, leave_one_out=True)
    assert value == pytest.approx(statistic(real, fake), rel=1e-9)
    alone = [statistic(real, np.delete(fake, i, 0)) for i in range(n)]
    np.testing.assert_allclose(without, alone, rtol=2e-6, atol=1e-9)


@pytest.mark.parametrize("n", [5, 12, 200])
def test_statistics_and_shared_points_stand_for_features(n):
    rng = np.random.default_rng(22)
    real, fake = Points(rng.normal(size=(90, 12))), rng.normal(size=(n, 12)) * 1.3 + 0.2
    value = frechet_distance(real.features, fake)
    assert frechet_distance(real.statistics, fake) == pytest.approx(value, rel=1e-12)
    of_statistics = frechet_of_statistics(real.statistics, Points(fake).statistics)
    assert of_statistics == pytest.approx(value, rel=1e-6)
    for samples in (fake, fake[::-1] * 2, fake):
        for statistic in STATISTICS if n > 5 else STATISTICS[:3]:
            expected = pytest.approx(statistic(real.features, samples), rel=1e-12)
            assert statistic(real, samples) == statistic(real, Points(samples)) == expected
    with pytest.raises(ValueError, match="only a mean and a covariance"):
        precision(real.statistics, fake)
    with pytest.raises(ValueError, match="of 12 features and of 11"):
        frechet_of_statistics(real.statistics, Points(fake[:, 1:]).statistics)


def test_products_on_an_accelerator_are_in_float64(monkeypatch):
    rng = np.random.default_rng(23)
    real, fake = rng.normal(size=(30, 5)), rng.normal(size=(20, 5)) + 100
    expected = [statistic(real, fake) for statistic in STATISTICS]
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert [statistic(real, fake) for statistic in STATISTICS] == pytest.approx(expected, rel=1e-11)


def test_distances_that_are_too_many_are_not_kept(monkeypatch):
    rng = np.random.default_rng(24)
    real, fake = rng.normal(size=(30, 5)), rng.normal(size=(20, 5))
    expected = [statistic(real, fake) for statistic in STATISTICS]
    monkeypatch.setattr("ddim_jax.metrics.points._KEPT", 0)
    samples = Points(fake)
    assert [statistic(real, samples) for statistic in STATISTICS] == expected
    assert not samples._squares


def test_samples_that_are_kept_forget_a_reference_that_is_gone():
    """An array is wrapped for one call, and the next one may lie at the same address."""
    rng = np.random.default_rng(25)
    samples = Points(rng.normal(size=(20, 5)))
    for shift in np.linspace(0, 2, 30):
        real = rng.normal(size=(30, 5)) + shift
        for statistic in STATISTICS:
            assert statistic(real, samples) == statistic(real, samples.features)
    assert set(samples._squares) <= {samples}


def test_coverage_of_a_subset_has_as_many_fakes_per_ball():
    rng = np.random.default_rng(17)
    real, fake = rng.normal(size=(50, 3)), rng.normal(size=(60, 3))
    thirds = np.arange(60) % 3 == np.arange(3)[:, None]
    values = coverage(real, fake, 2, subsets=np.concatenate([thirds, ~thirds]))
    balls_of = {scale: inside(real, 2 * scale, fake) for scale in (3, 2)}  # 60/40 is rounded to 2
    expected = [balls_of[3][:, third].any(1).mean() for third in thirds]
    expected += [balls_of[2][:, ~third].any(1).mean() for third in thirds]
    np.testing.assert_allclose(values, expected)


def test_paired_differences_of_images():
    a = np.random.default_rng(9).normal(size=(4, 8, 8, 3))
    b = a + np.array([0, 1, -2, 3])[:, None, None, None]
    np.testing.assert_allclose(paired_differences(a, b), [0, 1, 2, 3], atol=1e-12)
    b = a.copy()
    b[0, 0, 0, 0] += 1
    np.testing.assert_allclose(paired_differences(a, b), [1 / np.sqrt(192), 0, 0, 0], atol=1e-12)


@pytest.mark.parametrize(
    ("a", "b"),
    [((1, 3), (5, 3)), ((5, 3), (1, 3)), ((5, 3), (5, 2)), ((5,), (5,)), ((5, 3), ())],
)
@pytest.mark.parametrize("statistic", STATISTICS)
def test_refusals(statistic, a, b):
    with pytest.raises(ValueError, match="features have shapes"):
        statistic(np.zeros(a), np.zeros(b))


@pytest.mark.parametrize(
    "subsets",
    [np.ones((2, 8)), np.ones((2, 7), bool), np.ones(8, bool), np.eye(8, dtype=bool)],
)
def test_refusals_of_subsets(subsets):
    with pytest.raises(ValueError, match="subsets"):
        recall(np.zeros((5, 2)), np.zeros((8, 2)), subsets=subsets)


@pytest.mark.parametrize("k", [0, 8])
@pytest.mark.parametrize("statistic", STATISTICS[2:])
def test_refusals_of_neighbours(statistic, k):
    with pytest.raises(ValueError, match=f"k is {k} for 8 points"):
        statistic(np.zeros((8, 2)), np.zeros((8, 2)), k)


def test_refusals_of_images():
    x = np.zeros((8, 2))
    for a, b in ((x, x[:7]), (x[:0], x[:0]), (0.0, 0.0)):
        with pytest.raises(ValueError, match="images have shapes"):
            paired_differences(a, b)
