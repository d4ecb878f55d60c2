import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddim_jax import (
    Prediction,
    alpha_bars,
    encode,
    eta,
    gaussian_oracle,
    image_keys,
    initial_noise,
    linear_betas,
    sample,
    sigma_hat,
    slerp,
    stack_tables,
    step_table,
    trailing_timesteps,
    uniform_timesteps,
)  # fmt: skip


def test_encode_is_the_paper_update_with_s_and_t_exchanged(alpha_bar):
    """Against a loop in float64, for a function that is no oracle."""
    tau = uniform_timesteps(1000, 7)
    table = step_table(alpha_bar, tau, sigma_hat())  # its σ must not matter

    def network(x, t):
        return 0.7 * np.sqrt(1 - alpha_bar[t]) * x + 0.2 * np.sin(2 * x + t / 300)

    def denoise(x, t):
        t = t.reshape(-1, 1)
        return Prediction(
            0 * x,
            0.7 * jnp.sqrt(1 - jnp.asarray(alpha_bar)[t]) * x + 0.2 * jnp.sin(2 * x + t / 300),
        )

    x_0 = np.linspace(-1, 1, 6).reshape(2, 3)
    x = x_0
    for s, t in zip([0, *tau[:-1]], tau, strict=True):
        eps = network(x, max(s, 1))
        f = (x - np.sqrt(1 - alpha_bar[s]) * eps) / np.sqrt(alpha_bar[s])
        x = np.sqrt(alpha_bar[t]) * f + np.sqrt(1 - alpha_bar[t]) * eps
    np.testing.assert_allclose(encode(denoise, jnp.asarray(x_0, jnp.float32), table), x, rtol=1e-4)
    # The rows up to a time in between and those from it: a row knows where it goes.
    upper, lower = (
        jax.tree.map(lambda leaf, part=part: leaf[part], table) for part in (slice(3), slice(3, 7))
    )
    halfway = encode(denoise, jnp.asarray(x_0, jnp.float32), lower)
    np.testing.assert_allclose(encode(denoise, halfway, upper), x, rtol=1e-4)
    # Repeats are skipped, as in the official sequences.
    repeated = step_table(alpha_bar, np.sort([*tau, *tau[2:4]]), eta(0.0), allow_repeats=True)
    assert np.sum(~repeated.active) == 2
    np.testing.assert_allclose(
        encode(denoise, jnp.asarray(x_0, jnp.float32), repeated), x, rtol=1e-4
    )
    # Padding is skipped, and the last true row still goes down to 0.
    longer = step_table(alpha_bar, uniform_timesteps(1000, 9), eta(0.0))
    padded = jax.tree.map(lambda leaf: leaf[0], stack_tables([table, longer]))
    np.testing.assert_allclose(encode(denoise, jnp.asarray(x_0, jnp.float32), padded), x, rtol=1e-4)


def test_decoding_what_was_encoded_tends_to_the_image_at_first_order(float64):
    """Two Euler methods for one smooth ODE: the error of the round trip halves when S doubles."""
    alpha_bar = alpha_bars(linear_betas(4000, 1e-4 / 4, 0.02 / 4))
    denoise = gaussian_oracle(np.array([0.3, -0.2, 0.1]), np.diag([0.2, 0.6, 1.5]), alpha_bar)
    x_0 = jnp.asarray(np.random.default_rng(0).normal(size=(5, 3)))
    errors = []
    for S in (125, 250, 500, 1000, 2000):
        table = step_table(alpha_bar, trailing_timesteps(4000, S), eta(0.0))
        back = sample(denoise, encode(denoise, x_0, table), table, image_keys(0, range(5)))
        errors.append(float(jnp.sqrt(jnp.mean((back - x_0) ** 2))))
    ratios = np.array(errors[:-1]) / errors[1:]
    assert np.all((ratios > 1.7) & (ratios < 2.3)), ratios
    assert errors[-1] < 5e-3


def test_slerp_keeps_the_norm_of_noise_and_its_ends():
    a, b = (initial_noise(image_keys(seed, range(3)), (8, 8, 1)) for seed in (0, 1))
    np.testing.assert_allclose(slerp(a, b, 0.0), a, atol=1e-6)
    np.testing.assert_allclose(slerp(a, b, 1.0), b, atol=1e-6)
    half = slerp(a, b, 0.5)
    np.testing.assert_allclose(slerp(b, a, 0.5), half, atol=1e-5)
    norm = lambda x: np.linalg.norm(np.asarray(x).reshape(3, -1), axis=1)  # noqa: E731
    assert np.all(norm(half) > 0.95 * np.minimum(norm(a), norm(b)))
    assert np.all(norm((a + b) / 2) < 0.85 * norm(a))  # which a straight line does not
    # On a unit circle: the angle is divided in the ratio of the weight.
    angle = np.array([0.3, 2.0])
    unit = lambda phi: jnp.stack([jnp.cos(phi), jnp.sin(phi)], axis=1)  # noqa: E731
    between = slerp(unit(jnp.zeros(2)), unit(jnp.asarray(angle)), jnp.array([0.25, 0.5]))
    np.testing.assert_allclose(between, unit(jnp.asarray(angle * [0.25, 0.5])), atol=1e-6)


def test_slerp_at_parallel_inputs():
    a = jnp.array([[1.0, 2.0], [0.0, 0.0], [1.0, 0.0]])
    b = jnp.array([[2.0, 4.0], [0.0, 0.0], [-1.0, 0.0]])  # parallel, both zero, opposite
    np.testing.assert_allclose(slerp(a, a, 0.3), a, atol=1e-6)
    np.testing.assert_allclose(slerp(a, b, 0.25), [[1.25, 2.5], [0, 0], [0.5, 0]], atol=1e-5)
    assert np.isfinite(jax.grad(lambda x: slerp(x, b, 0.25).sum())(jnp.ones((3, 2)))).all()


def test_refusals(alpha_bar):
    table = step_table(alpha_bar, [1, 2], eta(0.0))
    with pytest.raises(ValueError, match=r"must be \(S,\)"):
        encode(lambda x, t: Prediction(x, x), jnp.ones((1, 2)), stack_tables([table]))
    with pytest.raises(ValueError, match="must be equal"):
        slerp(jnp.ones((1, 2)), jnp.ones((2, 2)), 0.5)
