"""Runs that are stopped, killed, finished, extended, and go on."""

import io
import re
import shlex
import signal
import time

import jax
import numpy as np
import pytest
from rich.console import Console

from ddim_jax.config import presets
from ddim_jax.model import unet_shapes
from ddim_jax.training import directory, initial_state, load_run, loop, make_optimizer, train
from ddim_jax.training.checkpoint import latest_step, restore_state
from tests.commands import metrics, start, tree
from tests.conftest import tiny_config


def steps_logged(out):
    path = out / "metrics.jsonl"
    return path.read_text().count("\n") if path.exists() else 0


class Interrupting(io.StringIO):
    """Standard output that sends this process a signal once a number of steps is logged."""

    def __init__(self, out, step, *signals):
        super().__init__()
        self.out, self.step, self.signals = out, step, list(signals)

    def write(self, text):
        if steps_logged(self.out) == self.step:
            while self.signals:
                signal.raise_signal(self.signals.pop())
        return super().write(text)


@pytest.fixture
def received():
    """The signals that reach Ctrl-C's handler from before training."""
    numbers = []
    before = signal.signal(signal.SIGINT, lambda number, _: numbers.append(number))
    yield numbers
    signal.signal(signal.SIGINT, before)


@pytest.mark.slow
def test_after_a_signal_the_state_is_saved_and_nothing_else_is_done(
    tmp_path, monkeypatch, counted_steps
):
    """Validation and previews take minutes on a large model; a scheduler kills after 30 seconds."""
    judged, drawn = [], []
    monkeypatch.setattr(loop, "make_validation", lambda *_: lambda *_: judged.append(1) or 1.0)
    monkeypatch.setattr(loop, "make_draw", lambda _: lambda *_: drawn.append(1))
    monkeypatch.setattr(loop, "save_preview", lambda *_: None)
    often = {"checkpoint_every": 2, "sample_every": 1, "validate_images": 4}
    config = tiny_config(presets()["digits"], tmp_path, steps=100, **often)
    console = Console(file=Interrupting(tmp_path, 5, signal.SIGTERM), soft_wrap=True)
    train(config, console)  # the signal comes with the report of step 5
    assert (latest_step(tmp_path), len(judged), len(drawn)) == (6, 2, 4)
    assert "stopped at step 6 of 100; checkpoint saved" in console.file.getvalue()


def kill_between_checkpoints(arguments, out):
    """Train in another process; kill it after a step that its newest checkpoint does not have."""
    before, deadline = latest_step(out), time.monotonic() + 120
    process = start("train", *arguments, "--train.steps", 1_000_000)
    while latest_step(out) == before or steps_logged(out) <= latest_step(out):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.002)
    process.kill()
    process.communicate()
    assert before < latest_step(out) < steps_logged(out)
    return latest_step(out)


def state_of(out, step):
    config, _ = load_run(out)
    shapes = unet_shapes(config.model)
    template = jax.eval_shape(lambda p: initial_state(p, make_optimizer(config.train)), shapes)
    return restore_state(out, step, template)


ENDED = {"steps": 10, "decay": "cosine", "learning_rate": 0.002, "warmup_steps": 1}


@pytest.mark.parametrize(
    ("step", "changes", "refused"),
    [
        (10, {"steps": 20}, None),
        (10, {"steps": 20, "decay": "constant", "learning_rate": 1e-4, "warmup_steps": 0}, None),
        (10, {"steps": 20, "batch_size": 8}, "train.batch-size was 16 there and is 8 now"),
        (10, {"learning_rate": 1e-4}, "train.learning-rate was 0.002 there and is 0.0001 now"),
        (9, {"steps": 20}, "was 10 there and is 20 now; use the old value to continue, and more"),
        (9, {"steps": 20, "decay": "constant"}, "was cosine there and is constant now"),
    ],
)
def test_a_run_that_ended_may_go_on_at_another_rate(step, changes, refused, monkeypatch, tmp_path):
    """Before its end a step would no longer do what it did."""
    saved, asked = (
        tiny_config(presets()["digits"], tmp_path, **ENDED | more) for more in ({}, changes)
    )
    monkeypatch.setattr(directory, "latest_step", lambda _: step)
    monkeypatch.setattr(directory, "load_run_config", lambda _: (saved, step))
    if refused is None:
        assert directory.resumable_step(asked, tmp_path) == step
    else:
        with pytest.raises(ValueError, match=refused):
            directory.resumable_step(asked, tmp_path)


@pytest.mark.slow
def test_a_finished_run_draws_nothing_again_and_goes_on(copy_of_run, command, counted_steps):
    before = tree(copy_of_run)
    place = [copy_of_run / "config.json", "--out", copy_of_run]
    status, out, err = command("train", *place)  # it has no grid: --train.sample-every 0
    assert (status, err) == (0, "")
    assert out == f"{copy_of_run} is finished at step 3; give more --train.steps to go on\n"
    assert tree(copy_of_run) == before
    more = ["--train.steps", 4, "--train.warmup-steps", 50]  # a warm-up longer than the run
    more += ["--train.decay", "cosine"]
    status, out, err = command("train", *place, *more)
    assert (status, err) == (0, "")
    assert f"{copy_of_run} resumes from step 3 with a learning rate of 0.001\n" in out
    assert "\ncompiling the training step …\nstep 4/4  loss" in out
    assert "trained to step 4\n" in out
    assert not (copy_of_run / "samples.png").exists()


@pytest.mark.slow
def test_ctrl_c_then_kill_9_and_the_end_is_that_of_a_run_never_stopped(tmp_path, command, received):
    """Bit for bit. SIGTERM: see tests/test_processes.py."""
    whole, out, options = (
        tmp_path / "whole",
        tmp_path / "run",
        {"steps": 30, "checkpoint_every": 20},
    )
    config = tiny_config(presets()["digits"], out, **options)
    # The second signal acts as it did before training.
    console = Console(file=Interrupting(out, 5, signal.SIGINT, signal.SIGINT), soft_wrap=True)
    train(config, console)
    assert received == [signal.SIGINT]
    text = console.file.getvalue()
    stopped = int(re.search(r"stopped at step (\d+) of 30; checkpoint saved", text)[1])
    assert 5 <= stopped == latest_step(out) <= 6
    arguments = shlex.split(re.search(r"ddim-train (.*)", text)[1])  # what continues

    saved = kill_between_checkpoints(arguments, out)
    arguments += ["--train.steps", saved + 5]
    status, text, err = command("train", *arguments)
    assert (status, err) == (0, "")
    assert f"resumes from step {saved}" in text

    status, text, err = command("train", *arguments, "--out", whole)
    assert (status, err) == (0, "")
    assert latest_step(out) == latest_step(whole) == saved + 5
    states = [state_of(directory, saved + 5) for directory in (out, whole)]
    jax.tree.map(np.testing.assert_array_equal, *states)
    losses = [
        [(line["step"], line["loss"]) for line in metrics(directory)] for directory in (out, whole)
    ]
    assert losses[0] == losses[1]
    assert [step for step, _ in losses[0]] == list(range(1, saved + 6))

    # A finished run is not trained again, and not backwards.
    log = (out / "metrics.jsonl").read_text()
    status, text, _ = command("train", *arguments)
    assert (status, f"is finished at step {saved + 5}" in text) == (0, True)
    assert (out / "metrics.jsonl").read_text() == log
    status, _, err = command("train", *arguments[:-1], saved)
    assert (status, f"already at step {saved + 5}; --train.steps is {saved}" in err) == (1, True)
