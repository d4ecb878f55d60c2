"""The exact distribution of samples of Gaussian data, and distances, without their formulas."""

import jax
import numpy as np
import pytest
import scipy.integrate
import scipy.linalg
import scipy.stats

from ddim_jax import (
    custom,
    ddpm,
    eta,
    final_noise,
    gaussian_oracle,
    image_keys,
    initial_noise,
    kl_gaussian,
    linspace_timesteps,
    propagate_gaussian,
    quadratic_timesteps,
    sample_many,
    sigma_hat,
    stack_tables,
    step_table,
    trailing_timesteps,
    uniform_timesteps,
    wasserstein2_gaussian,
)  # fmt: skip


@pytest.fixture(scope="module")
def gaussian():
    """A mean of (2, 2, 1) images, and a covariance with correlations and one null direction."""
    root = np.random.default_rng(0).normal(size=(4, 3))
    return np.array([0.5, -0.3, 0.0, 0.2]), root @ root.T / 3


def dense_recursion(mean, covariance, alpha_bar, table):
    """The moments of the samples, with matrices for eigenvalues and x̂_0 by conditioning."""
    identity = np.eye(len(mean))
    m, p = np.zeros(len(mean)), identity
    for i in range(len(table.t)):
        a_t, a_s = alpha_bar[table.t[i]], table.alpha_bar_s[i]
        to_x_0 = np.sqrt(a_t) * covariance @ np.linalg.inv(a_t * covariance + (1 - a_t) * identity)
        to_epsilon = (identity - np.sqrt(a_t) * to_x_0) / np.sqrt(1 - a_t)
        direction = np.sqrt(max(1 - a_s - table.sigma[i] ** 2, 0))
        step = np.sqrt(a_s) * to_x_0 + direction * to_epsilon
        m = np.sqrt(a_s) * mean + step @ (m - np.sqrt(a_t) * mean)
        p = step @ p @ step.T + table.noise[i] ** 2 * identity
    return m, p


def grid(alpha_bar):
    tau = quadratic_timesteps(1000, 10)
    families = [
        eta(0.0),
        eta(0.5),
        ddpm(),
        sigma_hat(),
        final_noise(eta(0.2), 0.1),
        custom(0.0, 0.02),
    ]
    return [step_table(alpha_bar, tau, family) for family in families]


def test_propagated_moments_against_a_dense_recursion(gaussian, alpha_bar):
    for table in grid(alpha_bar):
        moments = propagate_gaussian(*gaussian, alpha_bar, table)
        m, p = dense_recursion(*gaussian, alpha_bar, table)
        assert moments.mean.dtype == moments.covariance.dtype == np.float64
        np.testing.assert_allclose(moments.mean, m, atol=1e-10)
        np.testing.assert_allclose(moments.covariance, p, atol=1e-10)
    padded = stack_tables(
        [grid(alpha_bar)[0], step_table(alpha_bar, uniform_timesteps(1000, 12), eta(0.0))]
    )
    first = propagate_gaussian(*gaussian, alpha_bar, jax.tree.map(lambda leaf: leaf[0], padded))
    np.testing.assert_array_equal(
        first.mean, propagate_gaussian(*gaussian, alpha_bar, grid(alpha_bar)[0]).mean
    )


def test_sampled_moments_match_the_exact_ones_within_monte_carlo_error(gaussian, alpha_bar):
    mean, covariance = gaussian
    count = 40_000
    keys = image_keys(0, range(count))
    tables = grid(alpha_bar)
    denoise = gaussian_oracle(mean, covariance, alpha_bar)
    x = jax.jit(lambda x_T, tables: sample_many(denoise, x_T, tables, keys))(
        initial_noise(keys, (2, 2, 1)), stack_tables(tables)
    )
    for images, table in zip(
        np.asarray(x, np.float64).reshape(len(tables), count, 4), tables, strict=True
    ):
        exact = propagate_gaussian(mean, covariance, alpha_bar, table)
        variance = np.diag(exact.covariance)
        assert np.all(np.abs(images.mean(0) - exact.mean) < 5 * np.sqrt(variance / count) + 1e-5)
        error = np.sqrt(
            (exact.covariance**2 + np.outer(variance, variance)) / count
        )  # of a sample covariance
        assert np.all(np.abs(np.cov(images.T) - exact.covariance) < 5 * error + 1e-5)


@pytest.mark.parametrize("timesteps", [quadratic_timesteps, trailing_timesteps, linspace_timesteps])
def test_the_covariance_error_falls_with_S_and_grows_with_eta(timesteps, alpha_bar):
    """For eigenvalues up to 2. Beyond, noise may repair part of what discretisation shrinks."""
    eigenvalues = np.array([0.01, 0.1, 0.5, 1.0, 2.0])
    covariance, mean = np.diag(eigenvalues), np.zeros(5)
    etas, counts = [0.0, 0.2, 0.5, 0.8, 1.0], [2, 3, 5, 10, 20, 50, 100, 200]

    def covariance_part(S, value):
        moments = propagate_gaussian(
            mean, covariance, alpha_bar, step_table(alpha_bar, timesteps(1000, S), eta(value))
        )
        return wasserstein2_gaussian(*moments, mean, covariance)[1]

    parts = np.array([[covariance_part(S, value) for value in etas] for S in counts])
    assert np.all(np.diff(parts, axis=0) < 0), parts
    assert np.all(np.diff(parts, axis=1) > 0), parts


def test_wasserstein_against_a_general_matrix_square_root():
    rng = np.random.default_rng(0)
    (a, b), (mean_a, mean_b) = (
        (m @ m.T for m in rng.normal(size=(2, 4, 4))),
        rng.normal(size=(2, 4)),
    )
    of_means, of_covariances = wasserstein2_gaussian(mean_a, a, mean_b, b)
    assert of_means == pytest.approx(np.sum((mean_a - mean_b) ** 2))
    assert of_covariances == pytest.approx(
        np.trace(a + b - 2 * scipy.linalg.sqrtm(a @ b).real), rel=1e-9
    )
    assert wasserstein2_gaussian(mean_a, a, mean_a, a) == pytest.approx((0, 0), abs=1e-6)


def test_kl_against_numerical_integration_and_its_invariances():
    grid = np.linspace(-30, 30, 600_001)
    p, q = scipy.stats.norm(0.4, 1.3), scipy.stats.norm(-1.0, 2.0)
    one = scipy.integrate.trapezoid(p.pdf(grid) * (p.logpdf(grid) - q.logpdf(grid)), grid)
    assert kl_gaussian([0.4], [[1.69]], [-1.0], [[4.0]]) == pytest.approx(one, rel=1e-7)
    other = kl_gaussian([0.0], [[0.5]], [0.2], [[0.7]])
    together = [
        np.array([0.4, 0.0]),
        np.diag([1.69, 0.5]),
        np.array([-1.0, 0.2]),
        np.diag([4.0, 0.7]),
    ]
    assert kl_gaussian(*together) == pytest.approx(one + other, rel=1e-9)  # independent parts add
    m = np.array([[2.0, 1.0], [0.3, 1.0]])  # and a change of coordinates changes nothing
    moved = [m @ value if value.ndim == 1 else m @ value @ m.T for value in together]
    assert kl_gaussian(*moved) == pytest.approx(one + other, rel=1e-9)
    assert kl_gaussian([0.0, 0.0], np.eye(2), [0.0, 0.0], np.diag([1.0, 0.0])) == np.inf


@pytest.mark.parametrize("distance", [wasserstein2_gaussian, kl_gaussian])
def test_refusals(distance):
    with pytest.raises(ValueError, match="1 and 2 dimensions"):
        distance([0.0], [[1.0]], [0.0, 0.0], np.eye(2))
    with pytest.raises(ValueError, match=r"covariance has shape \(2, 2\) for a mean of 1"):
        distance([0.0], np.eye(2), [0.0], [[1.0]])
