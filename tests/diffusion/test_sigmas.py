import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ddim_jax import (
    Steps,
    alpha_bars,
    analytic,
    cosine_betas,
    custom,
    ddpm,
    estimate_epsilon_power,
    eta,
    final_noise,
    gaussian_oracle,
    jsd_betas,
    linear_betas,
    on_interval,
    q_marginal,
    q_reverse,
    quadratic_betas,
    scaled,
    sigma_hat,
    step_table,
    uniform_timesteps,
)  # fmt: skip
from ddim_jax.diffusion.sigmas import SIGMAS


@pytest.fixture
def steps(alpha_bar):
    t = np.array([901, 501, 11, 1])
    s = np.array([501, 11, 1, 0])
    return Steps(t, s, alpha_bar[t], alpha_bar[s])


def test_eta_one_is_the_posterior_variance_of_ddpm(steps):
    # β̃ by Gaussian conditioning, without Eq. 16: for x_t = a x_s + N(0, β), 1/β̃ = 1/var x_s + a²/β.
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
    np.testing.assert_allclose(
        eta([0.0, 1.0, 0.5, 0.3])(steps).sigma, np.array([0.0, 1.0, 0.5, 0.3]) * one.sigma
    )


def test_sigma_hat_has_a_noise_that_does_not_fit_under_the_root(steps, alpha_bar):
    sigma, noise = sigma_hat()(steps)
    np.testing.assert_array_equal(sigma, ddpm()(steps).sigma)
    assert noise[3] == 0  # as in the official code
    # The chain x_s → x_t of DDPM: var(x_t | x_0) = a² var(x_s | x_0) + σ̂²
    a2 = steps.alpha_bar_t / steps.alpha_bar_s
    np.testing.assert_allclose(
        a2[:3] * (1 - steps.alpha_bar_s[:3]) + noise[:3] ** 2, 1 - steps.alpha_bar_t[:3], rtol=1e-12
    )
    tau = uniform_timesteps(1000, 10)
    table = step_table(alpha_bar, tau, sigma_hat())
    assert np.sum(table.noise**2 > 1 - table.alpha_bar_s) == 3  # the reason for two numbers


def test_families_by_name(steps):
    expected = {"eta": eta(0.3), "ddpm": ddpm(), "hat": sigma_hat()}
    assert SIGMAS.keys() == expected.keys()
    for name, schedule in expected.items():
        made = SIGMAS[name](*[0.3] * (name == "eta"))
        np.testing.assert_array_equal(made(steps), schedule(steps))


def test_custom_takes_scalars_and_arrays_and_noise_apart(steps):
    np.testing.assert_array_equal(custom(0.1)(steps).sigma, np.full(4, 0.1))
    sigma, noise = custom([0.4, 0.3, 0.2, 0.0], noise=[0.0, 0.1, 0.2, 0.3])(steps)
    np.testing.assert_array_equal(sigma, [0.4, 0.3, 0.2, 0.0])
    np.testing.assert_array_equal(noise, [0.0, 0.1, 0.2, 0.3])


def test_combinators(steps):
    base = ddpm()(steps)
    sigma, noise = on_interval(sigma_hat(), 11, 501)(steps)
    np.testing.assert_array_equal(noise, [0, *sigma_hat()(steps).noise[1:3], 0])
    np.testing.assert_array_equal(sigma, [0, *base.sigma[1:3], 0])
    half = scaled(sigma_hat(), 0.5)(steps)
    np.testing.assert_allclose(half.sigma, base.sigma / 2)
    np.testing.assert_allclose(half.noise, sigma_hat()(steps).noise / 2)
    np.testing.assert_allclose(scaled(ddpm(), [1, 0, 2, 0])(steps).sigma, base.sigma * [1, 0, 2, 0])
    sigma, noise = final_noise(ddpm(), 0.3)(steps)
    np.testing.assert_array_equal(sigma, base.sigma)
    np.testing.assert_array_equal(noise, [*base.noise[:3], 0.3])


SCHEDULES = st.sampled_from(
    [linear_betas(), cosine_betas(), quadratic_betas(), jsd_betas(999)[:-1]]
).map(alpha_bars)
FAMILIES = st.one_of(
    st.floats(0, 1).map(lambda value: eta(value)),
    st.tuples(st.floats(0, 1), st.floats(0, 1)).map(lambda v: scaled(eta(v[0]), v[1])),
    st.tuples(st.integers(1, 500), st.integers(0, 400)).map(
        lambda v: on_interval(ddpm(), v[0], v[0] + v[1])
    ),
    st.floats(0, 0.999).map(
        lambda share: lambda steps: custom(np.sqrt(share * (1 - steps.alpha_bar_s)))(steps)
    ),
)
TIMES = st.lists(st.integers(1, 998), min_size=1, max_size=6, unique=True).map(sorted)


def variance_after(row, x_0):
    """Mean and variance of x_s given x_0, where x_t follows Eq. 4, through the mean of a step."""
    at_t = q_marginal(x_0, row.alpha_bar_t)

    def mean(x_t):
        return q_reverse(x_t, x_0, row.alpha_bar_t, row.alpha_bar_s, row.sigma).mean

    return mean(at_t.mean), (jax.jacobian(mean)(at_t.mean)[0, 0] * at_t.std) ** 2 + row.noise**2


@settings(max_examples=40, deadline=None)
@given(SCHEDULES, TIMES, FAMILIES, st.floats(-2, 2), st.floats(0, 0.5))
def test_the_marginals_are_kept_by_those_that_promise_it(alpha_bar, tau, family, x_0, sigma_1):
    with jax.enable_x64(True):
        x_0 = jnp.asarray([x_0], jnp.float64)
        for schedule in (family, sigma_hat(), final_noise(family, sigma_1)):
            table = step_table(alpha_bar, tau, schedule)
            beside = 1 - table.alpha_bar_t / table.alpha_bar_s  # σ̂²
            for i in range(len(tau)):
                row = jax.tree.map(lambda leaf, i=i: leaf[i], table)
                mean, variance = variance_after(row, x_0)
                np.testing.assert_allclose(mean, np.sqrt(row.alpha_bar_s) * x_0, atol=1e-9)
                last, surplus = i == len(tau) - 1, 0.0
                if (
                    schedule is not family
                    and not last
                    and schedule.__qualname__.startswith("sigma_hat")
                ):
                    # β̃ = β (1 − ᾱ_s)/(1 − ᾱ_t) in the mean and β as the noise
                    surplus = beside[i] * (1 - (1 - row.alpha_bar_s) / (1 - row.alpha_bar_t))
                if last and schedule.__qualname__.startswith("final_noise"):
                    surplus = sigma_1**2
                np.testing.assert_allclose(
                    variance, 1 - row.alpha_bar_s + surplus, rtol=1e-7, atol=1e-9
                )


def test_analytic_is_the_conditional_variance_of_gaussian_data(alpha_bar, float64):
    """The variance of q_σ(x_s | x_t), σ² + (∂mean/∂x_0)² Var(x_0 | x_t), exact for Gaussians."""
    data_variance = 0.3
    tau = uniform_timesteps(1000, 8)
    signal = alpha_bar * data_variance + 1 - alpha_bar
    power = (1 - alpha_bar) / signal  # E ε̂² of the optimal ε̂ = √(1−ᾱ) x_t/Var(x_t), centred data
    for schedule in (eta(0.0), eta(0.6), ddpm()):
        table = step_table(alpha_bar, tau, analytic(schedule, power))
        np.testing.assert_array_equal(table.sigma, step_table(alpha_bar, tau, schedule).sigma)
        for i in range(7):
            row = jax.tree.map(lambda leaf, i=i: leaf[i], table)
            x = jnp.ones((1,))
            arguments = (row.alpha_bar_t, row.alpha_bar_s, row.sigma)
            mean = lambda x_0, x=x, rest=arguments: q_reverse(x, x_0, *rest).mean  # noqa: E731
            slope = jax.jacobian(mean)(x)[0, 0]
            posterior = 1 / (1 / data_variance + row.alpha_bar_t / (1 - row.alpha_bar_t))
            assert row.noise**2 == pytest.approx(
                float(row.sigma**2 + slope**2 * posterior), rel=1e-9
            )
        assert table.noise[-1] == 0


def test_the_power_of_the_noise_is_estimated(alpha_bar):
    denoise = gaussian_oracle(np.full(4, 0.5), np.diag([0.1, 0.5, 1.0, 2.0]), alpha_bar)
    rng = np.random.default_rng(0)
    x_0 = (
        0.5 + rng.normal(size=(20_000, 2, 2, 1)) * np.sqrt([0.1, 0.5, 1.0, 2.0]).reshape(2, 2, 1)
    ).astype(np.float32)
    times = [1, 300, 900]
    power = estimate_epsilon_power(jax.jit(denoise), x_0, alpha_bar, times, jax.random.key(0))
    for t in times:
        exact = np.mean(
            (1 - alpha_bar[t]) / (alpha_bar[t] * np.array([0.1, 0.5, 1.0, 2.0]) + 1 - alpha_bar[t])
        )
        assert power[t] == pytest.approx(exact, rel=0.03)
    assert np.isnan(power).sum() == 998
    step_table(alpha_bar, times, analytic(ddpm(), power))
    with pytest.raises(ValueError, match="no value for t = 500"):
        step_table(alpha_bar, [1, 500], analytic(ddpm(), power))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: on_interval(ddpm(), 5, 4), "t_low is 5 and t_high 4"),
        (lambda: scaled(ddpm(), -1), "c is -1"),
        (lambda: final_noise(ddpm(), -0.5), "sigma_1 is -0.5"),
        (lambda: analytic(ddpm(), [-1.0]), "epsilon_power"),
    ],
)
def test_combinators_refuse(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("bad", [-0.1, float("nan"), [0.5, -0.2]])
def test_eta_refuses_what_is_not_at_least_zero(bad):
    with pytest.raises(ValueError, match=r"eta is (-0.1|nan|-0.2); it must be ≥ 0"):
        eta(bad)


WRONG = [(eta([0.1, 0.2]), "eta"), (custom([0.1] * 3), "sigma"), (custom(0.1, [0.1] * 5), "noise")]


@pytest.mark.parametrize(("schedule", "name"), WRONG)
def test_lengths_must_be_S(schedule, name, steps):
    with pytest.raises(ValueError, match=rf"{name} has shape .* each of the 4 steps"):
        schedule(steps)


@pytest.mark.parametrize("family", [eta, custom, lambda c: scaled(ddpm(), c)])
def test_a_traced_number_is_refused_in_one_sentence(family, alpha_bar):
    def width(value):
        return step_table(alpha_bar, [1, 500], family(value)).sigma.sum()

    with pytest.raises(ValueError, match="is traced, and tables are built on the host"):
        jax.grad(width)(0.5)
