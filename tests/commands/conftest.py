import jax
import numpy as np
import pytest

from ddim_jax.training import initial_state, load_run, make_optimizer
from ddim_jax.training.checkpoint import checkpoints, save_checkpoint


@pytest.fixture(scope="session")
def noisy_run(tiny_run):
    """The tiny run with weights far from zero, so that its images are no mere noise."""
    config, params = load_run(tiny_run)

    def fill(leaf):
        return leaf + 0.05 * np.sin(np.arange(leaf.size, dtype=np.float32)).reshape(leaf.shape)

    params = jax.tree.map(fill, params)
    state = initial_state(params, make_optimizer(config.train))
    out = tiny_run.parent / "noisy"
    with checkpoints(out, keep=1) as manager:
        save_checkpoint(manager, state, config)
    return out
