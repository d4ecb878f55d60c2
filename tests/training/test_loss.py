"""Targets and weights of every prediction against NumPy, and each way of training on real digits."""

import itertools
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddim_jax import (
    cosine_betas,
    eta,
    linear_betas,
    step_table,
    trailing_timesteps,
    zero_terminal_snr,
)
from ddim_jax.config import Config, presets
from ddim_jax.data import batches, load_dataset
from ddim_jax.devices import make_mesh
from ddim_jax.generation import generate, make_sampler
from ddim_jax.images import to_unit_range
from ddim_jax.metrics import frechet_distance
from ddim_jax.model import build_unet
from ddim_jax.training import initial_state, make_optimizer
from ddim_jax.training.loop import prepare_step
from ddim_jax.training.loss import draw_examples, loss_weights, prediction_loss


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
    """The KL between two Gaussians with the same σ whose means are Eq. 7 for x_0 = 0 and for x_0 = error, at x_t = 0."""
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
    for kind, expected in {
        "epsilon": np.minimum(5, snr) / snr, "x0": np.minimum(5, snr), "v": np.minimum(5, snr) / (snr + 1)
    }.items():  # fmt: skip
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
    assert linear_betas(1000)[-1] < 1


WAYS = {
    "v with zero-terminal SNR": (
        {"prediction": "v", "schedule": "cosine", "zero_terminal_snr": True},
        {},
    ),
    "x0 with min-SNR": ({"prediction": "x0"}, {"loss_weight": "min-snr"}),
    "epsilon with exact gamma": ({}, {"loss_weight": "gamma", "gamma_eta": 0.5}),
}


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_each_way_of_training_learns_digits(way):
    """Samples after 80 steps against those of the untrained network, by the Fréchet distance of pixels."""
    digits, (diffusion, settings) = presets()["digits"], WAYS[way]
    model = replace(
        digits.model, channels=8, groups=2, multipliers=(1,), blocks=1, attention_resolutions=()
    )
    train = replace(
        digits.train,
        steps=80,
        batch_size=32,
        learning_rate=4e-3,
        warmup_steps=10,
        decay="constant",
        ema_decay=0.9,
        **settings,
    )
    config = replace(
        digits, model=model, diffusion=replace(digits.diffusion, **diffusion), train=train
    )
    config.check()
    alpha_bar, kind = config.diffusion.alpha_bar(), config.diffusion.prediction
    weights = loss_weights(alpha_bar, kind, train.loss_weight, gamma_eta=train.gamma_eta)
    apply, params = build_unet(model, 0)
    step = prepare_step(config, alpha_bar, weights, None, flip=False)
    state = initial_state(jax.tree.map(jnp.copy, params), make_optimizer(train))
    dataset = load_dataset(config.data, (8, 8, 1))
    for batch in itertools.islice(batches(dataset, train.batch_size, 0), train.steps):
        state, _ = step(state, batch.x_0)

    sampler = make_sampler(apply, alpha_bar, (8, 8, 1), make_mesh(256, 1), kind=kind)
    table = step_table(alpha_bar, trailing_timesteps(1000, 10), eta(0.0))
    real = to_unit_range(dataset.read(np.arange(dataset.size))).reshape(dataset.size, -1)
    untrained, trained = (
        frechet_distance(
            next(generate(sampler, leaves, table, seed=0, count=256, batch_size=256)).reshape(
                256, -1
            ),
            real,
        )
        for leaves in (params, state.ema)
    )
    assert trained < 0.5 * untrained, (trained, untrained)


def test_the_default_is_the_papers():
    assert (
        Config().diffusion.prediction,
        Config().train.loss_weight,
        Config().model.num_classes,
    ) == ("epsilon", "constant", 0)
