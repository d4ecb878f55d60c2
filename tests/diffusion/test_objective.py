"""Targets and weights of every prediction against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ddim_jax import (
    add_noise,
    cosine_betas,
    epsilon_weights,
    linear_betas,
    q_reverse,
    zero_terminal_snr,
)
from ddim_jax.config import Config
from ddim_jax.diffusion.objective import draw_examples, loss_weights, prediction_loss


@pytest.mark.parametrize("kind", ["epsilon", "x0", "v"])
def test_targets_are_one_pair_seen_three_ways(alpha_bar, kind):
    x_0 = jax.random.normal(jax.random.key(1), (64, 2, 2, 1))
    found = draw_examples(
        x_0, alpha_bar, jax.random.key(0), kind=kind, label=np.arange(64, dtype=np.int32)
    )
    a = alpha_bar[found.t].reshape(-1, 1, 1, 1)
    epsilon = (np.asarray(found.x_t, np.float64) - np.sqrt(a) * np.asarray(x_0)) / np.sqrt(1 - a)
    expected = {
        "epsilon": epsilon,
        "x0": x_0,
        "v": np.sqrt(a) * epsilon - np.sqrt(1 - a) * np.asarray(x_0),
    }[kind]
    np.testing.assert_allclose(found.target, expected, atol=1e-3 if found.t.min() < 5 else 2e-4)
    np.testing.assert_array_equal(found.weight, np.ones(64))
    np.testing.assert_array_equal(found.label, np.arange(64))


def test_weights_reach_the_loss_by_time(alpha_bar):
    weights = np.linspace(0, 2, 1001)
    examples = draw_examples(
        jnp.zeros((256, 2, 2, 1)), alpha_bar, jax.random.key(0), weights=weights
    )
    loss = prediction_loss(lambda params, x, t, *, label=None: 0 * x, None, examples)
    square = np.mean(np.asarray(examples.target) ** 2, axis=(1, 2, 3))
    assert float(loss) == pytest.approx(np.mean(weights[np.asarray(examples.t)] * square), rel=1e-5)


def kl(alpha_bar, t, sigma, error):
    """The KL of two Gaussians with one σ and Eq. 7's means for x_0 = 0 and error, at x_t = 0."""
    before, now = alpha_bar[t - 1], alpha_bar[t]

    def mean(x_0):
        return np.sqrt(before) * x_0 + np.sqrt(max(1 - before - sigma**2, 0)) * (
            0 - np.sqrt(now) * x_0
        ) / np.sqrt(1 - now)

    return (mean(error) - mean(0.0)) ** 2 / (2 * sigma**2)


@pytest.mark.parametrize("value", [0.3, 1.0])
def test_gamma_is_the_divergence_of_the_papers_objective(alpha_bar, value):
    """In proportion, for an error of one unit of what the network predicts, at every time."""
    before, now = alpha_bar[:-1], alpha_bar[1:]
    sigma = value * np.sqrt((1 - before) / (1 - now)) * np.sqrt(1 - now / before)
    sigma[0] = np.sqrt(1 - now[0])
    errors = {"epsilon": np.sqrt((1 - now) / now), "x0": np.ones(1000), "v": np.sqrt(1 - now)}
    for kind, error in errors.items():
        found = loss_weights(alpha_bar, kind, "gamma", gamma_eta=value)
        exact = np.array([kl(alpha_bar, t, sigma[t - 1], error[t - 1]) for t in range(1, 1001)])
        assert found[0] == 0
        assert found[1:].mean() == pytest.approx(1, rel=1e-12)
        np.testing.assert_allclose(found[1:], exact / exact.mean(), rtol=1e-9)


def test_min_snr_is_the_papers_for_each_prediction(alpha_bar):
    snr = alpha_bar[1:] / (1 - alpha_bar[1:])
    clipped = np.minimum(5, snr)
    cases = {"epsilon": clipped / snr, "x0": clipped, "v": clipped / (snr + 1)}
    for kind, expected in cases.items():
        np.testing.assert_allclose(
            loss_weights(alpha_bar, kind, "min-snr")[1:], expected, rtol=1e-12
        )
    assert loss_weights(alpha_bar, "x0", "min-snr", min_snr_gamma=2.0).max() == 2
    np.testing.assert_array_equal(loss_weights(alpha_bar)[1:], np.ones(1000))


@pytest.mark.parametrize("scheme", ["constant", "min-snr", "gamma"])
def test_weights_are_finite_with_zero_terminal_snr(scheme):
    bars = zero_terminal_snr(np.concatenate([[1], np.cumprod(1 - cosine_betas(1000))]))
    for kind in ("x0", "v"):
        weights = loss_weights(bars, kind, scheme)
        assert np.all(np.isfinite(weights))
        assert np.all(weights >= 0)
    with pytest.raises(ValueError, match="alpha_bar_t is 0"):
        loss_weights(bars, "epsilon", scheme)
    with pytest.raises(ValueError, match="scheme is 'snr'"):
        loss_weights(bars, "v", "snr")
    assert linear_betas(1000)[-1] < 1


@settings(max_examples=30, deadline=None)
@given(st.floats(0.01, 0.9), st.floats(0.01, 0.99), st.floats(0.01, 0.999), *[st.floats(-3, 3)] * 3)
def test_the_weights_of_the_objective_are_the_kl_of_the_reverse_steps(
    alpha_bar_t, between, share, x_0, epsilon, predicted
):
    """Theorem 1: the KL of two q_σ(x_s | x_t, ·) is γ (ε_θ − ε)², from the two Gaussians."""
    alpha_bar_s = alpha_bar_t + (0.995 - alpha_bar_t) * between
    sigma = np.sqrt(share * (1 - alpha_bar_s))
    with jax.enable_x64(True):
        x_0, epsilon, predicted = (
            jnp.asarray([value], jnp.float64) for value in (x_0, epsilon, predicted)
        )
        x_t = add_noise(x_0, epsilon, alpha_bar_t)
        f = (x_t - np.sqrt(1 - alpha_bar_t) * predicted) / np.sqrt(alpha_bar_t)
        true, model = (q_reverse(x_t, x, alpha_bar_t, alpha_bar_s, sigma).mean for x in (x_0, f))
        kl = (true - model) ** 2 / (2 * sigma**2)
        gamma = epsilon_weights(alpha_bar_t, alpha_bar_s, sigma)
        np.testing.assert_allclose(gamma * (predicted - epsilon) ** 2, kl, rtol=1e-6, atol=1e-12)


def test_the_weights_at_the_last_step_and_of_a_deterministic_one(float64):
    # At s = 0 the means are x_0 and f_θ themselves, with the paper's σ_1.
    np.testing.assert_allclose(
        epsilon_weights(0.64, 1.0, 0.1), (0.36 / 0.64) / (2 * 0.01), rtol=1e-12
    )
    assert np.isinf(epsilon_weights(0.5, 0.8, 0.0))
    assert epsilon_weights(
        np.array([0.2, 0.5]), np.array([0.5, 0.8]), np.array([0.1, 0.1])
    ).shape == (2,)


def test_the_default_is_the_papers():
    assert (
        Config().diffusion.prediction,
        Config().train.loss_weight,
        Config().model.num_classes,
    ) == ("epsilon", "constant", 0)
