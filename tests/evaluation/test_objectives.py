"""What a learned sampler minimises."""

import itertools

import jax
import numpy as np
import optax
import pytest
import scipy.optimize

from ddim_jax import (
    eta,
    linspace_timesteps,
    step_table,
)
from ddim_jax.diffusion.learned import learned_table, table_parameters
from ddim_jax.diffusion.sigmas import custom
from ddim_jax.evaluation.objectives import (
    Setting,
    exact_loss,
    feature_objective,
    kernel_loss,
    minimise,
)
from ddim_jax.evaluation.source import oracle_source
from ddim_jax.features import Features, flat, pixels
from ddim_jax.metrics import difference, kernel_distance
from tests.evaluation import w2


def test_the_kernel_loss_is_the_kernel_distance():
    rng = np.random.default_rng(0)
    found, reference = (rng.normal(size=(n, 5)).astype(np.float32) for n in (7, 11))
    exact = kernel_distance(reference, found)
    assert float(kernel_loss(found, reference)) == pytest.approx(exact, rel=1e-5)


@pytest.mark.parametrize("teacher", [False, True])
def test_gradients_on_features_improve_what_is_held_out(teacher):
    """On the mixture oracle, whose pixels are the features."""
    source = oracle_source("mixture")
    features = Features("pixels", pixels, {}, flat)
    setting = Setting(source, features, 0, 0, (), 1.0, 64, 256)
    start = step_table(source.alpha_bar, [1, 100, 400, 900], eta(0.0))
    objective = feature_objective(setting, teacher)
    gradient_of = objective.gradient(start)
    parameters = table_parameters(start, ["correction"], 2)
    adam = optax.adam(0.05)
    state = adam.init(parameters)
    losses = []
    for update in range(20):
        loss, gradient = gradient_of(parameters, update)
        losses.append(loss)
        steps, state = adam.update(gradient, state)
        parameters = optax.apply_updates(parameters, steps)
    before = objective.held_out(start, 256)
    after = objective.held_out(learned_table(start, parameters), 256)
    assert difference(after, before).high < 0
    assert after.value < 0.9 * before.value
    if teacher:  # a kernel distance of 64 images is too noisy
        assert losses[0] == pytest.approx(before.value, rel=0.2)


def test_a_teachers_own_table_has_no_loss():
    source = oracle_source("mixture")
    setting = Setting(source, Features("pixels", pixels, {}, flat), 0, 0, (), 1.0, 16, 16)
    table = step_table(source.alpha_bar, linspace_timesteps(1000, 100), eta(0.0))
    objective = feature_objective(setting, True)
    assert objective.held_out(table, 16).value == 0


def test_sigma_alone_is_as_good_as_scipys(gaussian):
    base = step_table(gaussian.alpha_bar, [1, 200, 800], eta(0.5))
    with jax.enable_x64(True):
        loss = exact_loss(gaussian, "w2")
        first = table_parameters(base, ["sigma"], 1)
        _, curve = minimise(lambda p: loss(learned_table(base, p)), first, 0)
    below = np.sqrt(1 - base.alpha_bar_s)

    def independent(fractions):
        sigma = below * np.append(np.clip(fractions, 0, 1), 0)
        return sum(w2(gaussian, step_table(gaussian.alpha_bar, [1, 200, 800], custom(sigma))))

    starts = itertools.product((0.1, 0.5, 0.9), repeat=2)
    best = min(
        scipy.optimize.minimize(
            independent, start, method="L-BFGS-B", bounds=[(0, 1)] * 2,
            options={"ftol": 1e-15, "gtol": 1e-10},
        ).fun
        for start in starts
    )  # fmt: skip
    assert curve[-1] == pytest.approx(best, rel=1e-6)
