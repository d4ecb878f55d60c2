"""Tables as parameters: their limits hold by construction, and gradients are right."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddim_jax import (
    adams,
    eta,
    image_keys,
    initial_noise,
    kl_gaussian,
    mixture_oracle,
    propagate_gaussian,
    quadratic_timesteps,
    sample,
    sigma_hat,
    step_table,
    wasserstein2_gaussian,
)
from ddim_jax.diffusion.learned import PARTS, learned_table, table_parameters
from ddim_jax.diffusion.moments import gaussian_errors
from ddim_jax.diffusion.prediction import Denoiser, clip_x0
from ddim_jax.diffusion.sigmas import custom
from ddim_jax.diffusion.solvers import Correction


@pytest.fixture(scope="module")
def base(alpha_bar):
    return step_table(alpha_bar, quadratic_timesteps(1000, 5), eta(1.0), adams(2))


def test_parameters_give_their_table(base):
    """Exactly where σ and noise are above the least, and with more predictions than it has."""
    table = learned_table(base, table_parameters(base, PARTS, 4))
    inner = np.asarray(base.sigma) > 0.05 * np.sqrt(1 - base.alpha_bar_s)
    assert inner.sum() >= 3
    np.testing.assert_allclose(np.asarray(table.sigma)[inner], base.sigma[inner], rtol=1e-5)
    np.testing.assert_allclose(np.asarray(table.noise)[inner], base.noise[inner], rtol=1e-5)
    np.testing.assert_allclose(table.x_0_correction[:, :2], base.x_0_correction, atol=1e-6)
    assert not np.any(table.x_0_correction[:, 2:])
    only = learned_table(base, table_parameters(base, ["correction"], 2))
    np.testing.assert_array_equal(only.sigma, base.sigma)
    np.testing.assert_array_equal(only.noise, base.noise)
    parameters = table_parameters(base, ["sigma"], 1)
    tied = learned_table(base, parameters._replace(u=0.7 * parameters.u))
    assert not np.any(tied.noise[:-1] == base.noise[:-1])
    np.testing.assert_array_equal(tied.noise[:-1], tied.sigma[:-1])
    assert tied.noise[-1] == base.noise[-1] == 0
    np.testing.assert_array_equal(tied.x_0_correction, base.x_0_correction)


@pytest.mark.parametrize("seed", range(3))
def test_any_parameters_give_a_table_that_is_accepted(base, alpha_bar, seed, float64):
    rng = np.random.default_rng(seed)
    first = table_parameters(base, PARTS, 4)
    wild = jax.tree.map(lambda leaf: 5 * rng.standard_normal(leaf.shape), first)
    table = learned_table(base, wild)
    correction = Correction(*map(np.asarray, table[-2:]))
    again = step_table(
        alpha_bar, base.t[::-1], custom(table.sigma, table.noise), lambda *_: correction
    )
    np.testing.assert_allclose(again.sigma, table.sigma)
    assert np.all(table.noise > 0)
    assert np.all(np.isfinite(table.epsilon_correction))


def test_refusals(base):
    with pytest.raises(ValueError, match=r"parts are \['times'\]; choose one or more of sigma"):
        table_parameters(base, ["times"], 2)
    with pytest.raises(ValueError, match="order is 0"):
        table_parameters(base, ["correction"], 0)


def test_exact_errors_are_those_of_the_propagated_gaussian(alpha_bar, float64):
    root = np.random.default_rng(0).normal(size=(3, 3))
    mean, covariance = np.array([0.5, -0.3, 0.2]), root @ root.T / 3 + 0.1 * np.eye(3)
    errors = jax.jit(gaussian_errors(mean, covariance, alpha_bar))
    for schedule, solver in ((eta(0.0), adams(3)), (sigma_hat(), adams(3)), (eta(0.7), adams(1))):
        table = step_table(alpha_bar, quadratic_timesteps(1000, 7), schedule, solver)
        output = propagate_gaussian(mean, covariance, alpha_bar, table)
        found = errors(table)
        exact = (
            *wasserstein2_gaussian(*output, mean, covariance),
            kl_gaussian(*output, mean, covariance),
        )
        np.testing.assert_allclose(found, exact, rtol=1e-6, atol=1e-12)


def test_gradients_agree_with_finite_differences(base, alpha_bar, float64):
    """For every leaf, through clipping and a network that is called again on the way back."""
    oracle = mixture_oracle([0.4, 0.6], [[0.9, -0.9], [-0.8, 0.7]], 0.3, alpha_bar)
    keys = image_keys(0, np.arange(4))
    x_T = initial_noise(keys, (2,)).astype(np.float64)
    clipped = clip_x0(oracle, rederive_epsilon=True)
    model = Denoiser(jax.checkpoint(clipped.call), alpha_bar, None)

    @jax.jit
    def loss(parameters):
        x_0 = sample(model, x_T, learned_table(base, parameters), keys)
        return jnp.mean(jnp.sin(3 * x_0) + x_0**2)

    first = table_parameters(base, PARTS, 3)
    rng = np.random.default_rng(0)
    first = jax.tree.map(lambda leaf: leaf + 0.1 * rng.standard_normal(leaf.shape), first)
    gradient = jax.grad(loss)(first)
    for name, leaf in first._asdict().items():
        for place in np.ndindex(leaf.shape):
            step = np.zeros(leaf.shape)
            step[place] = 1e-6
            ends = [loss(first._replace(**{name: leaf + sign * step})) for sign in (1, -1)]
            slope = float(ends[0] - ends[1]) / 2e-6
            assert getattr(gradient, name)[place] == pytest.approx(slope, rel=1e-3, abs=1e-7)
