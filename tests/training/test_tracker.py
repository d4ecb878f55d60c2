"""What TensorBoard and W&B read back, and that no tracker ends a training."""

import io
import json
import struct
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from ddim_jax.config import presets, save_config
from ddim_jax.images import save_grid
from ddim_jax.training import tracker as module
from ddim_jax.training.tracker import Tracker, tracking
from tests.commands import metrics
from tests.conftest import tiny_config


def tracked(directory, tracker, **settings):
    return tiny_config(presets()["digits"], directory / "run", tracker=tracker, **settings)


def read_tensorboard(run):
    pytest.importorskip("tensorboard", reason="the extra tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    return EventAccumulator(str(run / "tensorboard"), {"tensors": 0, "images": 0}).Reload()


@pytest.mark.slow
def test_tensorboard_has_what_metrics_jsonl_has_also_after_a_resumption(
    tmp_path, command, counted_steps
):
    pytest.importorskip("tensorboard", reason="the extra tensorboard is not installed")
    settings = {"sample_every": 2, "validate_images": 8}
    config = tracked(tmp_path, "tensorboard", **settings)
    save_config(config, tmp_path / "config.json")
    run = Path(config.out)
    for steps in ("2", "3"):
        status, _, err = command("train", tmp_path / "config.json", "--train.steps", steps)
        assert (status, err) == (0, "")
        if steps == "2":  # as if killed after step 3, between two checkpoints
            with tracking(config, 2, Console(quiet=True)) as tracker:
                tracker.log({"step": 3, "loss": 77.0})

    events, lines = read_tensorboard(run), metrics(run)
    assert set(events.Tags()["scalars"]) == set().union(*lines) - {"step"}
    for name in events.Tags()["scalars"]:
        read = [(event.step, event.value) for event in events.Scalars(name)]
        wrote = [(line["step"], line[name]) for line in lines if name in line]
        np.testing.assert_allclose(read, wrote, rtol=1e-6)
    assert [event.step for event in events.Scalars("loss")] == [1, 2, 3]
    images = [(event.step, event.encoded_image_string) for event in events.Images("samples")]
    preview = (run / "samples" / "step_0000002.png").read_bytes()
    assert images[0] == (2, preview)
    assert images[-1] == (3, (run / "samples.png").read_bytes())
    text = events.Tensors("configuration")[-1].tensor_proto.string_val[0].decode()
    assert json.loads(text) == json.loads((run / "config.json").read_text())


def wandb_records(path):
    """The records of a .wandb file: LevelDB's log format after a header of 7 bytes."""
    from wandb.proto.wandb_internal_pb2 import Record

    content, place, parts = path.read_bytes(), 7, b""
    while place + 7 <= len(content):
        left = -place % 32_768
        if 0 < left < 7:  # the end of a block, too short for a header
            place += left
        _, length, kind = struct.unpack("<IHB", content[place : place + 7])
        parts += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield Record.FromString(parts)
            parts = b""


def test_wandb_offline_has_one_run_that_goes_on(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb", reason="the extra wandb is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    config = tracked(tmp_path, "wandb")
    run = Path(config.out)
    save_grid(np.zeros((1, 8, 8, 1), np.uint8), run / "samples.png")
    for start in (0, 2):
        with tracking(config, start, Console(quiet=True)) as tracker:
            for step in range(start + 1, start + 4):
                tracker.log({"step": step, "loss": 1 / step})
            tracker.show(start + 3, run / "samples.png")
            tracker.close(True)
    wandb.teardown()  # the files are written when its process has ended
    files = sorted((run / "wandb").glob("offline-run-*/*.wandb"))
    records = [record for path in files for record in wandb_records(path)]
    runs = [record.run for record in records if record.HasField("run")]
    assert {one.run_id for one in runs} == {(run / "wandb.id").read_text()}
    assert len(files) == 2
    values = {item.key: json.loads(item.value_json) for item in runs[0].config.update}
    assert values["train"]["batch_size"] == config.train.batch_size
    rows = [
        {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in row.item}
        for row in (record.history for record in records if record.HasField("history"))
    ]
    losses = [(row["step"], row["loss"]) for row in rows if "loss" in row]
    assert losses == [(step, 1 / step) for step in (1, 2, 3, 3, 4, 5)]
    assert sum("samples" in name for row in rows for name in row if name.endswith("path")) == 2
    assert all(record.exit.exit_code == 0 for record in records if record.HasField("exit"))


def broken(log=None, close=None):
    """A tracker whose parts raise what is given."""

    def fails(error):
        def call(*_):
            if error:
                raise error

        return call

    return lambda config, start: Tracker(fails(log), fails(None), fails(close))


@pytest.mark.parametrize(
    ("opened", "reason"),
    [
        (broken(log=OSError(28, "No space left on device")), "No space left on device"),
        (broken(log=RuntimeError("first line\nsecond line")), "first line)"),
        (broken(log=OSError(28, "full"), close=OSError(5, "again")), "full"),
        (broken(close=KeyError()), "KeyError"),
        (lambda config, start: 1 / 0, "division by zero"),
    ],
)
def test_a_tracker_that_fails_says_one_line_and_is_asked_no_more(
    monkeypatch, tmp_path, opened, reason
):
    monkeypatch.setitem(module.TRACKERS, "wandb", opened)
    console = Console(file=io.StringIO(), soft_wrap=True)
    with tracking(tracked(tmp_path, "wandb"), 0, console) as tracker:
        for step in (1, 2):
            tracker.log({"step": step})
        tracker.show(2, Path(__file__))
    (line,) = console.file.getvalue().splitlines()
    assert line.startswith("warning: wandb failed (")
    assert reason in line
    assert line.endswith("); training goes on without it")


def test_tensorboard_without_a_place_to_write(tmp_path):
    pytest.importorskip("tensorboard", reason="the extra tensorboard is not installed")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "tensorboard").touch()
    console = Console(file=io.StringIO(), soft_wrap=True)
    with tracking(tracked(tmp_path, "tensorboard"), 0, console) as tracker:
        tracker.log({"step": 1, "loss": 1.0})
    assert console.file.getvalue().startswith("warning: tensorboard failed (")
    assert len(console.file.getvalue().splitlines()) == 1


def test_only_the_first_process_has_a_tracker(monkeypatch, tmp_path):
    monkeypatch.setattr("jax.process_index", lambda: 1)
    with tracking(tracked(tmp_path, "tensorboard"), 0, Console(quiet=True)) as tracker:
        tracker.log({"step": 1, "loss": 1.0})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("flags", [[], ["--dry-run"]])
def test_a_package_that_is_missing(monkeypatch, command, tmp_path, flags):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    status, out, err = command("train", *flags, "--train.tracker", "wandb", "--out", tmp_path / "a")
    assert (status, out) == (1, "")
    assert "--train.tracker is wandb" in err
    assert "pip install 'ddim_jax[wandb]'" in err
    assert not (tmp_path / "a").exists()


def test_what_is_no_number_is_left_out():
    line = {"step": 3, "loss": 1.0, "count": 2, "note": "text", "grid": [1, 2]}
    assert module._numbers(line) == {"loss": 1.0, "count": 2}
