from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest

from ddim_jax.config import presets
from ddim_jax.data import load_dataset
from ddim_jax.devices import make_mesh
from ddim_jax.diffusion.objective import loss_weights
from ddim_jax.training.validation import make_validation


def test_the_loss_is_of_the_test_split_and_always_the_same(alpha_bar):
    """For a network that answers x_t, the error of ε is (√ᾱ x_0 + (√(1−ᾱ) − 1) ε)²."""
    config = presets()["digits"]
    config = replace(config, train=replace(config.train, batch_size=64, validate_images=10_000))
    train, test = (load_dataset(config.data, (8, 8, 1), split) for split in ("train", "test"))

    def validation(config):
        def network(params, x, t):
            return params * x

        weights, mesh = loss_weights(alpha_bar), make_mesh(64)
        return make_validation(config, network, alpha_bar, weights, train, mesh)

    validate = validation(config)
    loss = validate(jnp.float32(1.0))
    assert loss == validate(jnp.float32(1.0)) != validate(jnp.float32(0.5))
    square = np.mean((test.read(np.arange(test.size)) / 127.5 - 1) ** 2)
    a = alpha_bar[1:]
    assert loss == pytest.approx(np.mean(a * square + (np.sqrt(1 - a) - 1) ** 2), rel=0.05)
    assert validation(replace(config, seed=1))(jnp.float32(1.0)) != loss
