"""The exact distribution of samples of Gaussian data, and distances, without their formulas."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.linalg
import scipy.stats

import ddim_jax
from ddim_jax import (
    adams,
    custom,
    ddpm,
    deis,
    dpm_solver_pp,
    eta,
    final_noise,
    first_order,
    gaussian_oracle,
    image_keys,
    initial_noise,
    ipndm,
    kl_gaussian,
    linspace_timesteps,
    propagate_gaussian,
    quadratic_timesteps,
    sample,
    sample_many,
    sigma_hat,
    stack_tables,
    step_table,
    trailing_timesteps,
    uniform_timesteps,
    wasserstein2_gaussian,
)  # fmt: skip


def as_affine_maps(mean, covariance, alpha_bar, table):
    """The moments of the samples, with x as an affine map of (1, x_T, all z), by conditioning."""
    D, identity = len(mean), np.eye(len(mean))
    x = np.zeros((D, 1 + D * (1 + len(table.t))))
    constant = np.zeros_like(x)
    constant[:, 0] = mean
    x[:, 1 : 1 + D] = identity
    x_0s, epsilons = [], []
    for i in range(len(table.t)):
        a_t, a_s = alpha_bar[table.t[i]], table.alpha_bar_s[i]
        gain = np.sqrt(a_t) * covariance @ np.linalg.inv(a_t * covariance + (1 - a_t) * identity)
        x_0s.insert(0, constant + gain @ (x - np.sqrt(a_t) * constant))
        epsilons.insert(0, (x - np.sqrt(a_t) * x_0s[0]) / np.sqrt(1 - a_t))
        x = np.sqrt(a_s) * x_0s[0] + np.sqrt(max(1 - a_s - table.sigma[i] ** 2, 0)) * epsilons[0]
        x[:, 1 + D * (i + 1) :][:, :D] += table.noise[i] * identity
        x = x + sum(a * x_0 for a, x_0 in zip(table.x_0_correction[i], x_0s, strict=False))
        x = x + sum(e * eps for e, eps in zip(table.epsilon_correction[i], epsilons, strict=False))
    return x[:, 0], x[:, 1:] @ x[:, 1:].T


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
    solvers = [first_order(), adams(3), dpm_solver_pp(2), deis(4), ipndm(2), adams(2)]
    first = [step_table(alpha_bar, tau, family) for family in families]
    return first + [
        step_table(alpha_bar, tau, family, solver)
        for family, solver in zip(families, solvers, strict=True)
    ]


def test_propagated_moments_against_affine_maps(gaussian, alpha_bar):
    for table in grid(alpha_bar):
        moments = propagate_gaussian(*gaussian, alpha_bar, table)
        m, p = as_affine_maps(*gaussian, alpha_bar, table)
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
    tables = grid(alpha_bar)[1::2]
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


def test_sample_with_the_gaussian_oracle_has_exactly_these_moments(gaussian, alpha_bar, float64):
    """Its output is an affine map of x_T and all z: here are the map's columns, one per image."""
    denoise = gaussian_oracle(*gaussian, jnp.asarray(alpha_bar))
    tables, inputs = grid(alpha_bar), 4 * 11
    columns = np.vstack([np.zeros(inputs), np.eye(inputs)]).reshape(-1, 11, 4).swapaxes(0, 1)
    x_T, noise = jnp.asarray(columns[0]), jnp.asarray(columns[1:])
    keys = image_keys(0, range(1 + inputs))

    @jax.jit
    def run(tables):
        return jax.lax.map(lambda table: sample(denoise, x_T, table, keys, noise), tables)

    for images, table in zip(np.asarray(run(stack_tables(tables))), tables, strict=True):
        exact = propagate_gaussian(*gaussian, alpha_bar, table)
        effects = images[1:] - images[0]
        np.testing.assert_allclose(images[0], exact.mean, atol=1e-10)
        np.testing.assert_allclose(effects.T @ effects, exact.covariance, atol=1e-10)


# η → S → the covariance part of W2² for first_order, adams(2), dpm_solver_pp(2) and adams(3).
DIGITS = {
    0: {5: "1.79 1.08 0.112 2.20", 10: "0.438 0.171 0.058 0.299",
        20: "0.108 0.0065 0.0032 0.0030", 50: "0.0174 0.0001 - 0.0001"},
    0.5: {5: "1.97 1.31 0.117 3.28", 10: "0.539 0.294 0.088 0.346",
          20: "0.145 0.0131 0.0056 0.0044", 50: "0.0247 0.0002 - 0.0001"},
    1: {5: "3.31 3.77 0.065 22.4", 10: "1.14 2.35 0.359 4.18",
        20: "0.338 0.118 0.0329 0.0138", 50: "0.0608 0.0014 - 0.0000"},
}  # fmt: skip


def test_the_errors_of_solvers_on_a_gaussian_fitted_to_digits(alpha_bar):
    """To the digits that are printed, as they were measured apart from this code."""
    digits = Path(ddim_jax.__file__).parent / "data" / "embedded" / "digits8.npz"
    images = np.load(digits)["train_image"].reshape(1437, 64) / 127.5 - 1
    fitted = images.mean(0), np.cov(images.T)
    final = {"lower_order_final": False}
    solvers = [first_order(), adams(2, **final), dpm_solver_pp(2, **final), adams(3, **final)]
    for value, by_S in DIGITS.items():
        for S, printed in by_S.items():
            for number, solver in zip(printed.split(), solvers, strict=True):
                if number == "-":  # was not measured
                    continue
                table = step_table(alpha_bar, quadratic_timesteps(1000, S), eta(value), solver)
                exact = propagate_gaussian(*fitted, alpha_bar, table)
                part = wasserstein2_gaussian(*exact, *fitted)[1]
                unit = 10.0 ** -len(number.partition(".")[2])
                assert abs(part - float(number)) <= 0.501 * unit, (value, S, number, part)


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
