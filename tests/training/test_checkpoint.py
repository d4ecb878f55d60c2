import os
import shutil
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddim_jax.config import Config
from ddim_jax.training import initial_state, load_run, make_optimizer
from ddim_jax.training.checkpoint import checkpoints, latest_step, load_run_config, restore_state, save_checkpoint


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Five states saved, three kept."""
    directory = tmp_path_factory.mktemp("run")
    config = replace(Config(), seed=3)
    optimizer = make_optimizer(config.train)
    params = {"w": jnp.arange(1000.0).reshape(10, 100), "layers": {i: jnp.full(3, i, jnp.float32) for i in range(11)}}
    states = {}
    with checkpoints(directory, keep=3) as manager:
        for step in range(1, 6):
            scaled = jax.tree.map(lambda leaf, step=step: leaf * step, params)
            state = initial_state(scaled, optimizer)._replace(step=jnp.int32(step), ema=jax.tree.map(jnp.negative, scaled))
            save_checkpoint(manager, state, config)
            states[step] = state
    return directory, config, states


@pytest.fixture
def run(saved, tmp_path):
    """A copy to damage."""
    shutil.copytree(saved[0], tmp_path / "run")
    return tmp_path / "run"


def test_state_average_and_configuration_return_bit_for_bit(saved):
    directory, config, states = saved
    assert latest_step(directory) == 5
    assert load_run_config(directory) == (config, 5)
    for step in (3, 5):
        restored = restore_state(directory, step, states[1])
        assert jax.tree.structure(restored) == jax.tree.structure(states[step])
        jax.tree.map(np.testing.assert_array_equal, restored, states[step])


def test_the_oldest_are_removed(saved):
    assert sorted(path.name for path in (saved[0] / "checkpoints").iterdir() if path.name.isdigit()) == ["3", "4", "5"]


def test_what_a_kill_left_half_written_is_not_a_checkpoint(run):
    (run / "checkpoints" / "6.orbax-checkpoint-tmp").mkdir()
    (run / "checkpoints" / "6.orbax-checkpoint-tmp" / "part").write_text("half")
    assert latest_step(run) == 5


def damage(run, how):
    files = sorted((path for path in (run / "checkpoints" / "5" / "ema").rglob("*") if path.is_file()), key=os.path.getsize)
    if how == "truncated":
        os.truncate(files[-1], os.path.getsize(files[-1]) // 2)
    elif how == "flipped bit":
        content = bytearray(files[-1].read_bytes())
        content[len(content) // 2] ^= 1
        files[-1].write_bytes(content)
    elif how == "missing":
        files[-1].unlink()
    elif how == "metadata":
        os.truncate(run / "checkpoints" / "5" / "ema" / "_METADATA", 20)
    elif how == "no item":
        shutil.rmtree(run / "checkpoints" / "5" / "ema")


@pytest.mark.parametrize("how", ["truncated", "flipped bit", "missing", "metadata", "no item"])
def test_a_damaged_checkpoint_is_named_and_left_alone(run, saved, how, capfd):
    damage(run, how)
    before = sorted(str(path) for path in run.rglob("*"))
    with pytest.raises(ValueError, match=rf"the checkpoint {run}/checkpoints/5 is damaged .*; remove it") as error:
        restore_state(run, 5, saved[2][1])
    assert "\n" not in str(error.value)
    assert sorted(str(path) for path in run.rglob("*")) == before
    assert "Traceback" not in capfd.readouterr().err
    jax.tree.map(np.testing.assert_array_equal, restore_state(run, 4, saved[2][1]), saved[2][4])


def test_the_checksums_are_those_of_sha256sum(run):
    import hashlib

    for line in (run / "checkpoints" / "5" / "SHA256SUMS").read_text().splitlines():
        expected, name = line.split("  ")
        assert hashlib.sha256((run / "checkpoints" / "5" / name).read_bytes()).hexdigest() == expected


def test_without_checksums_orbax_finds_what_it_can(run, saved):
    """A process that is killed right after a save has not written them."""
    (run / "checkpoints" / "5" / "SHA256SUMS").unlink()
    jax.tree.map(np.testing.assert_array_equal, restore_state(run, 5, saved[2][1]), saved[2][5])
    damage(run, "metadata")
    with pytest.raises(ValueError, match="is damaged"):
        restore_state(run, 5, saved[2][1])


def test_a_damaged_configuration(run):
    (run / "checkpoints" / "5" / "config" / "metadata").write_text('{"seed":')
    with pytest.raises(ValueError, match=r"checkpoints/5 is damaged"):
        load_run(run)


def test_directories_without_a_checkpoint(tmp_path):
    with pytest.raises(ValueError, match=f"{tmp_path}/nowhere does not exist; `python train.py --out"):
        load_run(tmp_path / "nowhere")
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(ValueError, match=f"the run directory {tmp_path} holds no checkpoint"):
        load_run(str(tmp_path))
