import numpy as np
import pytest
import scipy.linalg

from ddim_jax.metrics import frechet_distance


def test_frechet_against_a_general_matrix_square_root():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(300, 6)) @ rng.normal(size=(6, 6)), rng.normal(size=(200, 6)) @ rng.normal(size=(6, 6)) + 1
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


@pytest.mark.parametrize(("a", "b"), [((1, 3), (5, 3)), ((5, 3), (5, 2)), ((5,), (5,))])
def test_refusals(a, b):
    with pytest.raises(ValueError, match="features have shapes"):
        frechet_distance(np.zeros(a), np.zeros(b))
