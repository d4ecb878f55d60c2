import numpy as np
import pytest

from ddim_jax import Steps, custom, ddpm, eta, sigma_hat, step_table, uniform_timesteps


@pytest.fixture
def steps(alpha_bar):
    t = np.array([901, 501, 11, 1])
    s = np.array([501, 11, 1, 0])
    return Steps(t, s, alpha_bar[t], alpha_bar[s])


def test_eta_one_is_the_posterior_variance_of_ddpm(steps):
    # β̃ from Gaussian conditioning: 1/β̃ = 1/var(x_s) + a²/β for x_t = a x_s + N(0, β), without Eq. 16.
    beta = 1 - steps.alpha_bar_t / steps.alpha_bar_s
    for row in range(3):
        precision = 1 / (1 - steps.alpha_bar_s[row]) + (1 - beta[row]) / beta[row]
        assert ddpm()(steps).noise[row] ** 2 == pytest.approx(1 / precision, rel=1e-9)
    assert ddpm()(steps).noise[3] == 0


def test_eta_is_linear_and_its_two_deviations_are_one(steps):
    one = eta(1.0)(steps)
    for value in (0.0, 0.2, 0.5):
        sigma, noise = eta(value)(steps)
        np.testing.assert_allclose(sigma, value * one.sigma)
        np.testing.assert_array_equal(sigma, noise)
    np.testing.assert_allclose(eta([0.0, 1.0, 0.5, 0.3])(steps).sigma, np.array([0.0, 1.0, 0.5, 0.3]) * one.sigma)


def test_sigma_hat_has_a_noise_that_does_not_fit_under_the_root(steps, alpha_bar):
    sigma, noise = sigma_hat()(steps)
    np.testing.assert_array_equal(sigma, ddpm()(steps).sigma)
    assert noise[3] == 0  # as in the official code
    # The chain x_s → x_t of DDPM: var(x_t | x_0) = a² var(x_s | x_0) + σ̂²
    a2 = steps.alpha_bar_t / steps.alpha_bar_s
    np.testing.assert_allclose(a2[:3] * (1 - steps.alpha_bar_s[:3]) + noise[:3] ** 2, 1 - steps.alpha_bar_t[:3], rtol=1e-12)
    tau = uniform_timesteps(1000, 10)
    table = step_table(alpha_bar, tau, sigma_hat())
    assert np.sum(table.noise**2 > 1 - table.alpha_bar_s) == 3  # the reason for two numbers


def test_custom_takes_scalars_and_arrays_and_noise_apart(steps):
    np.testing.assert_array_equal(custom(0.1)(steps).sigma, np.full(4, 0.1))
    sigma, noise = custom([0.4, 0.3, 0.2, 0.0], noise=[0.0, 0.1, 0.2, 0.3])(steps)
    np.testing.assert_array_equal(sigma, [0.4, 0.3, 0.2, 0.0])
    np.testing.assert_array_equal(noise, [0.0, 0.1, 0.2, 0.3])


@pytest.mark.parametrize("bad", [-0.1, float("nan"), [0.5, -0.2]])
def test_eta_refuses_what_is_not_at_least_zero(bad):
    with pytest.raises(ValueError, match=r"eta is (-0.1|nan|-0.2); it must be ≥ 0"):
        eta(bad)


WRONG = [(eta([0.1, 0.2]), "eta"), (custom([0.1] * 3), "sigma"), (custom(0.1, [0.1] * 5), "noise")]


@pytest.mark.parametrize(("schedule", "name"), WRONG)
def test_lengths_must_be_S(schedule, name, steps):
    with pytest.raises(ValueError, match=rf"{name} has shape .* each of the 4 steps"):
        schedule(steps)
