"""What the tests of the commands share."""

from dataclasses import replace

import jax
import numpy as np

from ddim_jax import propagate_gaussian, wasserstein2_gaussian
from ddim_jax.config import presets
from ddim_jax.model import build_unet
from ddim_jax.training import initial_state, make_optimizer
from ddim_jax.training.checkpoint import checkpoints, save_checkpoint
from tests.conftest import tiny_config


def write_odd_run(out, **train):
    """A run unlike the plain one: T = 20, v-prediction, ᾱ_T = 0, classes, and weights far from
    zero."""
    config = tiny_config(presets()["digits"], out, **train)
    config = replace(
        config,
        diffusion=replace(
            config.diffusion,
            num_steps=20,
            schedule="cosine",
            prediction="v",
            zero_terminal_snr=True,
        ),
        model=replace(config.model, num_classes=10),
    )
    params = jax.tree.map(
        lambda leaf: np.asarray(
            leaf + 0.05 * np.sin(np.arange(leaf.size, dtype=np.float32)).reshape(leaf.shape)
        ),
        build_unet(config.model, 0)[1],
    )
    with checkpoints(out, keep=1) as manager:
        save_checkpoint(manager, initial_state(params, make_optimizer(config.train)), config)
    return out


def w2(source, table):
    """The two parts of the squared 2-Wasserstein distance of what a table draws to the data."""
    output = propagate_gaussian(*source.moments, source.alpha_bar, table)
    return wasserstein2_gaussian(*output, *source.moments)
