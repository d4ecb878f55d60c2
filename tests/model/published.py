"""The recorded weights of one small network in both layouts, and folders of them."""

import json
from collections import OrderedDict
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from ddim_jax.model import UNetConfig
from ddim_jax.model.diffusers_layout import unet_to_diffusers
from tests.model.torch_writer import write_zip

REFERENCE = Path(__file__).parent.parent / "reference"
OFFICIAL, DIFFUSERS = (
    np.load(REFERENCE / f"unet_{layout}_layout.npz") for layout in ("ddpm", "diffusers")
)
CONFIG = UNetConfig(
    16, 3, channels=32, multipliers=(1, 2), blocks=1, attention_resolutions=(8,), groups=8
)
HINTS = {"image_size": 16, "groups": 8}  # what an official file does not say


def weights(reference):
    return {
        name.removeprefix("weights/"): reference[name]
        for name in reference.files
        if name.startswith("weights/")
    }


def diffusers_folder(path, tensors, suffix="safetensors", torch=None, **changes):
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.json").write_text(json.dumps(unet_to_diffusers(CONFIG) | changes))
    if suffix == "safetensors":
        save_file(tensors, path / "diffusion_pytorch_model.safetensors")
    else:
        write_zip(path / "diffusion_pytorch_model.bin", OrderedDict(tensors), torch)
    return path
