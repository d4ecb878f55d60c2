import hashlib
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddim_jax.config import Config
from ddim_jax.training import checkpoint, initial_state, load_run, make_optimizer
from ddim_jax.training.checkpoint import (
    checkpoints,
    latest_step,
    load_run_config,
    open_run,
    restore_state,
    save_checkpoint,
)
from tests.conftest import ROOT


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Five states saved, three kept."""
    directory = tmp_path_factory.mktemp("run")
    config = replace(Config(), seed=3)
    optimizer = make_optimizer(config.train)
    layers = {i: jnp.full(3, i, jnp.float32) for i in range(11)}
    params = {"w": jnp.arange(1000.0).reshape(10, 100), "layers": layers}
    states = {}
    with checkpoints(directory, keep=3) as manager:
        for step in range(1, 6):
            scaled = jax.tree.map(lambda leaf, step=step: leaf * step, params)
            ema = jax.tree.map(jnp.negative, scaled)
            state = initial_state(scaled, optimizer)._replace(step=jnp.int32(step), ema=ema)
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
    assert kept(saved[0]) == [3, 4, 5]


def test_what_a_kill_left_half_written_is_not_a_checkpoint(run):
    (run / "checkpoints" / "6.orbax-checkpoint-tmp").mkdir()
    (run / "checkpoints" / "6.orbax-checkpoint-tmp" / "part").write_text("half")
    assert latest_step(run) == 5


def damage(run, how):
    ema = run / "checkpoints" / "5" / "ema"
    largest = max((path for path in ema.rglob("*") if path.is_file()), key=os.path.getsize)
    if how == "truncated":
        os.truncate(largest, os.path.getsize(largest) // 2)
    elif how == "flipped bit":
        content = bytearray(largest.read_bytes())
        content[len(content) // 2] ^= 1
        largest.write_bytes(content)
    elif how == "missing":
        largest.unlink()
    elif how == "metadata":
        os.truncate(ema / "_METADATA", 20)
    elif how == "no item":
        shutil.rmtree(ema)


@pytest.mark.parametrize("how", ["truncated", "flipped bit", "missing", "metadata", "no item"])
def test_a_damaged_checkpoint_is_named_and_left_alone(run, saved, how, capfd):
    damage(run, how)
    before = sorted(str(path) for path in run.rglob("*"))
    message = rf"the checkpoint {run}/checkpoints/5 is damaged .*; remove it"
    with pytest.raises(ValueError, match=message) as error:
        restore_state(run, 5, saved[2][1])
    assert "\n" not in str(error.value)
    assert sorted(str(path) for path in run.rglob("*")) == before
    assert "Traceback" not in capfd.readouterr().err
    jax.tree.map(np.testing.assert_array_equal, restore_state(run, 4, saved[2][1]), saved[2][4])


def test_the_checksums_are_those_of_sha256sum(run):
    checkpoint = run / "checkpoints" / "5"
    lines = (checkpoint / "SHA256SUMS").read_text().splitlines()
    assert len(lines) > 5
    for line in lines:
        expected, name = line.split("  ")
        assert hashlib.sha256((checkpoint / name).read_bytes()).hexdigest() == expected


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
    message = f"{tmp_path}/nowhere does not exist; `ddim-train --out"
    with pytest.raises(ValueError, match=message):
        load_run(tmp_path / "nowhere")
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(ValueError, match=f"the run directory {tmp_path} holds no checkpoint"):
        load_run(str(tmp_path))


def small_state(step):
    params = {"w": jnp.arange(8.0) * step}
    return initial_state(params, make_optimizer(Config().train))._replace(step=jnp.int32(step))


def kept(directory):
    return sorted(
        int(path.name) for path in (directory / "checkpoints").iterdir() if path.name.isdigit()
    )


def assert_first_is_whole(directory):
    assert kept(directory) == [1]
    state = small_state(1)
    jax.tree.map(np.testing.assert_array_equal, restore_state(directory, 1, state), state)


def test_the_best_stays_beside_the_newest(tmp_path):
    losses = {1: 0.9, 2: 0.3, 3: 0.5, 4: 0.6, 5: 0.4}
    with checkpoints(tmp_path, keep=1) as manager:
        for step, loss in losses.items():
            save_checkpoint(manager, small_state(step), Config(), {"validation_loss": loss})
    assert kept(tmp_path) == [2, 5]
    with checkpoints(tmp_path, keep=1) as manager:  # another process remembers which was the best
        save_checkpoint(manager, small_state(6), Config(), {"validation_loss": 0.7})
    assert kept(tmp_path) == [2, 6]
    steps = [load_run_config(tmp_path, which)[1] for which in ("latest", "best", "2", 6)]
    assert steps == [6, 2, 2, 6]
    for which in ("5", "newest", -1):
        message = rf"asked for is {which}; .* has latest, best and \[2, 6\]"
        with pytest.raises(ValueError, match=message):
            load_run_config(tmp_path, which)


def test_without_losses_there_is_no_best(tmp_path):
    with checkpoints(tmp_path, keep=2) as manager:
        for step in (1, 2, 3):
            save_checkpoint(manager, small_state(step), Config())
    assert kept(tmp_path) == [2, 3]
    message = r"no checkpoint of .* has a validation loss; ask for the latest, or one of \[2, 3\]"
    with pytest.raises(ValueError, match=message):
        load_run_config(tmp_path, "best")


def test_a_training_removes_what_is_being_read(tmp_path, saved, monkeypatch):
    """The newest is read in its place, and nothing is called damaged."""
    run = shutil.copytree(saved[0], tmp_path / "run")
    moved = shutil.move(run / "checkpoints" / "5", tmp_path / "5")
    asked = []

    def shapes(_):
        asked.append(latest_step(run))
        if len(asked) == 1:  # a save, and the removal that follows
            shutil.copytree(moved, run / "checkpoints" / "5")
            shutil.rmtree(run / "checkpoints" / "4")
        return saved[2][1].ema

    monkeypatch.setattr(checkpoint, "unet_shapes", shapes)
    _, params, step = open_run(run)
    assert (asked, step) == ([4, 5], 5)
    jax.tree.map(np.testing.assert_array_equal, params, saved[2][5].ema)
    with pytest.raises(ValueError, match=r"asked for is 4; .* has latest, best and \[3, 5\]"):
        open_run(run, 4)


def test_a_damaged_old_checkpoint_is_not_called_removed(run, monkeypatch):
    monkeypatch.setattr(checkpoint, "_REMOVAL", 0.0)
    (run / "checkpoints" / "4" / "config" / "metadata").write_text("")
    with pytest.raises(ValueError, match="checkpoints/4 is damaged"):
        open_run(run, 4)


def test_a_damaged_loss_is_left_out(tmp_path):
    losses = {1: 0.1, 2: 0.3, 3: 0.2}
    with checkpoints(tmp_path, keep=3) as manager:
        for step, loss in losses.items():
            save_checkpoint(manager, small_state(step), Config(), {"validation_loss": loss})
    assert load_run_config(tmp_path, "best")[1] == 1
    for content in (b"\xff", b"{", b"[]", b'{"validation_loss": NaN}', b"[" * 9999):
        (tmp_path / "checkpoints" / "1" / "metrics" / "metrics").write_bytes(content)
        assert load_run_config(tmp_path, "best")[1] == 3


@pytest.mark.parametrize("content", [b"\xff\xfe", b"no checksums\n"])
def test_damaged_checksums_are_not_a_damaged_checkpoint(run, saved, content):
    sums = run / "checkpoints" / "5" / "SHA256SUMS"
    sums.write_bytes(content)
    with pytest.raises(ValueError, match=f"{sums} is damaged; remove it to read the checkpoint"):
        restore_state(run, 5, saved[2][1])


@pytest.mark.parametrize("asked", ["²", "9" * 5000, "-1", "1.0"])
def test_a_checkpoint_that_is_no_number(run, asked):
    (run / "checkpoints" / "²").mkdir()
    with pytest.raises(ValueError, match=f"asked for is {re.escape(asked[:40])}; "):
        load_run_config(run, asked)


def test_a_full_disk_loses_nothing(tmp_path, monkeypatch):
    message = r"step 2 cannot be written .*\(it takes .* MB are free\); that of step 1 is intact"
    with checkpoints(tmp_path, keep=1) as manager:
        save_checkpoint(manager, small_state(1), Config())
        manager.wait_until_finished()
        monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(100, 90, 10))
        with pytest.raises(ValueError, match=message):
            save_checkpoint(manager, small_state(2), Config())
    assert_first_is_whole(tmp_path)


FULL = """
import resource, sys
from pathlib import Path
import jax.numpy as jnp
from tests.training.test_checkpoint import *
with checkpoints(Path(sys.argv[1]), keep=1) as manager:
    save_checkpoint(manager, small_state(1), Config())
    manager.wait_until_finished()
    # Writing fails in the middle, as on a full disk.
    resource.setrlimit(resource.RLIMIT_FSIZE, (4000, 4000))
    state = initial_state({"w": jnp.sin(jnp.arange(1e5))}, make_optimizer(Config().train))
    save_checkpoint(manager, state._replace(step=jnp.int32(2)), Config())
"""


@pytest.mark.slow
def test_a_disk_that_fills_up_while_it_is_written_loses_nothing(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(tmp_path)], cwd=ROOT, capture_output=True, text=True
    )
    message = "ValueError: the checkpoint of step 2 cannot be written to .*that of step 1 is intact"
    assert re.search(message, done.stderr), done.stderr.strip().splitlines()[-1]
    assert_first_is_whole(tmp_path)
