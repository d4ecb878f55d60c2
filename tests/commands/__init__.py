"""What the tests of the two command lines share."""

import json
import os

import numpy as np
from PIL import Image

# The same program in every process, whatever machine this is.
TWO_DEVICES = os.environ | {"JAX_NUM_CPU_DEVICES": "2"}


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
        assert file.files == ["images"]
        return file["images"], text
