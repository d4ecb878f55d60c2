"""The loss, the optimizer and the train step against NumPy, on a network of two parameters."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ddim_jax.config import TrainConfig
from ddim_jax.diffusion.objective import mean_squared_error
from ddim_jax.training import (
    TrainState,
    epsilon_loss,
    initial_state,
    make_optimizer,
    make_train_step,
)
from ddim_jax.training.state import learning_rate
from ddim_jax.training.step import random_flip


def test_the_loss_sees_the_right_noisy_images(alpha_bar):
    x_0 = jax.random.normal(jax.random.key(5), (512, 2, 2, 1))
    seen = {}

    def network(params, x_t, t):
        seen.update(x=np.asarray(x_t), t=np.asarray(t))
        return jnp.zeros_like(x_t)

    loss = float(epsilon_loss(network, None, x_0, alpha_bar, jax.random.key(0)))
    a = alpha_bar[seen["t"] + 1][:, None, None, None]
    noise = (seen["x"] - np.sqrt(a) * x_0) / np.sqrt(1 - a)  # what must have been added
    noise = np.asarray(noise)
    assert loss == pytest.approx(np.mean(noise**2), rel=1e-3)
    assert noise.mean() == pytest.approx(0, abs=0.1)
    assert noise.std() == pytest.approx(1, abs=0.1)
    assert 0 <= seen["t"].min() < 30
    assert 970 < seen["t"].max() <= 999
    assert abs(np.mean(seen["t"]) - 499.5) < 60


def test_a_network_that_knows_the_noise_has_no_loss(alpha_bar):
    x_0 = jnp.zeros((64, 2, 2, 1))

    def perfect(params, x_t, t):
        return x_t / jnp.sqrt(1 - jnp.asarray(alpha_bar)[t + 1]).reshape(-1, 1, 1, 1)

    assert float(epsilon_loss(perfect, None, x_0, alpha_bar, jax.random.key(0))) < 1e-8


def test_unequal_shapes_are_refused(alpha_bar):
    with pytest.raises(ValueError, match="must be equal"):
        mean_squared_error(jnp.ones((4, 1)), jnp.ones((4,)))
    x_0, key = jnp.ones((4, 2, 2, 3)), jax.random.key(0)
    with pytest.raises(ValueError, match="must be equal"):
        epsilon_loss(lambda params, x, t: x[..., :1], None, x_0, alpha_bar, key)


def test_learning_rate_schedules():
    rate = learning_rate(TrainConfig(warmup_steps=4, learning_rate=1.0))
    rates = [float(rate(step)) for step in range(8)]
    assert rates == pytest.approx([0.25, 0.5, 0.75, 1, 1, 1, 1, 1])
    config = TrainConfig(steps=12, warmup_steps=2, learning_rate=1.0, decay="cosine")
    rates = [float(learning_rate(config)(step)) for step in range(12)]
    assert rates == pytest.approx(
        [0.5, 1, *(0.5 * (1 + np.cos(np.pi * k / 10)) for k in range(10))], abs=1e-6
    )
    assert float(learning_rate(replace(config, warmup_steps=0))(0)) == 1
    # Of a run that is shorter than its warm-up, half is warm-up.
    rates = [float(learning_rate(replace(config, warmup_steps=50))(step)) for step in range(12)]
    np.testing.assert_allclose(rates[:7], [*np.arange(1, 7) / 6, 1.0], rtol=1e-6)
    assert rates[11] < 0.07


def linear(params, x, t, *, dropout_key=None):
    return params["w"] * x + params["b"]


def loss_key(seed, step):
    """The randomness of a step's loss follows from the seed and the step number."""
    root = jax.random.fold_in(jax.random.key(seed, impl="threefry2x32"), 2)
    return jax.random.split(jax.random.fold_in(root, step), 3)[0]


def test_training_steps_against_adam_in_numpy(alpha_bar):
    config = TrainConfig(steps=100, warmup_steps=3, learning_rate=0.1, clip_norm=0.5, ema_decay=0.3)
    start = {"w": jnp.float32(0.2), "b": jnp.float32(-0.3)}
    optimizer = make_optimizer(config)
    step = make_train_step(linear, optimizer, alpha_bar, seed=7, ema_decay=config.ema_decay)
    state = initial_state(start, optimizer)
    x_0 = np.random.default_rng(0).uniform(-1, 1, (32, 2, 2, 1)).astype(np.float32)

    p = np.array([0.2, -0.3])
    ema, m, v = p.copy(), np.zeros(2), np.zeros(2)
    for n in range(1, 6):
        # The gradient by central differences of the same loss.
        key = loss_key(7, n - 1)

        def loss(q, key=key):
            return float(epsilon_loss(linear, {"w": q[0], "b": q[1]}, x_0, alpha_bar, key))

        g = np.array([(loss(p + h) - loss(p - h)) / 2e-2 for h in 1e-2 * np.eye(2)])
        norm = np.linalg.norm(g)
        expected = loss(p)
        g *= min(1, 0.5 / norm)
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        p = p - 0.1 * min(1, n / 3) * (m / (1 - 0.9**n)) / (np.sqrt(v / (1 - 0.999**n)) + 1e-8)
        decay = min(0.3, (1 + n) / (10 + n))
        ema = decay * ema + (1 - decay) * p

        state, metrics = step(state, x_0)
        assert int(state.step) == n
        assert float(metrics["loss"]) == pytest.approx(expected, rel=1e-3)
        assert float(metrics["grad_norm"]) == pytest.approx(norm, rel=1e-2)
        assert [float(state.params["w"]), float(state.params["b"])] == pytest.approx(p, abs=2e-3)
        assert [float(state.ema["w"]), float(state.ema["b"])] == pytest.approx(ema, abs=2e-3)
    assert step._cache_size() == 1


def test_the_state_is_donated_and_holds_arrays_only(alpha_bar):
    optimizer = make_optimizer(TrainConfig())
    state = initial_state({"w": jnp.ones((1, 1, 1, 3)), "b": jnp.zeros(())}, optimizer)
    assert isinstance(state, TrainState)
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(state))
    before = state.params["w"]
    make_train_step(linear, optimizer, alpha_bar, seed=0)(state, jnp.ones((2, 2, 2, 3)))
    assert before.is_deleted()


def test_flips_about_half_and_only_in_width():
    x = jax.random.normal(jax.random.key(0), (200, 3, 4, 2))
    flipped = np.asarray(random_flip(x, jax.random.key(1)))
    same = np.all(flipped == x, axis=(1, 2, 3))
    mirrored = np.all(flipped == x[:, :, ::-1], axis=(1, 2, 3))
    assert np.all(same ^ mirrored)
    assert 70 < mirrored.sum() < 130


def test_flip_is_off_unless_asked_for(alpha_bar):
    """With a network that reports its mean over the left half, mirrored images change the loss."""
    x_0 = jnp.broadcast_to(jnp.array([1.0, -1.0]).reshape(1, 1, 2, 1), (64, 1, 2, 1))

    def left(params, x, t, *, dropout_key=None):
        return params["w"] * x.at[:, :, 1].set(0)

    optimizer = make_optimizer(TrainConfig())
    losses = {}
    for flip in (False, True):
        state = initial_state({"w": jnp.float32(1.0)}, optimizer)
        step = make_train_step(left, optimizer, alpha_bar, seed=0, flip=flip)
        losses[flip] = float(step(state, x_0)[1]["loss"])
    plain = float(epsilon_loss(left, {"w": 1.0}, x_0, alpha_bar, loss_key(0, 0)))
    assert losses[False] == pytest.approx(plain, rel=1e-5)
    assert abs(losses[True] - plain) > 1e-4


@pytest.mark.parametrize(("label_dropout", "rows"), [(0.0, [0, 2]), (1.0, [3])])
def test_labels_reach_the_network_and_dropout_hides_them(alpha_bar, label_dropout, rows):
    """A network that looks its answer up: the rows that a step changes are the labels it saw."""

    def lookup(params, x, t, *, label, dropout_key):
        return params[label].reshape(-1, 1, 1, 1) * jnp.ones_like(x)

    optimizer = make_optimizer(TrainConfig())
    options = {"seed": 0, "num_classes": 3, "label_dropout": label_dropout}
    step = make_train_step(lookup, optimizer, alpha_bar, **options)
    labels = jnp.array([0, 2, 2, 0])
    state, _ = step(initial_state(jnp.ones(4), optimizer), jnp.ones((4, 2, 2, 1)), labels)
    assert np.flatnonzero(np.asarray(state.params) != 1).tolist() == rows


def test_half_of_the_labels_are_hidden_with_probability_a_half(alpha_bar):
    def count(params, x, t, *, label, dropout_key):
        return params * jnp.ones_like(x) * (label == 3).mean()

    optimizer, no_noise = optax.sgd(1.0), np.array([1.0, 1.0 - 1e-12])
    options = {"seed": 0, "kind": "x0", "num_classes": 3, "label_dropout": 0.5}
    step = make_train_step(count, optimizer, no_noise, **options)
    state = initial_state(jnp.ones(()), optimizer)
    _, metrics = step(state, jnp.zeros((400, 1, 1, 1)), jnp.zeros(400, jnp.int32))
    assert 0.4**2 < float(metrics["loss"]) < 0.6**2  # the square of the part that was hidden


def test_each_accumulated_part_has_its_own_dropout(alpha_bar):
    seen = []

    def network(params, x, t, *, dropout_key):
        jax.debug.callback(lambda key: seen.append(key.tolist()), jax.random.key_data(dropout_key))
        return params * x

    optimizer = make_optimizer(TrainConfig())
    step = make_train_step(network, optimizer, alpha_bar, seed=0, accumulate=4)
    state, _ = step(initial_state(jnp.ones(()), optimizer), jnp.ones((8, 1, 1, 1)))
    jax.block_until_ready(state)
    jax.effects_barrier()
    assert len({tuple(key) for key in seen}) == 4
