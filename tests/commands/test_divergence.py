"""Losses that are not finite, or explode."""

import re

import jax
import numpy as np
import pytest

from ddim_jax.config import presets, save_config
from ddim_jax.training import load_run
from ddim_jax.training.checkpoint import latest_step
from tests.conftest import tiny_config


@pytest.fixture
def diverge(tmp_path, command):
    """Train at a rate that leaves float32's range; what train.py says."""
    settings = {"learning_rate": 1e38, "warmup_steps": 60, "steps": 60}

    def train(**more):
        config = tiny_config(presets()["digits"], tmp_path / "run", **settings, **more)
        save_config(config, tmp_path / "config.json")
        status, _, err = command("train", tmp_path / "config.json")
        assert status == 1
        return err

    return train


@pytest.mark.slow
def test_a_loss_that_is_not_finite_stops_the_run_with_the_last_good_checkpoint(diverge, tmp_path):
    err = diverge(checkpoint_every=1)
    match = re.search(
        r"^error: the (loss|grad norm) is (nan|inf) at step (\d+); "
        r"the checkpoint of step (\d+) is good; lower --train.l",
        err,
    )
    assert match, err
    assert int(match[4]) == int(match[3]) - 1 == latest_step(tmp_path / "run")
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(load_run(tmp_path / "run")[1]))


@pytest.mark.slow
def test_an_exploded_loss_stops_the_run(diverge, counted_steps):
    assert re.search(
        r"^error: the loss is [\d.]+ at step 1, above --train.max-loss \(0.001\); "
        r"no checkpoint was saved before it",
        diverge(max_loss=1e-3),
    )
