import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddim_jax import (
    Denoiser,
    Prediction,
    add_noise,
    alpha_bars,
    clip_x0,
    denoiser,
    dynamic_threshold,
    eta,
    guided,
    image_keys,
    jsd_betas,
    sample,
    sample_many,
    stack_tables,
    step_table,
    trailing_timesteps,
    uniform_timesteps,
    zero_terminal_snr,
)  # fmt: skip
from ddim_jax.diffusion.prediction import PREDICTIONS
from ddim_jax.training import epsilon_loss


def test_the_denoiser_recovers_x_0_and_knows_the_offset_of_time(alpha_bar):
    x_0 = jax.random.normal(jax.random.key(0), (3, 4, 4, 1))
    noise = jax.random.normal(jax.random.key(1), x_0.shape)
    t = jnp.array([1, 500, 900])
    seen = []

    def apply(params, x, time):
        seen.append(time)
        return params

    prediction = denoiser(apply, noise, alpha_bar)(
        add_noise(x_0, noise, alpha_bar[np.asarray(t)].astype(np.float32)), t
    )
    np.testing.assert_array_equal(seen[0], [0, 499, 899])  # the network counts from 0
    np.testing.assert_array_equal(prediction.epsilon, noise)
    np.testing.assert_allclose(prediction.x_0, x_0, atol=1e-4)


@pytest.mark.parametrize("rederive", [False, True])
def test_clipping(alpha_bar, rederive):
    x_t, t = jnp.array([[3.0, 0.1]]), jnp.array([100])
    plain = denoiser(lambda params, x, time: 0.5 * x, None, alpha_bar)
    before, after = plain(x_t, t), clip_x0(plain, rederive_epsilon=rederive)(x_t, t)
    np.testing.assert_allclose(after.x_0, np.clip(before.x_0, -1, 1))
    assert before.x_0.max() > 1
    if rederive:  # the pair explains x_t again
        np.testing.assert_allclose(
            add_noise(after.x_0, after.epsilon, alpha_bar[100]), x_t, rtol=1e-5
        )
        assert abs(after.epsilon - before.epsilon)[0, 0] > 0.1
    else:
        np.testing.assert_array_equal(after.epsilon, before.epsilon)


def test_a_denoiser_is_a_frozen_record_that_wrappers_keep(alpha_bar):
    denoise = denoiser(lambda params, x, t: 0.5 * x, None, alpha_bar, "x_0")
    assert denoise.alpha_bar is alpha_bar
    assert denoise.kind == "x0"
    with pytest.raises(dataclasses.FrozenInstanceError):
        denoise.kind = "v"
    x, t = jnp.ones((1, 2)), jnp.array([9])
    jax.tree.map(np.testing.assert_array_equal, denoise(x, t), denoise.call(x, t))
    jax.tree.map(np.testing.assert_array_equal, jax.jit(denoise)(x, t), denoise(x, t))
    plain = lambda x, t: Prediction(x, x)  # noqa: E731
    for wrap in (clip_x0, lambda d: dynamic_threshold(d, 99), lambda d: guided(d, plain, 2.0)):
        wrapped = wrap(denoise)
        assert isinstance(wrapped, Denoiser)
        assert (wrapped.alpha_bar is alpha_bar, wrapped.kind) == (True, "x0")
        assert (wrap(plain).alpha_bar, wrap(plain).kind) == (None, None)
    assert (Denoiser(plain).alpha_bar, Denoiser(plain).kind) == (None, None)


@pytest.mark.parametrize("kind", PREDICTIONS)
def test_errors_of_every_prediction_are_proportional_to_those_of_x_0(kind, alpha_bar, float64):
    x_0, epsilon, error = (jax.random.normal(jax.random.key(i), (3, 4)) for i in range(3))
    t = np.array([20, 500, 900])
    signal, noise = np.sqrt(alpha_bar[t])[:, None], np.sqrt(1 - alpha_bar[t])[:, None]
    x_t, found = signal * x_0 + noise * epsilon, PREDICTIONS[kind]
    y = found.target(x_0, epsilon, signal, noise)
    of_x_0 = np.sum((found.pair(x_t, y + error, signal, noise).x_0 - x_0) ** 2, axis=1)
    ratio = found.x_0_error(alpha_bar[t])
    np.testing.assert_allclose(of_x_0, ratio * np.sum(error**2, axis=1), rtol=1e-6)


def test_wrappers_stack_and_take_alpha_bar_from_the_caller_too(alpha_bar):
    own = lambda x, t: Prediction(2 * x, x)  # noqa: E731
    with pytest.raises(ValueError, match="pass alpha_bar="):
        clip_x0(own, rederive_epsilon=True)
    wrapped = clip_x0(clip_x0(own), rederive_epsilon=True, alpha_bar=alpha_bar)
    assert wrapped(jnp.ones((1, 2)), jnp.array([10])).epsilon.shape == (1, 2)


def test_refusals(alpha_bar):
    with pytest.raises(ValueError, match="'score'"):
        denoiser(lambda params, x, t: x, None, alpha_bar, kind="score")
    with pytest.raises(ValueError, match=r"\(1, 3\) for x_t of shape \(1, 2\)"):
        denoiser(lambda params, x, t: jnp.ones((1, 3)), None, alpha_bar)(
            jnp.ones((1, 2)), jnp.array([1])
        )


@pytest.mark.parametrize("kind", ["epsilon", "x0", "x_0", "v"])
def test_a_network_that_is_right_gives_the_true_pair_whatever_it_predicts(kind, alpha_bar):
    x_0, noise = (jax.random.normal(jax.random.key(i), (3, 4, 4, 1)) for i in range(2))
    t = jnp.array([20, 500, 900])
    a = jnp.asarray(alpha_bar, jnp.float32)[t].reshape(3, 1, 1, 1)
    target = {"epsilon": noise, "v": jnp.sqrt(a) * noise - jnp.sqrt(1 - a) * x_0}.get(kind, x_0)
    prediction = denoiser(lambda params, x, time: target, None, alpha_bar, kind)(
        add_noise(x_0, noise, a[:, 0, 0, 0]), t
    )
    np.testing.assert_allclose(prediction.x_0, x_0, atol=2e-5)
    np.testing.assert_allclose(prediction.epsilon, noise, atol=2e-5)


def test_dynamic_threshold_against_numpy():
    x = jax.random.normal(jax.random.key(0), (3, 5, 5, 1)) * jnp.array([0.2, 2.0, 5.0]).reshape(
        3, 1, 1, 1
    )
    out = dynamic_threshold(lambda x, t: Prediction(x, 2 * x), 90)(x, jnp.ones(3, int))
    for i in range(3):
        s = max(1, np.percentile(np.abs(x[i]), 90))
        np.testing.assert_allclose(out.x_0[i], np.clip(x[i], -s, s) / s, rtol=1e-5)
    np.testing.assert_array_equal(out.epsilon, 2 * x)
    with pytest.raises(ValueError, match="percentile is 0"):
        dynamic_threshold(lambda x, t: Prediction(x, x), 0)


def test_guidance(alpha_bar):
    x, t = jax.random.normal(jax.random.key(0), (2, 3, 3, 1)), jnp.array([100, 600])
    conditional, unconditional = (
        denoiser(lambda params, x, time, k=k: jnp.sin(k * x), None, alpha_bar) for k in (1, 2)
    )
    both = [
        guided(conditional, unconditional, scale)(x, t)
        for scale in (0.0, 1.0, jnp.array([0.0, 1.0]))
    ]
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), both[0], unconditional(x, t)
    )
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), both[1], conditional(x, t)
    )
    np.testing.assert_allclose(both[2].epsilon[1], conditional(x, t).epsilon[1], atol=1e-6)
    strong = guided(conditional, unconditional, 3.0)(x, t)  # still a pair that explains x_t
    np.testing.assert_allclose(
        add_noise(strong.x_0, strong.epsilon, alpha_bar[np.asarray(t)].astype(np.float32)),
        x,
        atol=1e-5,
    )


@pytest.mark.parametrize(
    "alpha_bar_zero",
    [zero_terminal_snr(alpha_bars(np.linspace(1e-4, 0.02, 1000))), alpha_bars(jsd_betas())],
)
def test_epsilon_is_refused_only_where_there_is_no_signal(alpha_bar_zero):
    keys, x = image_keys(0, [0]), jnp.ones((1, 2, 2, 1))
    network = lambda params, x, t: 0.5 * x  # noqa: E731
    bad, good = (
        step_table(alpha_bar_zero, tau(1000, 4), eta(0.5))
        for tau in (trailing_timesteps, uniform_timesteps)
    )
    denoise = denoiser(network, None, alpha_bar_zero)
    for wrapped in (
        denoise,
        clip_x0(denoise),
        guided(denoise, denoise, 2.0),
        dynamic_threshold(denoise, 99),
    ):
        with pytest.raises(ValueError, match=r"alpha_bar_t is 0 .* ε tells nothing"):
            sample(wrapped, x, bad, keys)
    with pytest.raises(ValueError, match="alpha_bar_t is 0"):
        sample_many(denoise, x, stack_tables([good, bad]), keys)
    with pytest.raises(ValueError, match="alpha_bar_t is 0"):
        epsilon_loss(network, None, x, alpha_bar_zero, jax.random.key(0))
    assert np.isfinite(sample(denoise, x, good, keys)).all()
    for kind in ("v", "x0"):
        assert np.isfinite(
            sample(denoiser(network, None, alpha_bar_zero, kind), x, bad, keys)
        ).all()
