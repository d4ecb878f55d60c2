"""What the tests of the two command lines share."""

import json
import subprocess
import sys

import numpy as np
from PIL import Image

from tests.conftest import ROOT

# With the settings of the suite, so that a process computes the bits that this one does.
_PROGRAM = "import sys, tests; {1}\nfrom ddim_jax.commands import {0}; sys.exit({0}())"


def start(name, *arguments, before=""):
    """train.py or sample.py in a process of its own, after a line of Python."""
    return subprocess.Popen(
        [sys.executable, "-c", _PROGRAM.format(name, before), *map(str, arguments)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def metrics(out):
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def pixels(path):
    with Image.open(path) as image:
        return np.asarray(image)


def tree(directory):
    return {
        str(path): path.read_bytes() if path.is_file() else None
        for path in sorted(directory.rglob("*"))
    }


def draw(command, run, tmp_path, *arguments):
    out = tmp_path / "images.npz"
    status, text, err = command("sample", "generate", run, "--steps", 3, "--out", out, *arguments)
    assert (status, err) == (0, "")
    with np.load(out) as file:
        assert file.files == ["images", "arr_0"]
        np.testing.assert_array_equal(file["images"], file["arr_0"])
        return file["images"], text
