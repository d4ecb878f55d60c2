"""Properties of q_σ by the paper's definitions, through densities and moments, not its formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ddim_jax import add_noise, q_forward, q_marginal, q_reverse


def log_density(gaussian, x):
    return (
        -0.5 * ((x - gaussian.mean) / gaussian.std) ** 2
        - jnp.log(gaussian.std)
        - 0.5 * np.log(2 * np.pi)
    )


# ᾱ_t < ᾱ_s, and σ² as a share of its range (0, 1 − ᾱ_s]
steps = st.tuples(st.floats(0.01, 0.9), st.floats(0.01, 0.99), st.floats(0.01, 0.999)).map(
    lambda v: (v[0], v[0] + (0.995 - v[0]) * v[1], v[2])
)
numbers = st.floats(-3, 3)


@settings(max_examples=40, deadline=None)
@given(steps, numbers, numbers, numbers)
def test_forward_and_reverse_are_one_joint_distribution(step, x_0, x_s, x_t):
    alpha_bar_t, alpha_bar_s, share = step
    sigma = np.sqrt(share * (1 - alpha_bar_s))
    with jax.enable_x64(True):
        x_0, x_s, x_t = (jnp.asarray([value], jnp.float64) for value in (x_0, x_s, x_t))
        forward = log_density(
            q_forward(x_s, x_0, alpha_bar_t, alpha_bar_s, sigma), x_t
        ) + log_density(q_marginal(x_0, alpha_bar_s), x_s)
        reverse = log_density(
            q_reverse(x_t, x_0, alpha_bar_t, alpha_bar_s, sigma), x_s
        ) + log_density(q_marginal(x_0, alpha_bar_t), x_t)
        np.testing.assert_allclose(forward, reverse, rtol=1e-8, atol=1e-8)


@settings(max_examples=40, deadline=None)
@given(steps, numbers)
def test_every_sigma_keeps_the_marginals(step, x_0):
    alpha_bar_t, alpha_bar_s, share = step
    sigma = np.sqrt(share * (1 - alpha_bar_s))
    with jax.enable_x64(True):
        x_0 = jnp.asarray([x_0], jnp.float64)
        at_t, at_s = q_marginal(x_0, alpha_bar_t), q_marginal(x_0, alpha_bar_s)

        def mean(x_t):
            return q_reverse(x_t, x_0, alpha_bar_t, alpha_bar_s, sigma).mean

        gain = jax.jacobian(mean)(at_t.mean)[0, 0]  # the mean is affine in x_t
        np.testing.assert_allclose(mean(at_t.mean), at_s.mean, atol=1e-12)
        np.testing.assert_allclose((gain * at_t.std) ** 2 + sigma**2, at_s.std**2, rtol=1e-10)


def test_eta_one_is_ddpm(alpha_bar, float64):
    s, t = 400, 401
    beta = 1 - alpha_bar[t] / alpha_bar[s]
    sigma = np.sqrt((1 - alpha_bar[s]) / (1 - alpha_bar[t]) * beta)
    x, here, there = jnp.full((1,), 0.7), jnp.full((1,), -1.0), jnp.full((1,), 1.0)
    # Markovian: the forward step is DDPM's transition, whatever x_0 is.
    for x_0 in (here, there):
        forward = q_forward(x, x_0, alpha_bar[t], alpha_bar[s], sigma)
        np.testing.assert_allclose(forward.mean, np.sqrt(1 - beta) * x, rtol=1e-10)
        np.testing.assert_allclose(forward.std**2, beta, rtol=1e-10)
    # The reverse step is DDPM's posterior (arXiv:2006.11239, Eq. 6 and 7).
    mean = (
        np.sqrt(alpha_bar[s]) * beta / (1 - alpha_bar[t]) * here
        + np.sqrt(1 - beta) * (1 - alpha_bar[s]) / (1 - alpha_bar[t]) * x
    )
    np.testing.assert_allclose(
        q_reverse(x, here, alpha_bar[t], alpha_bar[s], sigma).mean, mean, rtol=1e-10
    )
    # With less noise the forward process depends on x_0.
    means = [q_forward(x, x_0, alpha_bar[t], alpha_bar[s], sigma / 2).mean for x_0 in (here, there)]
    assert abs(means[0] - means[1])[0] > 1e-3


def test_one_coefficient_per_image():
    x_0, noise = jnp.ones((2, 3, 3, 1)), jnp.full((2, 3, 3, 1), 2.0)
    both = add_noise(x_0, noise, jnp.array([0.36, 0.64]))
    for i, value in enumerate([0.36, 0.64]):
        np.testing.assert_allclose(both[i], add_noise(x_0[i], noise[i], value), rtol=1e-6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: add_noise(jnp.ones((2, 1)), jnp.ones((2,)), 0.5), "shape"),
        (lambda: q_reverse(jnp.ones(1), jnp.ones(1), 0.2, 0.5, 0.8), "sigma is 0.8.*0.5"),
        (lambda: q_reverse(jnp.ones(1), jnp.ones(1), 0.2, 0.5, -0.1), "sigma is -0.1"),
        (lambda: q_forward(jnp.ones(1), jnp.ones(1), 0.2, 1.0, 0.0), "s = 0"),
    ],
)
def test_refusals(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_the_root_has_a_finite_gradient_where_it_vanishes():
    def loss(sigma):
        return q_reverse(
            jnp.ones(1), jnp.zeros(1), jnp.float32(0.2), jnp.float32(0.75), sigma
        ).mean.sum()

    assert np.isfinite(jax.grad(jax.jit(loss))(0.5))  # σ² = 1 − ᾱ_s
    assert float(jax.grad(loss)(0.3)) == pytest.approx(
        float(loss(0.301) - loss(0.299)) / 0.002, rel=1e-2
    )
