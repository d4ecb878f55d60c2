"""A run and its data, from the command line: what is said, saved, compared and refused."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from ddim_jax.config import load_config, presets, save_config
from ddim_jax.data import load_dataset
from ddim_jax.data.dataset import run_classes, save_record
from ddim_jax.training import TrainState, loop
from tests.conftest import tiny_config
from tests.data.synthetic import write_archive

CIFAR = ["cifar10", "--dry-run", "--data.data-dir"]


def test_a_run_says_and_saves_its_classes_and_refuses_other_data(tmp_path, command, monkeypatch):
    """From its start to its first step; later it is as if step 1 had been saved."""
    state = TrainState(np.int32(0), {}, {}, ())
    monkeypatch.setattr(loop, "prepare_state", lambda *_: (state, None))
    monkeypatch.setattr(loop, "_run", lambda *_: state)
    run, file, root = tmp_path / "run", tmp_path / "config.json", tmp_path / "root"
    for k, name in enumerate(("dog/a", "cat/b", "cat/c")):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 8), 50 * k, np.uint8)).save(root / f"{name}.png")
    config = tiny_config(presets()["digits"], run, validate_images=4)
    config = replace(
        config,
        data=replace(config.data, source=f"folder:{root}"),
        model=replace(config.model, num_classes=2),
    )
    save_config(config, file)
    status, out, err = command("train", file)
    assert (status, err) == (0, "")
    assert "2 classes: cat, dog\n" in out
    assert "images are not mirrored (--data.flip True mirrors them)\n" in out
    assert run_classes(run) == ("cat", "dog")
    record = json.loads((run / "data.json").read_text())
    assert record["held out"] == {name: record[name] for name in ("name", "images", "fingerprint")}
    assert load_config(run / "config.json").data.flip is None
    (root / "cat" / "c.png").rename(root / "dog" / "c.png")
    monkeypatch.setattr(loop, "resumable_step", lambda *_: 1)
    for flags in ([], ["--dry-run"]):
        status, out, err = command("train", file, *flags)
        assert (status, out) == (1, "")
        assert err.startswith(f"error: the data changed since {run} began: 3 images then, 3 in")
    (run / "data.json").unlink()
    assert command("train", file)[0] == 0
    assert len(json.loads((run / "data.json").read_text())["fingerprint"]) == 64


def test_digits_that_changed_are_refused_and_those_that_did_not_are_not(
    tiny_run, tmp_path, command
):
    run = shutil.copytree(tiny_run, tmp_path / "run")
    flags = [run / "config.json", "--out", run, "--dry-run"]
    digits = load_dataset(load_config(run / "config.json").data, (8, 8, 1))
    for fingerprint, status in ((digits.fingerprint, 0), ("another", 1), ("", 0)):
        save_record(run, digits._replace(fingerprint=fingerprint))
        assert command("train", *flags)[0] == status
    save_record(run, digits, digits._replace(fingerprint="another"))
    assert command("train", *flags)[0] == 0  # nothing is held out
    status, _, err = command("train", *flags, "--train.validate-images", 4)
    assert (status, "held out for the validation loss changed" in err) == (1, True)
    (run / "data.json").write_text("not JSON")
    status, _, err = command("train", *flags)
    assert (status, err.count("\n"), "data.json is not JSON" in err) == (1, 1, True)


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--model.num-classes", "7"], "cifar10, not yet prepared in {tmp} has 10 classes; use 10"),
        (["--model.image-size", "16"], "cifar10, not yet prepared in {tmp} has images of shape"),
        (["--data.archive", "{tmp}/none"], "--data.archive {tmp}/none does not exist"),
        (["--data.archive", "{tmp}/own.tar.gz"], "give --data.archive-sha256 {sha256}; if not"),
        (["--mesh.data", "99"], "--mesh.data 99"),
        (["--data.source", "folder:"], "--data.source is folder:; it must be"),
    ],
)
def test_a_dry_run_refuses_what_training_refuses(flags, sentence, tmp_path, command):
    fill = {"tmp": tmp_path, "sha256": write_archive(tmp_path / "own.tar.gz", records=1)[0]}
    before = sorted(tmp_path.iterdir())
    run = ["--out", tmp_path / "run"]
    flags = [flag.format(**fill) for flag in flags]
    status, out, err = command("train", *CIFAR, tmp_path, *run, *flags)
    assert (status, out, err.count("\n")) == (1, "", 1)
    assert sentence.format(**fill) in err
    assert sorted(tmp_path.iterdir()) == before


def test_flip_is_none_true_or_false_in_flags_and_in_files(tmp_path, command):
    for text, value in (("None", None), ("True", True), ("False", False)):
        flags = ["--dry-run", "--out", tmp_path / "run", "--data.flip", text]
        status, out, err = command("train", *flags)
        assert (status, err) == (0, "")
        described = out[: out.rindex("}") + 1]
        assert json.loads(described)["data"]["flip"] is value
        (tmp_path / "config.json").write_text(described)
        assert load_config(tmp_path / "config.json").data.flip is value
    (tmp_path / "config.json").write_text('{"data": {"flip": "yes"}}')
    with pytest.raises(ValueError, match=r"data.flip is 'yes'; it must be of type bool"):
        load_config(tmp_path / "config.json")
