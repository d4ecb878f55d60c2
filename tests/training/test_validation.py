from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest

from ddim_jax.config import presets
from ddim_jax.data import load_dataset
from ddim_jax.devices import make_mesh
from ddim_jax.training.loss import loss_weights
from ddim_jax.training.validation import make_validation


def test_the_loss_is_of_the_test_split_and_always_the_same(alpha_bar):
    """A network that answers x_t has, for x_0 known and ε-prediction, the error (√ᾱ x_0 + (√(1−ᾱ) − 1) ε)²."""
    config = presets()["digits"]
    config = replace(config, train=replace(config.train, batch_size=64, validate_images=10_000))
    train, test = (load_dataset(config.data, (8, 8, 1), split) for split in ("train", "test"))
    mesh = make_mesh(64)
    validate = make_validation(
        config, lambda params, x, t: params * x, alpha_bar, loss_weights(alpha_bar), train, mesh
    )
    found = validate(jnp.float32(1.0))
    assert found == validate(jnp.float32(1.0)) != validate(jnp.float32(0.5))
    square = np.mean((test.read(np.arange(test.size)) / 127.5 - 1) ** 2)
    a = alpha_bar[1:]
    assert found == pytest.approx(np.mean(a * square + (np.sqrt(1 - a) - 1) ** 2), rel=0.05)
    other = make_validation(
        replace(config, seed=1),
        lambda p, x, t: p * x,
        alpha_bar,
        loss_weights(alpha_bar),
        train,
        mesh,
    )
    assert other(jnp.float32(1.0)) != found
