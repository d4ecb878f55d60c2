"""Import and export weights: the official DDPM/DDIM layout, and diffusers' UNet2DModel.

Our layers have the names of the official checkpoints (`down.1.attn.0.q`); diffusers' names follow
by a table. PyTorch stores a convolution as (out, in, height, width) and a dense layer as (out, in);
we store (height, width, in, out) and (in, out). The 1×1 convolutions of the official attention are
dense layers here.
"""

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import safetensors
from safetensors.numpy import save_file

from ..config import DiffusionConfig, UNetConfig
from ..files import read_json
from .diffusers_layout import (
    diffusers_name,
    schedule_to_diffusers,
    unet_of_diffusers,
    unet_to_diffusers,
)
from .torch_file import read_torch_file
from .unet import unet_shapes

Tensors = Mapping[str, Any]

_WEIGHTS = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin")
_FROM_TORCH, _TO_TORCH = (2, 3, 1, 0), (3, 2, 0, 1)  # axes of a convolution's kernel


def load_pretrained(
    path: str | Path, *, image_size: int = 32, groups: int = 32
) -> tuple[UNetConfig, dict[str, Any]]:
    """The architecture and float32 params of a published checkpoint.

    No code in a file is run. A file that is not a checkpoint, is damaged, or has a missing, extra
    or wrongly shaped tensor raises a ValueError that names it.

    Args:
        path: an official checkpoint (a state dict, or the list that the official code saves, from
            which the EMA weights are taken; PyTorch's formats or .safetensors), or a diffusers
            folder with config.json and .safetensors or .bin.
        image_size: height and width of the images, not stored in an official checkpoint.
        groups: groups of GroupNorm, not stored in an official checkpoint.
    """
    path = Path(path)
    if path.is_dir():
        folder = path / "unet" if (path / "unet" / "config.json").is_file() else path
        described = folder / "config.json"
        config = unet_of_diffusers(read_json(described, "a UNet2DModel folder"), described)
        file = next((folder / name for name in _WEIGHTS if (folder / name).is_file()), None)
        if file is None:
            raise ValueError(
                f"{folder} holds none of {' and '.join(_WEIGHTS)}; "
                "give a folder that save_pretrained wrote."
            )
        tensors, levels = _state_dict(file), len(config.multipliers)
        old = any(".query." in name for name in tensors)
        return config, _fill(config, tensors, file, lambda name: diffusers_name(name, levels, old))
    tensors = _state_dict(path)
    config = _config_of_official(tensors, path, image_size, groups)
    return config, _fill(config, tensors, path, lambda name: name)


def save_diffusers(
    path: str | Path, config: UNetConfig, params: Any, diffusion: DiffusionConfig | None = None
) -> None:
    """Write weights as a folder that diffusers' `UNet2DModel.from_pretrained` loads.

    An existing UNet2DModel is replaced. With `diffusion`,
    `DDIMScheduler.from_pretrained` loads the folder, too.
    """
    path = Path(path)
    tensors = {
        diffusers_name(name, len(config.multipliers)): np.ascontiguousarray(
            _permuted(name, np.asarray(leaf, np.float32), _TO_TORCH)
        )
        for name, leaf in _named(params).items()
    }
    path.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path / _WEIGHTS[0], metadata={"format": "pt"})
    (path / "config.json").write_text(json.dumps(unet_to_diffusers(config), indent=2) + "\n")
    if diffusion is not None:
        (path / "scheduler_config.json").write_text(
            json.dumps(schedule_to_diffusers(diffusion), indent=2) + "\n"
        )


def _state_dict(path: Path) -> Tensors:
    """The tensors of a file, by name."""
    if path.suffix == ".safetensors":
        try:
            with safetensors.safe_open(path, framework="numpy") as file:
                content: Any = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except Exception as error:  # as the library's Rust and NumPy parts raise it
            reason = str(error).splitlines()[0][:200]
            raise ValueError(
                f"{path} cannot be read as safetensors ({reason}); give a complete file."
            ) from error
    else:
        content = read_torch_file(path)
    if isinstance(content, list):  # the official code saves [model, optimizer, epoch, step, EMA]
        content = content[4] if len(content) > 4 else content[0] if content else None
    if not isinstance(content, Mapping) or not content:
        raise ValueError(
            f"{path} holds a {type(content).__name__}, not tensors by name; give a state dict."
        )
    for name, tensor in content.items():
        if not isinstance(tensor, np.ndarray):
            raise ValueError(
                f"{path} has a {type(tensor).__name__} under {name!r}, where a tensor should be."
            )
    return {str(name).removeprefix("module."): tensor for name, tensor in content.items()}


def _fill(
    config: UNetConfig, tensors: Tensors, path: Path, rename: Callable[[str], str]
) -> dict[str, Any]:
    """The parameters of a network, each from the tensor of its name."""
    config.check()
    template = unet_shapes(config)
    expected = [rename(name) for name in _named(template)]
    missing = [name for name in expected if name not in tensors]
    extra = sorted(tensors.keys() - set(expected))
    for names, problem in ((missing, "lacks"), (extra, "has, beyond what this network takes,")):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise ValueError(f"{path} {problem} the tensor {names[0]}{more}.")

    def convert(name: str, leaf: jax.ShapeDtypeStruct) -> jax.Array:
        theirs = rename(name)
        tensor = tensors[theirs]
        # A view, so that a tensor of the wrong shape is never copied.
        if len(leaf.shape) == 2 and tensor.shape[2:] == (1, 1):
            tensor = tensor[:, :, 0, 0]
        ours = _permuted(name, tensor, _FROM_TORCH)
        if ours.shape != leaf.shape:
            shape = _permuted(name, np.empty(leaf.shape), _TO_TORCH).shape
            raise ValueError(
                f"{path} has {theirs} in the shape {tensors[theirs].shape}, "
                f"which this network has as {shape}."
            )
        if ours.dtype.kind not in "fV":  # V: bfloat16
            raise ValueError(
                f"{path} has {theirs} as {ours.dtype}; weights are floating-point numbers."
            )
        return jax.numpy.asarray(ours.astype(np.float32))

    return jax.tree.map(convert, _names(template), template)


def _names(params: Any) -> Any:
    """The tree of parameters with the official name of each in its place."""

    def name(path: Any, _: Any) -> str:
        *layers, leaf = (str(entry.key) for entry in path)
        return ".".join([*layers, "bias" if leaf == "bias" else "weight"])

    return jax.tree.map_with_path(name, params)


def _named(params: Any) -> dict[str, Any]:
    return dict(zip(jax.tree.leaves(_names(params)), jax.tree.leaves(params), strict=True))


def _permuted(name: str, array: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
    if name.startswith("classes."):  # a table, the same in both layouts
        return array
    return array.transpose(axes) if array.ndim == 4 else array.T


def _config_of_official(tensors: Tensors, path: Path, image_size: int, groups: int) -> UNetConfig:
    """The architecture, from the names and shapes of an official state dict."""
    if any(name.startswith("down_blocks.") for name in tensors):
        raise ValueError(
            f"{path} has diffusers' names; give the folder that contains it, with its config.json."
        )

    def count(pattern: str) -> int:
        return len({match[1] for name in tensors if (match := re.match(pattern, name))})

    levels = max(count(r"down\.(\d+)\.block\."), 1)
    firsts = [f"down.{i}.block.0.conv1.weight" for i in range(levels)]
    for name in ("conv_in.weight", *firsts):
        if name not in tensors or tensors[name].ndim != 4:
            raise ValueError(
                f"{path} lacks the convolution {name}; it is not a UNet in the official layout."
            )
    channels, image_channels = tensors["conv_in.weight"].shape[:2]
    attends = [f"down.{i}.attn.0.q.weight" in tensors for i in range(levels)]
    return UNetConfig(
        image_size=image_size,
        image_channels=image_channels,
        channels=channels,
        multipliers=tuple(tensors[name].shape[0] // channels for name in firsts),
        blocks=count(r"down\.0\.block\.(\d+)\."),
        attention_resolutions=tuple(image_size >> i for i, attend in enumerate(attends) if attend),
        groups=groups,
    )
