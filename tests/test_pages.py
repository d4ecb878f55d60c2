"""The commands of the pages, in their order, with small numbers after their own flags.

Not in the default run: `pytest -m pages`.
"""

import shutil
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ddim_jax.config import DataConfig, presets
from ddim_jax.data import load_dataset
from ddim_jax.files import file_sha256
from tests.conftest import ROOT, save_tiny_run
from tests.data.synthetic import SHAPE, write_archive
from tests.model.published import OFFICIAL, weights
from tests.model.test_variants import folder
from tests.model.torch_writer import fake_torch, write_zip
from tests.test_docs import PAGES, commands, name_and_arguments, python_blocks

# What is written after a command line that has the word; the last value of a flag counts.
AFTER = {
    "generate": "--num-images 8 --batch-size 8",
    "ablate": "--num-images 8 --batch-size 8",
    "evaluate": "--num-images 8 --batch-size 8",
    "reconstruct": "--num-images 8 --batch-size 8",
    "interpolate": "--rows 2 --columns 3 --batch-size 8",
    "trajectory": "--num-images 2 --batch-size 8",
    "classifier": "--epochs 1",
    "likelihood": "--num-images 4 --batch-size 4",
    "learn": "--updates 3 --num-images 8 --batch-size 8",
    "train.py": "--train.steps 2 --train.warmup-steps 1 --train.batch-size 8 "
    "--train.sample-steps 2 --train.sample-images 4 --train.validate-images 4 "
    "--train.evaluate-images 0 --model.channels 4 --model.groups 2 --model.multipliers 1 "
    "--model.blocks 1 --model.attention-resolutions",
    "ema_cifar10.ckpt": "--image-size 16 --groups 8",  # which a file does not say
    "--train.evaluate-every": "--train.evaluate-every 1 --train.evaluate-images 8",
    "--likelihood": "--likelihood 4",
    "--stride": "--stride 500",
    "/tmp/once": "--out once",
    "--features": "--inception-sha256 HASH",
    "table1": "--inception-sha256 HASH --against REFERENCE --sigma eta=0 hat",
}
STEPS = {"generate": "2", "learn": "2", "ablate": "2 3", "likelihood": "2 3", "reconstruct": "2 3"}


@pytest.fixture(scope="module")
def place(tmp_path_factory, inception_file):
    """A directory with everything that the pages name."""
    here = tmp_path_factory.mktemp("reader")
    for name in ("RUN", "runs/digits", "runs/tutorial", "runs/cifar10"):
        save_tiny_run(here / name, num_steps=100)
    (here / "mine.py").write_text(python_blocks(ROOT / "README.md")[0])
    rng = np.random.default_rng(0)
    for name in ("IMAGES", "REFERENCE", "train", "test", "home/pictures"):
        (here / name).mkdir(parents=True)
        for i in range(12):
            pixels = rng.integers(0, 256, (40, 36, 3), np.uint8)
            Image.fromarray(pixels).save(here / name / f"{i}.png")
    with pytest.MonkeyPatch.context() as patch:
        write_zip(here / "ema_cifar10.ckpt", OrderedDict(weights(OFFICIAL)), fake_torch(patch))
    shutil.copy(inception_file, here / "rule.pth")
    prepared = here / "home" / "tensorflow_datasets"
    prepared.mkdir()
    sha256, _ = write_archive(prepared / "cifar-10-binary.tar.gz")
    load_dataset(DataConfig("cifar10", data_dir=str(prepared), archive_sha256=sha256), SHAPE)
    return here


def smaller(name, arguments):
    """The arguments and those that make the command quick."""
    words = {*arguments}
    if {"--help", "RUN/config.json"} & words:
        return arguments
    if name == "train" and not {"import", "export"} & words:
        words.add("train.py")
    more = [flags for word, flags in AFTER.items() if word in words]
    if arguments[0] in STEPS and not {"--sampler", "--ode"} & words:  # which have S of their own
        more.append(f"--steps {STEPS[arguments[0]]}")
    sha256 = file_sha256(Path("rule.pth"))
    return [*arguments, *" ".join(more).replace("HASH", sha256).split()]


@pytest.mark.slow
@pytest.mark.pages
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_run(page, place, command, monkeypatch, tmp_path):
    monkeypatch.chdir(place)
    monkeypatch.setenv("HOME", str(place / "home"))
    monkeypatch.setenv("DDIM_JAX_INCEPTION", str(place / "rule.pth"))
    # tests/model/test_hub.py asks a server for a name.
    hub = folder(tmp_path / "hub", "sigma")
    monkeypatch.setattr("ddim_jax.training.import_export.fetch", lambda name: hub)
    for line in commands(page):
        name, arguments = name_and_arguments(line)
        # What the page writes as an alternative, or as a start of its own.
        preset = arguments[0] if arguments[0] in presets() else "digits"
        written = "published" if arguments[0] == "import" else preset
        if name == "train" and not {"export", "RUN/config.json"} & {*arguments}:
            shutil.rmtree(f"runs/{written}", ignore_errors=True)
        status, _, err = command(name, *smaller(name, arguments))
        assert (line, status, err) == (line, 0, "")
