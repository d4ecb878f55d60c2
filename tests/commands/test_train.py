"""train.py from its flags to a trained run."""

import dataclasses
import json
import re
import subprocess
import sys

import jax
import numpy as np
import pytest

from ddim_jax.config import load_config, presets, save_config
from ddim_jax.model import build_unet
from ddim_jax.training import load_run
from ddim_jax.training.checkpoint import latest_step
from tests.commands import TWO_DEVICES, metrics, pixels
from tests.conftest import ROOT, tiny_config
from tests.data.synthetic import write_archive


@pytest.mark.slow
@pytest.mark.parametrize("source", ["digits", "emoji"])
def test_train_and_sample_each_embedded_data_set(source, tmp_path, command):
    config = tiny_config(
        presets()[source],
        tmp_path / "run",
        sample_every=2,
        evaluate_images=16 if source == "digits" else 0,
    )
    save_config(config, tmp_path / "config.json")
    status, out, err = command("train", tmp_path / "config.json")
    assert (status, err) == (0, "")
    run = tmp_path / "run"
    assert latest_step(run) == config.train.steps == 3
    assert [line["step"] for line in metrics(run)] == [1, 2, 3]
    assert all(np.isfinite(line["loss"]) and line["images_per_second"] > 0 for line in metrics(run))
    saved, params = load_run(run)
    assert load_config(run / "config.json") == saved == config
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(params))
    assert sorted(path.name for path in (run / "samples").iterdir()) == ["step_0000002.png"]
    assert re.search(r"step 3/3  loss \d\.\d+  [\d,]+ images/s  \d:\d\d:\d\d left", out)
    match = re.search(
        r"Fréchet distance, pixels in \[-1, 1\], 64 dimensions, n=16 .* S=4, eta=0: ([\d.]+)", out
    )
    assert bool(match) == (source == "digits")

    # The picture of the end is what sample.py draws for the same seed, S and batch.
    arguments = [
        "generate",
        run,
        "--num-images",
        4,
        "--steps",
        4,
        "--batch-size",
        4,
        "--out",
        tmp_path / "again.png",
    ]
    status, out, err = command("sample", *arguments)
    assert (status, err) == (0, "")
    np.testing.assert_array_equal(pixels(tmp_path / "again.png"), pixels(run / "samples.png"))
    assert pixels(run / "samples.png").ndim == (2 if source == "digits" else 3)


@pytest.mark.slow
def test_a_synthetic_cifar10_archive_is_prepared_and_trained_on_without_tensorflow(tmp_path):
    sha256, _ = write_archive(tmp_path / "cifar-10-binary.tar.gz")
    out = tmp_path / "run"
    flags = f"""cifar10 --out {out} --data.data-dir {tmp_path} --data.archive-sha256 {sha256} --model.channels 8
                --model.groups 2 --model.multipliers 1 --model.blocks 1 --model.attention-resolutions
                --train.steps 2 --train.batch-size 8 --train.sample-images 4 --train.sample-steps 2 --train.log-every 1""".split()
    code = "import sys, train; from ddim_jax.cli import run; s = run(train.main); sys.exit(s or 'tensorflow' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code, *flags],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=TWO_DEVICES,
    )
    assert done.returncode == 0, done.stderr
    assert "60 images (32, 32, 3)" in done.stdout
    assert latest_step(out) == 2


def test_dry_run_describes_and_writes_nothing(tmp_path, command):
    status, out, _ = command(
        "train", "--dry-run", "--out", tmp_path / "run", "--train.learning-rate", "0.001"
    )
    assert status == 0
    described = json.loads(out[: out.rindex("}") + 1])
    digits = presets()["digits"]
    train = dataclasses.replace(digits.train, learning_rate=0.001)
    expected = dataclasses.asdict(
        dataclasses.replace(digits, out=str(tmp_path / "run"), train=train)
    )
    assert described == json.loads(json.dumps(expected))
    parameters = jax.eval_shape(lambda: build_unet(digits.model, 0)[1])
    assert f"parameters: {sum(leaf.size for leaf in jax.tree.leaves(parameters)):,}" in out
    assert "digits, 1,437 images of shape (8, 8, 1); batches (128, 8, 8, 1)" in out
    assert not (tmp_path / "run").exists()


def test_dry_run_of_the_papers_model_prepares_nothing(tmp_path, command):
    status, out, _ = command("train", "cifar10", "--dry-run", "--data.data-dir", tmp_path)
    assert status == 0
    assert "parameters: 35,746,307" in out
    assert "batches (128, 32, 32, 3)" in out
    assert list(tmp_path.iterdir()) == []


def test_every_field_is_a_flag_with_help(command):
    status, out, _ = command("train", "--help")
    assert status == 0
    text = re.sub(r"[\s│]+", "", out)

    def fields(values, prefix="--"):
        for name, value in values.items():
            if isinstance(value, dict):
                yield from fields(value, f"{prefix}{name}.")
            else:
                yield prefix + name.replace("_", "-")

    flags = list(fields(dataclasses.asdict(presets()["digits"])))
    assert len(flags) > 35
    assert [flag for flag in flags if flag not in text] == []
    assert "Parameters" not in text


@pytest.mark.slow
def test_a_second_start_compiles_nothing(tmp_path, command):
    """Every program of a run is in the persistent cache, small ones included."""
    events = []

    def count(event, **_):
        events.append(event)

    jax.monitoring.register_event_listener(count)
    try:
        for name in ("one", "two"):
            jax.clear_caches()
            events.clear()
            save_config(
                tiny_config(presets()["digits"], tmp_path / name, evaluate_images=16),
                tmp_path / "config.json",
            )
            assert command("train", tmp_path / "config.json")[0] == 0
    finally:
        jax.monitoring.unregister_event_listener(count)
    asked, found = (
        events.count(f"/jax/compilation_cache/{what}")
        for what in ("compile_requests_use_cache", "cache_hits")
    )
    assert asked == found > 5
