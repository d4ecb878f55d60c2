import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddim_jax import Prediction, add_noise, clip_x0, denoiser


def test_the_denoiser_recovers_x_0_and_knows_the_offset_of_time(alpha_bar):
    x_0 = jax.random.normal(jax.random.key(0), (3, 4, 4, 1))
    noise = jax.random.normal(jax.random.key(1), x_0.shape)
    t = jnp.array([1, 500, 900])
    seen = []

    def apply(params, x, time):
        seen.append(time)
        return params

    prediction = denoiser(apply, noise, alpha_bar)(add_noise(x_0, noise, alpha_bar[np.asarray(t)].astype(np.float32)), t)
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
        np.testing.assert_allclose(add_noise(after.x_0, after.epsilon, alpha_bar[100]), x_t, rtol=1e-5)
        assert abs(after.epsilon - before.epsilon)[0, 0] > 0.1
    else:
        np.testing.assert_array_equal(after.epsilon, before.epsilon)


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
        denoiser(lambda params, x, t: jnp.ones((1, 3)), None, alpha_bar)(jnp.ones((1, 2)), jnp.array([1]))
