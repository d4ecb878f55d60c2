"""train.py from its flags to a trained run."""

import dataclasses
import json
import os
import re
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest

from ddim_jax.config import load_config, presets, save_config
from ddim_jax.model import unet_shapes
from ddim_jax.training import load_run
from ddim_jax.training.checkpoint import latest_step
from tests.commands import metrics, pixels
from tests.conftest import ROOT, tiny_config
from tests.data.synthetic import write_archive


@pytest.fixture(scope="module")
def train(command):
    """Train the run of a configuration; what train.py says."""

    def call(config, directory):
        save_config(config, directory / "config.json")
        status, out, err = command("train", directory / "config.json")
        assert (status, err) == (0, "")
        return out

    return call


@pytest.fixture(scope="module")
def digits(train, tmp_path_factory):
    """A trained run of digits, and what train.py said."""
    directory = tmp_path_factory.mktemp("digits")
    options = {"sample_every": 2, "evaluate_images": 16}
    config = tiny_config(presets()["digits"], directory / "run", **options)
    return config, train(config, directory)


def check_run(config, out, command, directory):
    """That a run is complete, and that sample.py draws what train.py drew at its end."""
    run = Path(config.out)
    assert latest_step(run) == config.train.steps == 3
    assert [line["step"] for line in metrics(run)] == [1, 2, 3]
    assert all(np.isfinite(line["loss"]) and line["images_per_second"] > 0 for line in metrics(run))
    assert time.time() - 600 < metrics(run)[0]["time"] < metrics(run)[2]["time"] < time.time()
    saved, params = load_run(run)
    assert load_config(run / "config.json") == saved == config
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(params))
    assert [path.name for path in (run / "samples").iterdir()] == ["step_0000002.png"]
    assert re.search(r"step 3/3  loss \d\.\d+  [\d,]+ images/s  \d:\d\d:\d\d left", out)

    # For the same seed, S and batch.
    again = directory / "again.png"
    count, steps = config.train.sample_images, config.train.sample_steps
    flags = ["--num-images", count, "--steps", steps, "--batch-size", count, "--out", again]
    status, _, err = command("sample", "generate", run, *flags)
    assert (status, err) == (0, "")
    np.testing.assert_array_equal(pixels(again), pixels(run / "samples.png"))
    return pixels(again)


@pytest.mark.slow
def test_digits_are_trained_on_and_sampled(digits, command, tmp_path):
    assert check_run(*digits, command, tmp_path).ndim == 2
    last = metrics(Path(digits[0].out))[2]
    assert (last["learning_rate"], last["epoch"]) == (pytest.approx(0.002), 0.0334)  # 48 of 1,437
    distance = r"Fréchet distance, pixels, n=16 against 1,437 train images, S=4 .*: ([\d.]+)"
    assert re.search(distance, digits[1])


@pytest.mark.slow
def test_emoji_are_trained_on_and_sampled(train, command, tmp_path):
    options = {"batch_size": 2, "sample_every": 2, "sample_steps": 2, "sample_images": 2}
    config = tiny_config(presets()["emoji"], tmp_path / "run", **options)
    out = train(config, tmp_path)
    assert check_run(config, out, command, tmp_path).ndim == 3
    assert "Fréchet" not in out


@pytest.mark.slow
def test_a_synthetic_cifar10_archive_is_prepared_and_trained_on_without_tensorflow(tmp_path):
    """By the command as users start it."""
    sha256, _ = write_archive(tmp_path / "cifar-10-binary.tar.gz")
    settings = {"steps": 2, "batch_size": 2, "sample_images": 1, "sample_steps": 2}
    config = tiny_config(presets()["cifar10"], tmp_path / "run", **settings)
    data = replace(config.data, data_dir=str(tmp_path), archive_sha256=sha256)
    save_config(replace(config, data=data), tmp_path / "config.json")
    (tmp_path / "tensorflow.py").write_text("raise ImportError('this is the one of a test')")
    done = subprocess.run(
        [sys.executable, ROOT / "train.py", tmp_path / "config.json"],
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "60 images (32, 32, 3)" in done.stdout
    assert latest_step(tmp_path / "run") == 2


def test_dry_run_describes_and_writes_nothing(tmp_path, command):
    run = tmp_path / "run"
    status, out, _ = command("train", "--dry-run", "--out", run, "--train.learning-rate", "0.001")
    assert status == 0
    described = json.loads(out[: out.rindex("}") + 1])
    digits = presets()["digits"]
    expected = replace(digits, out=str(run), train=replace(digits.train, learning_rate=0.001))
    assert described == json.loads(json.dumps(dataclasses.asdict(expected)))
    parameters = jax.tree.leaves(unet_shapes(digits.model))
    assert f"parameters: {sum(leaf.size for leaf in parameters):,}" in out
    assert "digits, 1,437 images of shape (8, 8, 1); batches (128, 8, 8, 1)" in out
    assert not run.exists()


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
    assert "TableParameters" not in text


SECOND = """
import sys, tests, jax
from ddim_jax.commands import train
events = []
jax.monitoring.register_event_listener(lambda event, **_: events.append(event))
status = train()
names = ("compile_requests_use_cache", "cache_hits")
print("counts", *(events.count(f"/jax/compilation_cache/{name}") for name in names))
sys.exit(status)
"""


@pytest.mark.slow
def test_a_second_start_compiles_nothing(digits, tmp_path):
    """Every program of a run is in the persistent cache, small ones included."""
    for name in ("first", "second"):
        file = tmp_path / f"{name}.json"
        save_config(replace(digits[0], out=str(tmp_path / name)), file)
        done = subprocess.run(
            [sys.executable, "-c", SECOND, file],
            env=os.environ | {"JAX_COMPILATION_CACHE_DIR": str(tmp_path / "cache")},
            cwd=ROOT,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
    asked, hits = map(int, re.findall(r"counts (\d+) (\d+)", done.stdout)[0])
    assert asked == hits >= 3
