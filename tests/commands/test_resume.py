"""Runs that are stopped, killed, finished, extended, and go on."""

import re
import shlex
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from ddim_jax.config import presets, save_config
from ddim_jax.model import build_unet
from ddim_jax.training import initial_state, load_run, make_optimizer
from ddim_jax.training.checkpoint import latest_step, restore_state
from tests.commands import TWO_DEVICES, metrics
from tests.conftest import ROOT, tiny_config

# Bits are compared: those of the program that users run.
OPTIMISED = TWO_DEVICES | {"JAX_DISABLE_MOST_OPTIMIZATIONS": "0"}
STEPS = 300
ARGUMENTS = f"""--model.channels 4 --model.groups 2 --model.multipliers 1 --model.blocks 1 --model.attention-resolutions
                --train.batch-size 8 --train.steps {STEPS} --train.warmup-steps 5 --train.sample-every 0 --train.sample-images 2
                --train.sample-steps 2 --train.evaluate-images 0 --train.validate-images 0 --train.log-every 1
                --train.checkpoint-every 100""".split()


def start(out, arguments=None):
    command = [
        sys.executable,
        str(ROOT / "train.py"),
        *(arguments or [*ARGUMENTS, "--out", str(out)]),
    ]
    return subprocess.Popen(
        command, env=OPTIMISED, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT
    )


def steps_logged(out):
    path = out / "metrics.jsonl"
    return path.read_text().count("\n") if path.exists() else 0


def wait_for_step(process, out, step):
    deadline = time.monotonic() + 120
    while steps_logged(out) < step:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.002)


def final_state(out):
    config, _ = load_run(out)
    params = jax.eval_shape(lambda: build_unet(config.model, 0)[1])
    template = jax.eval_shape(lambda p: initial_state(p, make_optimizer(config.train)), params)
    assert latest_step(out) == STEPS
    return restore_state(out, STEPS, template)


@pytest.mark.slow
def test_ctrl_c_then_sigterm_then_kill_9_and_the_end_is_bit_for_bit_that_of_a_run_never_stopped(
    tmp_path,
):
    whole, out = tmp_path / "whole", tmp_path / "run"
    uninterrupted = start(whole)
    assert (uninterrupted.communicate()[1], uninterrupted.returncode) == ("", 0)

    process, stopped = start(out), 0
    for number in (signal.SIGINT, signal.SIGTERM):
        wait_for_step(process, out, stopped + 10)
        process.send_signal(number)
        text, err = process.communicate()
        assert (process.returncode, err) == (0, "")
        stopped = int(re.search(rf"stopped at step (\d+) of {STEPS}; checkpoint saved", text)[1])
        assert latest_step(out) == stopped < STEPS
        arguments = shlex.split(
            re.search(r"python train.py (.*)", text)[1]
        )  # the command that continues
        process = start(out, arguments)

    # Killed once a checkpoint of this process is whole and a later step was logged: between two checkpoints.
    while (saved := latest_step(out)) == stopped:
        assert process.poll() is None, process.communicate()
        time.sleep(0.002)
    wait_for_step(process, out, saved + 1)
    process.kill()
    process.communicate()
    saved = latest_step(out)
    assert stopped < saved < steps_logged(out) < STEPS
    process = start(out)
    text, err = process.communicate()
    assert (process.returncode, err) == (0, "")
    assert f"goes on from step {saved}" in text

    jax.tree.map(np.testing.assert_array_equal, final_state(out), final_state(whole))
    losses = [
        [(line["step"], line["loss"]) for line in metrics(directory)] for directory in (out, whole)
    ]
    assert losses[0] == losses[1]
    assert [step for step, _ in losses[0]] == list(range(1, STEPS + 1))


@pytest.mark.slow
def test_a_finished_run_is_not_trained_again_but_may_be_extended(tmp_path, command):
    config = tiny_config(presets()["digits"], tmp_path / "run", decay="constant")
    save_config(config, tmp_path / "config.json")
    assert command("train", tmp_path / "config.json")[0] == 0
    before = (tmp_path / "run" / "metrics.jsonl").read_text()
    status, out, _ = command("train", tmp_path / "config.json")
    assert (status, "trained to step 3" in out) == (0, True)
    assert (tmp_path / "run" / "metrics.jsonl").read_text() == before
    assert (
        command("train", tmp_path / "config.json", "--train.steps", 5, "--train.log-every", 5)[0]
        == 0
    )
    assert latest_step(tmp_path / "run") == 5
    status, _, err = command("train", tmp_path / "config.json")
    assert (status, "already at step 5; --train.steps is 3" in err) == (1, True)
