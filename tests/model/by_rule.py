"""Weights of Inception made by a rule, so that the network is tested without the published file."""

import zlib
from pathlib import Path

import numpy as np
import pytest

from tests.model.torch_writer import fake_torch, write_legacy

RECORDED = np.load(Path(__file__).parent / "inception_by_rule.npz")
SHAPES = {
    name: tuple(map(int, shape.split(",")))
    for name, shape in (line.split() for line in RECORDED["tensors"].item().decode().splitlines())
}


def by_rule(name, shape):
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    if name.endswith("running_var"):
        values = 0.5 + rng.random(shape)
    elif name.endswith("bn.weight"):
        values = 0.8 + 0.4 * rng.random(shape)
    elif name.endswith(("running_mean", "bias")):
        values = 0.1 * rng.standard_normal(shape)
    else:
        values = rng.standard_normal(shape) * np.sqrt(2 / np.prod(shape[1:]))
    return values.astype(np.float32)


def write_by_rule(path):
    """The file as `torch.save` writes it."""
    tensors = {name: by_rule(name, shape) for name, shape in SHAPES.items()}
    tensors["Mixed_5b.branch1x1.bn.num_batches_tracked"] = np.array([7])
    with pytest.MonkeyPatch.context() as patch:
        write_legacy(path, tensors, fake_torch(patch))
