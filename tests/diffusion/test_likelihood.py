"""ELBO, density of the ODE, and optimal τ, against exact Gaussians and exhaustive search."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from ddim_jax import (
    Prediction,
    adams,
    bits_per_dim,
    custom,
    ddpm,
    denoiser,
    elbo,
    elbo_costs,
    epsilon_weights,
    eta,
    final_noise,
    gaussian_oracle,
    image_keys,
    kl_gaussian,
    linspace_timesteps,
    quadratic_timesteps,
    sigma_hat,
    stack_tables,
    step_table,
    uniform_timesteps,
)
from ddim_jax.diffusion import likelihood
from ddim_jax.diffusion.keys import noise_rows

MEAN = np.array([0.3, -0.2, 0.1])
COVARIANCE = np.array([[0.5, 0.2, 0.0], [0.2, 0.3, -0.1], [0.0, -0.1, 0.2]])
X_0 = np.array([0.5, -0.9, 0.4])


def gap(alpha_bar, table, sigma_1):
    """(log p(x_0), KL(q_σ(x_τ | x_0) ‖ p(x_τ | x_0))), with every x as an affine map of noises."""
    D, S = len(MEAN), len(table.t)
    identity = np.eye(D)

    def block(i):  # the i-th of S + 1 noises, after a column for the constant
        return slice(1 + D * i, 1 + D * (i + 1))

    def constant(vector):
        return np.concatenate([vector[:, None], np.zeros((D, D * (S + 1)))], axis=1)

    def noise(i, scale):
        rows = np.zeros((D, 1 + D * (S + 1)))
        rows[:, block(i)] = scale * identity
        return rows

    a = alpha_bar[table.t]
    q = [np.sqrt(a[0]) * constant(X_0) + noise(0, np.sqrt(1 - a[0]))]
    p = [noise(0, 1.0)]
    for i in range(S):
        a_s, sigma = table.alpha_bar_s[i], table.sigma[i]
        root = np.sqrt(max(1 - a_s - sigma**2, 0))
        C = a[i] * COVARIANCE + (1 - a[i]) * identity
        offset = p[-1] - np.sqrt(a[i]) * constant(MEAN)
        x_0 = constant(MEAN) + np.sqrt(a[i]) * COVARIANCE @ np.linalg.solve(C, offset)
        direction = (p[-1] - np.sqrt(a[i]) * x_0) / np.sqrt(1 - a[i])
        std = table.noise[i] if table.s[i] else sigma_1
        p.append(np.sqrt(a_s) * x_0 + root * direction + noise(i + 1, std))
        if table.s[i]:
            epsilon = (q[-1] - np.sqrt(a[i]) * constant(X_0)) / np.sqrt(1 - a[i])
            q.append(np.sqrt(a_s) * constant(X_0) + root * epsilon + noise(i + 1, sigma))
    of_q, of_p = np.concatenate(q), np.concatenate(p)
    covariance, of_x_0 = of_p[:, 1:] @ of_p[:, 1:].T, slice(D * S, D * (S + 1))
    path = slice(0, D * S)
    gain = covariance[path, of_x_0] @ np.linalg.inv(covariance[of_x_0, of_x_0])
    mean = of_p[path, 0] + gain @ (X_0 - of_p[of_x_0, 0])
    posterior = covariance[path, path] - gain @ covariance[of_x_0, path]
    log_p = scipy.stats.multivariate_normal(of_p[of_x_0, 0], covariance[of_x_0, of_x_0])
    kl = kl_gaussian(of_q[:, 0], of_q[:, 1:] @ of_q[:, 1:].T, mean, posterior)
    return log_p.logpdf(X_0), kl


@pytest.fixture(scope="module")
def expected_elbo():
    """E of `elbo` for ᾱ and a table: its terms are quadratic in ε; 2 D points have its moments."""
    D = len(MEAN)
    points = math.sqrt(D) * np.concatenate([np.eye(D), -np.eye(D)])
    keys, x_0 = image_keys(0, np.arange(2 * D)), np.tile(X_0, (2 * D, 1))

    @jax.jit
    def compute(alpha_bar, table):
        denoise = gaussian_oracle(MEAN, COVARIANCE, alpha_bar)
        return elbo(denoise, x_0, alpha_bar, table, keys, levels=None)

    def expected(alpha_bar, table):
        with jax.enable_x64(True), pytest.MonkeyPatch.context() as patch:
            patch.setattr(likelihood, "noise_rows", lambda keys, t, size: jnp.asarray(points))
            prior, steps, data = map(np.asarray, compute(np.array(alpha_bar), table))
        return -float(np.mean(prior + data + steps.sum(1)))

    return expected


DDPM = ddpm()
SCHEDULES = {
    "eta=1": eta(1.0),
    "eta=0.3": eta(0.3),
    "hat": sigma_hat(),
    "noise of its own": lambda steps: eta(0.5)(steps)._replace(noise=0.9 * eta(1.0)(steps).noise),
    "eta=0.5 to the end": final_noise(eta(0.5), 0.2),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_log_p_less_the_elbo_is_the_kl_of_the_paths(name, alpha_bar, expected_elbo):
    table = step_table(alpha_bar, linspace_timesteps(1000, 6), SCHEDULES[name])
    if table.noise[-1]:
        sigma_1 = table.noise[-1]
    else:  # DDPM's: √β̃ of the row before
        a_t, a_s = table.alpha_bar_t[-2], table.alpha_bar_s[-2]
        sigma_1 = np.sqrt((1 - a_s) / (1 - a_t) * (1 - a_t / a_s))
    log_p, kl = gap(alpha_bar, table, sigma_1)
    assert kl > 0.01
    assert log_p - expected_elbo(alpha_bar, table) == pytest.approx(kl, abs=1e-6)


def test_a_single_step_has_the_standard_deviation_of_beta_1(alpha_bar, expected_elbo):
    table = step_table(alpha_bar, [300], eta(1.0))
    log_p, kl = gap(alpha_bar, table, np.sqrt(1 - alpha_bar[1]))
    assert log_p - expected_elbo(alpha_bar, table) == pytest.approx(kl, rel=1e-6)


def test_gap_falls_with_s_and_vanishes_at_eta_1_only(expected_elbo):
    """With steps of equal log SNR from 10⁴ down, and the standard deviation of x_0 given x_1."""
    snr = np.exp(np.linspace(np.log(1e4), -12, 2000))
    alpha_bar = np.concatenate([[1.0], snr / (1 + snr)])
    exact = scipy.stats.multivariate_normal(MEAN, COVARIANCE).logpdf(X_0)

    def gaps(value):
        for S in (20, 200, 2000):
            tau, schedule = linspace_timesteps(2000, S), final_noise(eta(value), 0.01)
            yield exact - expected_elbo(alpha_bar, step_table(alpha_bar, tau, schedule))

    of_1, of_half = list(gaps(1.0)), list(gaps(0.5))
    assert of_1[0] > 5 * of_1[1] > 25 * of_1[2] > 0
    assert of_1[2] < 0.2
    assert of_half[0] > of_half[1] > of_half[2] > 5


def test_sampled_elbo_agrees_within_its_error(alpha_bar):
    table = step_table(alpha_bar, linspace_timesteps(1000, 6), final_noise(eta(1.0), 0.2))
    log_p, kl = gap(alpha_bar, table, 0.2)
    n = 4096
    denoise = gaussian_oracle(MEAN, COVARIANCE, alpha_bar)
    x_0 = np.tile(X_0, (n, 1)).astype(np.float32)
    terms = elbo(denoise, x_0, alpha_bar, table, image_keys(3, np.arange(n)), levels=None)
    total = -np.asarray(terms.prior + terms.data + terms.steps.sum(1), np.float64)
    assert abs(total.mean() - (log_p - kl)) < 4 * total.std() / math.sqrt(n)
    # One draw per image and time, not one for all.
    assert np.all(terms.steps.std(0) > 0)


@pytest.mark.usefixtures("optimised")
def test_theorem_1(alpha_bar, float64):
    """J_σ − L_γ is the same for two networks, and so for every draw: γ is that of J_σ."""
    table = step_table(alpha_bar, quadratic_timesteps(1000, 5), final_noise(eta(0.7), 0.1))
    keys, x_0 = image_keys(0, np.arange(3)), np.random.default_rng(0).normal(size=(3, 2, 2, 1))

    def remainder(apply):
        denoise = denoiser(apply, None, alpha_bar)
        terms = jax.jit(lambda x_0: elbo(denoise, x_0, alpha_bar, table, keys, levels=None))(x_0)
        costs = np.concatenate([terms.steps, terms.data[:, None]], axis=1)
        for i, t in enumerate(table.t):
            noise = np.asarray(noise_rows(keys, t, 4), np.float64).reshape(x_0.shape)
            x_t = np.sqrt(alpha_bar[t]) * x_0 + np.sqrt(1 - alpha_bar[t]) * noise
            sigma = table.noise[i]
            gamma = epsilon_weights(table.alpha_bar_t[i], table.alpha_bar_s[i], sigma)
            error = np.square(noise - apply(None, x_t, t - 1)).sum((1, 2, 3))
            costs[:, i] -= np.asarray(gamma) * error
        return costs

    one = remainder(lambda params, x, t: 0.3 * x)
    two = remainder(lambda params, x, t: jnp.tanh(2 * x) + 0.1)
    np.testing.assert_allclose(one, two, rtol=1e-7, atol=1e-7)


def test_prior_is_at_the_first_time_of_the_table(alpha_bar, float64):
    table = step_table(alpha_bar, [1, 300], eta(1.0))
    denoise = gaussian_oracle(MEAN, COVARIANCE, alpha_bar)
    terms = elbo(denoise, X_0[None], alpha_bar, table, image_keys(0, [0]), levels=None)
    a = alpha_bar[300]
    exact = kl_gaussian(np.sqrt(a) * X_0, (1 - a) * np.eye(3), np.zeros(3), np.eye(3))
    assert terms.prior.item() == pytest.approx(exact)


@pytest.fixture(scope="module")
def data_term(alpha_bar):
    """−log of the probability of x_0 (B, 1), for a mean x̂_0 and σ_1."""

    @jax.jit
    def compute(x_0, mean, sigma_1):
        table = step_table(alpha_bar, [1], eta(0.0))._replace(noise=sigma_1[None])
        denoise = lambda x, t: Prediction(jnp.full_like(x, mean), x)  # noqa: E731
        keys = image_keys(0, np.arange(len(x_0)))
        return elbo(denoise, x_0, alpha_bar, table, keys).data

    return lambda x_0, *numbers: np.asarray(compute(x_0, *map(np.float32, numbers)), np.float64)


@pytest.mark.parametrize("sigma_1", [1e-4, 0.004, 0.02, 0.3, 2.0])
def test_levels_have_total_probability_1(sigma_1, data_term):
    k = np.arange(256)
    x_0 = (k / 127.5 - 1).astype(np.float32)[:, None]
    for mean in (-3.0, -1.0, -0.5034, 0.0, 0.00392, 0.77, 1.0, 1.4):
        data = data_term(x_0, mean, sigma_1)
        assert np.all(np.isfinite(data))
        assert np.exp(-data).sum() == pytest.approx(1, abs=1e-6)
        edges = np.concatenate([[-np.inf], (2 * k[1:] - 1) / 255 - 1, [np.inf]])
        exact = np.diff(scipy.stats.norm(mean, sigma_1).cdf(edges))
        np.testing.assert_allclose(np.exp(-data), exact, atol=1e-6 + 1e-6 / sigma_1)


def test_unlikely_levels_keep_a_finite_cost(data_term):
    exact = -scipy.stats.norm(-1, 0.01).logsf(1 - 1 / 255)
    assert data_term(np.ones((1, 1), np.float32), -1, 0.01).item() == pytest.approx(exact, rel=1e-4)


def test_padding_and_traced_tables(alpha_bar):
    denoise = gaussian_oracle(MEAN, COVARIANCE, alpha_bar)
    keys, x_0 = image_keys(0, [4, 5]), np.stack([X_0, -X_0]).astype(np.float32)
    tables = [step_table(alpha_bar, uniform_timesteps(1000, S), eta(1.0)) for S in (3, 5)]

    @jax.jit
    def compute(table):
        return elbo(denoise, x_0, alpha_bar, table, keys, levels=None)

    short = jax.tree.map(lambda leaf: leaf[0], stack_tables(tables))
    padded, plain = (compute(table) for table in (short, tables[0]))
    assert padded.steps.shape == (2, 4)
    assert not np.any(padded.steps[:, 2:])
    np.testing.assert_allclose(padded.steps[:, :2], plain.steps, rtol=1e-5)
    np.testing.assert_allclose(padded.data, plain.data, rtol=1e-5)
    np.testing.assert_array_equal(padded.prior, plain.prior)
    without = compute(tables[0]._replace(noise=np.zeros(3)))
    assert np.all(np.isposinf(without.steps))
    assert np.all(np.isposinf(compute(tables[0]._replace(sigma=np.zeros(3))).steps))


def test_refusals(alpha_bar):
    denoise = gaussian_oracle(MEAN, COVARIANCE, alpha_bar)
    tau, keys, x_0 = uniform_timesteps(1000, 3), image_keys(0, [0]), X_0[None]

    def refused(match, schedule=DDPM, solver=None, x_0=x_0, keys=keys, levels=None):
        table = step_table(alpha_bar, tau, schedule, *([solver] if solver else []))
        with pytest.raises(ValueError, match=match):
            elbo(denoise, x_0, alpha_bar, table, keys, levels=levels)

    refused("row 0 .*sigma 0 and noise 0; .*η = 0 has none", eta(0.0))
    refused("sigma 0 and noise 0.1", custom(0.0, [0.1, 0.1, 0.0]))
    refused("corrections", solver=adams(2))
    refused("give one key per image", keys=image_keys(0, [0, 1]))
    refused("-0.9, which is not one of 256 levels", x_0=np.array([[1.0, -1.0, -0.9]]), levels=256)
    refused("levels is 1", levels=1)


def test_bits_per_dim_of_a_uniform_density_is_8():
    """A density of 1/2 on [−1, 1] per dimension is 8 bits, and so are 256 equal levels."""
    density = bits_per_dim(4 * math.log(1 / (2 * 256 / 255)), (2, 2, 1), density=True)
    assert density == pytest.approx(8)
    assert bits_per_dim(jnp.full(3, -4 * math.log(256)), (2, 2, 1)).tolist() == pytest.approx(
        [8] * 3
    )


def test_costs_sum_to_the_expected_elbo(alpha_bar, expected_elbo):
    values = np.linalg.eigvalsh(COVARIANCE)
    # x_0 is one image, so the error has a bias, too: from the oracle's own affine map.
    errors = np.zeros(1001)
    for t in range(1, 1001):
        C = alpha_bar[t] * COVARIANCE + (1 - alpha_bar[t]) * np.eye(3)
        gain = np.sqrt(alpha_bar[t]) * COVARIANCE @ np.linalg.inv(C)
        bias = (np.eye(3) - np.sqrt(alpha_bar[t]) * gain) @ (X_0 - MEAN)
        errors[t] = np.sum(bias**2) + (1 - alpha_bar[t]) * np.sum(gain**2)
    assert errors[1000] < 10 * values.sum()
    tau = [1, 40, 300, 1000]
    for schedule in (eta(1.0), eta(0.4), sigma_hat()):
        cost = elbo_costs(alpha_bar, errors, 3, schedule, sigma_1=0.1)
        pairs = zip([0, *tau], tau, strict=False)
        total = sum(cost[s, t] for s, t in pairs)
        table = step_table(alpha_bar, tau, final_noise(schedule, 0.1))
        a = alpha_bar[1000]
        prior = kl_gaussian(np.sqrt(a) * X_0, (1 - a) * np.eye(3), np.zeros(3), np.eye(3))
        found = -expected_elbo(alpha_bar, table)
        assert total + prior == pytest.approx(found, rel=1e-6)
