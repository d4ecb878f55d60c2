"""`train` against its parts, put together by hand."""

import signal
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
from rich.console import Console

from ddim_jax.config import DiffusionConfig, presets
from ddim_jax.data import batches, load_dataset
from ddim_jax.devices import batch_sharding, make_mesh, state_shardings, to_global
from ddim_jax.diffusion.objective import loss_weights
from ddim_jax.model import build_unet, unet_apply
from ddim_jax.training import (
    initial_state,
    load_run,
    loop,
    make_optimizer,
    make_train_step,
    train,
)
from ddim_jax.training.halt import refuse_to_go_on
from ddim_jax.training.prepare import prepare_state, prepare_step
from tests.commands import metrics
from tests.conftest import tiny_config


@pytest.mark.slow
def test_training_is_the_step_over_the_batches(tmp_path, monkeypatch):
    """Every setting reaches the step, and no image of a digit is mirrored."""
    settings = {"loss_weight": "min-snr", "min_snr_gamma": 3.0, "ema_decay": 0.2}
    settings |= {"label_dropout": 0.5, "clip_norm": 0.1, "sample_images": 1, "validate_images": 1}
    judged = []
    monkeypatch.setattr(
        loop, "make_validation", lambda *_: lambda ema, _: judged.append(ema) or 1.0
    )
    config = tiny_config(presets()["digits"], tmp_path / "run", **settings)
    model = replace(config.model, num_classes=10, zero_init=False)
    config = replace(
        config, seed=5, model=model, diffusion=DiffusionConfig(schedule="cosine", prediction="v")
    )
    train(config, Console(quiet=True))

    alpha_bar, optimizer = config.diffusion.alpha_bar(), make_optimizer(config.train)
    _, params = build_unet(model, 5)
    state = initial_state(params, optimizer)
    mesh = make_mesh(16, 1)
    shardings = state_shardings(state, mesh)
    step = make_train_step(
        unet_apply(model, to_train=True),
        optimizer,
        alpha_bar,
        seed=5,
        ema_decay=0.2,
        kind="v",
        weights=loss_weights(alpha_bar, "v", "min-snr", min_snr_gamma=3.0),
        num_classes=10,
        label_dropout=0.5,
        shardings=shardings,
    )
    state, log = jax.device_put(state, shardings), metrics(tmp_path / "run")
    stream = batches(load_dataset(config.data, (8, 8, 1)), 16, seed=5)
    for line, (x_0, label), _ in zip(log, stream, range(3), strict=False):
        state, expected = step(state, *to_global((x_0, label), batch_sharding(mesh)))
        assert line["loss"] == pytest.approx(float(expected["loss"]), rel=1e-5)
        assert line["grad_norm"] == pytest.approx(float(expected["grad_norm"]), rel=1e-5)
    assert [line["step"] for line in log] == [1, 2, 3]
    # A checkpoint is judged by the weights that are sampled from.
    for actual, leaf in zip(*map(jax.tree.leaves, (judged[-1], state.ema)), strict=True):
        np.testing.assert_allclose(actual, leaf, rtol=1e-5, atol=1e-7)
    for actual, leaf in zip(
        *map(jax.tree.leaves, (load_run(config.out)[1], state.ema)), strict=True
    ):
        np.testing.assert_allclose(actual, leaf, rtol=1e-5, atol=1e-7)


def test_a_new_run_compiles_its_step_once(tmp_path):
    """A new state has the types of one that a step returned, weak types included."""
    config = tiny_config(presets()["digits"], tmp_path)
    state, shardings = prepare_state(config, make_mesh(16, data=1), Path("none"), None)
    step = prepare_step(config, None, shardings, flip=False)
    after, _ = jax.eval_shape(step, state, np.zeros((16, 8, 8, 1), np.float32))
    for before, later in zip(jax.tree.leaves(state), jax.tree.leaves(after), strict=True):
        assert (before.dtype, before.weak_type) == (later.dtype, later.weak_type)


class Watched:
    """A number on the devices that writes down that it was waited for."""

    def __init__(self, value, name, events):
        self.value, self.name, self.events = value, name, events

    def block_until_ready(self):
        self.events.append(("waited", self.name))
        return self

    def __array__(self, *_, **__):
        return np.asarray(self.value)


def test_a_signal_is_followed_by_no_queue_of_steps_and_no_preview(tmp_path, monkeypatch):
    """One step is queued behind the one that is computed; a preview that is drawn is left."""
    events = []

    def scripted_step(*_, **__):
        def step(state, *_):
            n = int(state.step) + 1
            events.append(("called", n))
            return state._replace(step=np.int32(n)), {"loss": Watched(1.0, n, events)}

        return step

    def scripted_draw(_):
        def draw(_, count, stop):
            events.append(("drawn", count))
            signal.raise_signal(signal.SIGTERM)
            refuse_to_go_on(stop)

        return draw

    monkeypatch.setattr(loop, "prepare_step", scripted_step)
    monkeypatch.setattr(loop, "make_draw", scripted_draw)
    config = tiny_config(
        presets()["digits"], tmp_path, steps=99, log_every=90, sample_every=5, sample_images=3,
        checkpoint_every=90,
    )  # fmt: skip
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        train(config, Console(quiet=True))
    finally:
        signal.signal(signal.SIGTERM, before)
    queued = [("called", 1)]
    for n in (2, 3, 4, 5):
        queued += [("called", n), ("waited", n - 1)]
    assert events[: len(queued) + 1] == [*queued, ("drawn", 3)]
    assert [event for event in events if event[0] == "called"][5:] == [("called", 6)]
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["6"]
    assert not (tmp_path / "samples").exists()
