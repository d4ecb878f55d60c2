"""The commands of the pages, in their order, with small numbers after their own flags.

Not in the default run: `pytest -m pages`.
"""

import shlex
import shutil
from collections import OrderedDict

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

SMALL = {
    "generate": "--num-images 8 --batch-size 8",
    "ablate": "--num-images 8 --batch-size 8",
    "evaluate": "--num-images 8 --batch-size 8",
    "reconstruct": "--num-images 8 --batch-size 8 --steps 2 3",
    "interpolate": "--rows 2 --columns 3 --batch-size 8 --steps 2",
    "trajectory": "--num-images 2 --batch-size 8 --steps 2",
    "classifier": "--epochs 1",
    "likelihood": "--num-images 4 --batch-size 4",
    "learn": "--updates 3 --steps 2 --num-images 8 --batch-size 8",
    "import": "--image-size 16 --groups 8",  # which a file does not say
    "export": "",
    "train": "--train.steps 2 --train.warmup-steps 1 --train.batch-size 8 --train.sample-steps 2 "
    "--train.sample-images 4 --train.validate-images 4 "
    "--model.channels 4 --model.groups 2 --model.multipliers 1 --model.blocks 1 "
    "--model.attention-resolutions",
}


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


def smaller(name, arguments, place):
    """The arguments with those that make the command quick; the last value of a flag counts."""
    if {"--help", "RUN/config.json"} & {*arguments}:
        return arguments
    kind = arguments[0] if name == "sample" or arguments[0] in SMALL else "train"
    more = shlex.split(SMALL[kind])
    if kind == "train":
        judged = "--train.evaluate-every" in arguments
        more += f"--train.evaluate-images {8 * judged} --train.evaluate-every {+judged}".split()
    if kind == "import" and arguments[1] != "ema_cifar10.ckpt":
        more = []
    if kind in ("ablate", "likelihood") and not {"--sampler", "--ode"} & {*arguments}:
        more += ["--steps", "2", "3"]
    if kind in ("generate", "evaluate") and "--steps" in arguments:
        more += ["--steps", "2"]
    for given, instead in {
        "--likelihood": ("--likelihood", "4"),
        "--stride": ("--stride", "500"),
        "/tmp/once": ("--out", "once"),
    }.items():
        more += instead if given in arguments else ()
    if {"inception", "table1"} & {*arguments}:
        more += ["--inception-sha256", file_sha256(place / "rule.pth")]
    if "table1" in arguments:
        more += ["--against", "REFERENCE", "--sigma", "eta=0", "hat"]
    return [*arguments, *more]


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
        status, _, err = command(name, *smaller(name, arguments, place))
        assert (line, status, err) == (line, 0, "")
