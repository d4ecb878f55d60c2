"""The density of the ODE, against exact ones."""

import math

import jax
import numpy as np
import pytest
import scipy.stats

from ddim_jax import (
    gaussian_oracle,
    image_keys,
    mixture_oracle,
    ode_log_likelihood,
)


@pytest.mark.parametrize("T", [1000, 999])
def test_ode_has_the_exact_density_of_gaussian_data(T, alpha_bar, float64):
    rng = np.random.default_rng(0)
    vectors, _ = np.linalg.qr(rng.normal(size=(4, 4)))
    covariance = (vectors * [0.05, 0.1, 0.4, 1.0]) @ vectors.T
    x_0 = rng.multivariate_normal(np.zeros(4), covariance, 64)
    bars = alpha_bar[: T + 1]
    denoise, keys = gaussian_oracle(np.zeros(4), covariance, bars), image_keys(0, np.arange(64))
    exact = scipy.stats.multivariate_normal(np.zeros(4), covariance).logpdf(x_0)

    def error(**options):
        compute = jax.jit(lambda x_0: ode_log_likelihood(denoise, x_0, bars, keys, **options))
        return (compute(x_0) - exact) / (4 * math.log(2))

    assert np.abs(error(trace="exact")).max() < 1e-3
    if T == 1000:
        estimated = error(stride=10)
        assert estimated.std() > 0.01
        assert abs(estimated.mean()) < 4 * estimated.std() / 8


def test_ode_has_the_exact_density_of_a_mixture(alpha_bar, float64):
    weights, means, std = [0.3, 0.7], [[-0.84], [0.36]], [0.3, 0.5]  # of mean 0, as x_T is
    x_0 = np.linspace(-2, 2, 21)[:, None]
    denoise = mixture_oracle(weights, means, std, alpha_bar)
    found = ode_log_likelihood(denoise, x_0, alpha_bar, image_keys(0, np.arange(21)))
    density = sum(
        w * scipy.stats.norm(m[0], s).pdf(x_0[:, 0])
        for w, m, s in zip(weights, means, std, strict=True)
    )
    np.testing.assert_allclose(found, np.log(density), atol=1e-3)


def test_ode_of_zero_terminal_snr_ends_before_t(alpha_bar, float64):
    bars = np.array(alpha_bar)
    bars[-1] = 0
    x_0 = np.array([[0.3]])
    found = ode_log_likelihood(gaussian_oracle([0.0], [[0.5]], bars), x_0, bars, image_keys(0, [0]))
    exact = scipy.stats.norm(0, math.sqrt(0.5)).logpdf(0.3)
    assert found.item() == pytest.approx(exact, abs=1e-3)


def test_refusals(alpha_bar):
    denoise = gaussian_oracle([0.0], [[1.0]], alpha_bar)
    x_0, keys = np.zeros((1, 1)), image_keys(0, [0])
    with pytest.raises(ValueError, match="trace is 'hutch'"):
        ode_log_likelihood(denoise, x_0, alpha_bar, keys, trace="hutch")
    for stride in (0, 3):
        with pytest.raises(ValueError, match=f"stride is {stride}"):
            ode_log_likelihood(denoise, x_0, alpha_bar, keys, stride=stride)
    with pytest.raises(ValueError, match="give one key per image"):
        ode_log_likelihood(denoise, x_0, alpha_bar, image_keys(0, [0, 1]))
