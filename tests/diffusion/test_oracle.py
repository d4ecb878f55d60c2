"""The exact denoisers, against formulas that they do not use."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.linalg
import scipy.stats

from ddim_jax import (
    empirical_oracle,
    eta,
    gaussian_oracle,
    image_keys,
    initial_noise,
    mixture_oracle,
    sample,
    step_table,
    trailing_timesteps,
)  # fmt: skip


def test_gaussian_oracle_against_the_joint_covariance(gaussian, alpha_bar, float64):
    mean, covariance = gaussian
    denoise = gaussian_oracle(mean.reshape(2, 2, 1), covariance, alpha_bar)
    x = np.random.default_rng(1).normal(size=(3, 2, 2, 1))
    t = np.array([1, 400, 1000])
    prediction = denoise(jnp.asarray(x), jnp.asarray(t))
    for i in range(3):
        a = alpha_bar[t[i]]
        of_x_t = a * covariance + (1 - a) * np.eye(4)
        residual = np.linalg.solve(of_x_t, x[i].ravel() - np.sqrt(a) * mean)
        np.testing.assert_allclose(
            prediction.x_0[i].ravel(), mean + np.sqrt(a) * covariance @ residual, atol=1e-9
        )
        np.testing.assert_allclose(
            np.sqrt(a) * prediction.x_0[i] + np.sqrt(1 - a) * prediction.epsilon[i], x[i], atol=1e-9
        )


@pytest.mark.parametrize("std", [0.3, [0.1, 0.5, 0.0]])
def test_mixture_oracle_against_numerical_integration(std, alpha_bar, float64):
    weights, means = np.array([0.2, 0.5, 0.3]), np.array([-0.8, 0.1, 0.9])
    denoise = mixture_oracle(5 * weights, means[:, None], std, alpha_bar)
    deviations = np.maximum(np.broadcast_to(std, 3), 1e-3)
    grid = np.linspace(-4, 4, 400_001)
    density = sum(
        w * scipy.stats.norm.pdf(grid, m, s)
        for w, m, s in zip(weights, means, deviations, strict=True)
    )
    for t, x in [(300, -0.4), (300, 1.2), (900, 0.3)]:
        posterior = density * scipy.stats.norm.pdf(
            x, np.sqrt(alpha_bar[t]) * grid, np.sqrt(1 - alpha_bar[t])
        )
        expected = scipy.integrate.trapezoid(posterior * grid, grid) / scipy.integrate.trapezoid(
            posterior, grid
        )
        prediction = denoise(jnp.full((1, 1), x), jnp.array([t]))
        assert float(prediction.x_0[0, 0]) == pytest.approx(expected, abs=2e-5)
        a = alpha_bar[t]
        assert float(
            np.sqrt(a) * prediction.x_0[0, 0] + np.sqrt(1 - a) * prediction.epsilon[0, 0]
        ) == pytest.approx(x)


@pytest.mark.parametrize("chunk_size", [1, 7, 10, 64])
def test_empirical_oracle_against_a_float64_softmax_in_any_chunks(chunk_size, alpha_bar):
    rng = np.random.default_rng(0)
    data = rng.uniform(-1, 1, (20, 4, 4, 1)).astype(np.float32)
    denoise = jax.jit(empirical_oracle(data, alpha_bar, chunk_size=chunk_size))
    for t in (1, 50, 500, 1000):
        a = alpha_bar[t]
        x = (np.sqrt(a) * data[:3] + np.sqrt(1 - a) * rng.normal(size=(3, 4, 4, 1))).astype(
            np.float32
        )
        log_r = -np.sum(
            (x[:, None].astype(float) - np.sqrt(a) * data[None]) ** 2, axis=(2, 3, 4)
        ) / (2 * (1 - a))
        expected = np.einsum("bn,nhwc->bhwc", scipy.special.softmax(log_r, axis=1), data)
        np.testing.assert_allclose(denoise(x, jnp.full(3, t)).x_0, expected, atol=3e-4)


def test_empirical_oracle_is_a_mixture_of_points_and_samples_its_data(alpha_bar):
    data = np.random.default_rng(0).uniform(-1, 1, (30, 4, 4, 1)).astype(np.float32)
    x, t = jax.random.normal(jax.random.key(0), (2, 4, 4, 1)), jnp.array([600, 900])
    points = mixture_oracle(np.ones(30), data, 0.0, alpha_bar)(x, t)
    np.testing.assert_allclose(
        empirical_oracle(data, alpha_bar, chunk_size=8)(x, t).x_0, points.x_0, atol=1e-4
    )
    table = step_table(alpha_bar, trailing_timesteps(1000, 250), eta(0.0))
    keys = image_keys(0, range(16))
    images = jax.jit(lambda x: sample(empirical_oracle(data, alpha_bar), x, table, keys))(
        initial_noise(keys, (4, 4, 1))
    )
    nearest = np.abs(np.asarray(images)[:, None] - data[None]).max(axis=(2, 3, 4)).min(axis=1)
    assert np.mean(nearest < 0.02) > 0.9


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: gaussian_oracle([0.0], np.eye(2), [1.0, 0.5]),
            r"covariance has shape \(2, 2\) for a mean of 1",
        ),
        (lambda: gaussian_oracle([0.0, 0.0], np.diag([1.0, -1.0]), [1.0, 0.5]), "smallest is -1"),
        (
            lambda: gaussian_oracle([0.0, 0.0], np.array([[1.0, 0.5], [0.0, 1.0]]), [1.0, 0.5]),
            "symmetric",
        ),
        (lambda: mixture_oracle([1.0, 0.0], np.zeros((2, 1)), 0.1, [1.0, 0.5]), "weights"),
        (lambda: mixture_oracle([1.0], np.zeros((1, 1)), -0.1, [1.0, 0.5]), "std"),
        (lambda: empirical_oracle(np.zeros((0, 2), np.float32), [1.0, 0.5]), "data has 0 images"),
    ],
)
def test_refusals(call, message):
    with pytest.raises(ValueError, match=message):
        call()
