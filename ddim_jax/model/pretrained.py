"""Published weights in and out: the official DDPM/DDIM layout, and diffusers' UNet2DModel.

Layers are named as in the official checkpoints (`down.1.attn.0.q`), so those map name by name; diffusers' names follow by
a table. PyTorch keeps a convolution as (out, in, height, width) and a dense layer as (out, in), we (height, width, in, out)
and (in, out); the 1×1 convolutions of the official attention are dense layers here.
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
from .diffusers import (
    diffusers_name,
    read_json,
    schedule_to_diffusers,
    unet_of_diffusers,
    unet_to_diffusers,
)
from .torch_file import read_torch_file
from .unet import unet_shapes

Tensors = Mapping[str, Any]

_WEIGHTS = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin")


def load_pretrained(
    path: str | Path, *, image_size: int = 32, groups: int = 32
) -> tuple[UNetConfig, dict[str, Any]]:
    """Weights that others trained.

    Args:
        path: an official checkpoint (a state dict, or the list that the official code saves, of which the EMA weights are taken;
            PyTorch's formats or .safetensors), or a diffusers folder with config.json and .safetensors or .bin.
        image_size: height and width of the images, which an official checkpoint does not tell.
        groups: groups of GroupNorm, which it does not tell either.

    Returns:
        The architecture, and params as `build_unet` makes them, float32.

    Raises:
        ValueError: a file that is no checkpoint, is damaged or holds anything but tensors; an architecture that is not ours; a
            tensor that is missing, is too many or has another shape, by name. Nothing in the file is run.
    """
    path = Path(path)
    if path.is_dir():
        folder = path / "unet" if (path / "unet" / "config.json").is_file() else path
        config = unet_of_diffusers(read_json(folder / "config.json"), folder / "config.json")
        files = [folder / name for name in _WEIGHTS if (folder / name).is_file()]
        if not files:
            raise ValueError(
                f"{folder} holds none of {' and '.join(_WEIGHTS)}; give a folder that save_pretrained wrote."
            )
        tensors = _state_dict(files[0])
        old = any(".query." in name for name in tensors)
        return config, _fill(
            config,
            tensors,
            files[0],
            lambda name: diffusers_name(name, len(config.multipliers), old),
        )
    tensors = _state_dict(path)
    config = _config_of_official(tensors, path, image_size, groups)
    return config, _fill(config, tensors, path, lambda name: name)


def save_diffusers(
    path: str | Path, config: UNetConfig, params: Any, diffusion: DiffusionConfig | None = None
) -> None:
    """Write weights as a folder that diffusers' `UNet2DModel.from_pretrained` loads.

    Args:
        path: the folder; made if absent. A UNet2DModel that is there is replaced.
        config: the architecture.
        params: its parameters.
        diffusion: the noising process, written for `DDIMScheduler.from_pretrained`; None: not written.
    """
    path = Path(path)
    tensors = {
        diffusers_name(name, len(config.multipliers)): np.ascontiguousarray(
            _to_torch(name, np.asarray(leaf, np.float32))
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
                f"{path} cannot be read as safetensors ({reason}); give a whole file."
            ) from error
    else:
        content = read_torch_file(path)
    if isinstance(
        content, list
    ):  # the official training code saves [model, optimizer, epoch, step, EMA]
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
    template = unet_shapes(config)
    expected = {name: leaf.shape for name, leaf in _named(template).items()}
    missing = [rename(name) for name in expected if rename(name) not in tensors]
    extra = sorted(tensors.keys() - {rename(name) for name in expected})
    for names, problem in ((missing, "lacks"), (extra, "has, beyond what this network takes,")):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise ValueError(f"{path} {problem} the tensor {names[0]}{more}.")

    def convert(name: str, shape: tuple[int, ...]) -> jax.Array:
        tensor = tensors[rename(name)]
        # A view, so that nothing of a wrong shape is ever copied.
        if len(shape) == 2 and tensor.shape[2:] == (1, 1):
            tensor = tensor[:, :, 0, 0]
        ours = _from_torch(name, tensor)
        if ours.shape != shape:
            raise ValueError(f"{path} has {rename(name)} in the shape {tensors[rename(name)].shape}, "
                             f"which this network has as {_to_torch(name, np.empty(shape)).shape}.")  # fmt: skip
        if ours.dtype.kind not in "fV":  # V: bfloat16
            raise ValueError(
                f"{path} has {rename(name)} as {ours.dtype}; weights are floating-point numbers."
            )
        return jax.numpy.asarray(ours.astype(np.float32))

    return jax.tree.map(lambda name_of: convert(name_of, expected[name_of]), _names(template))


def _names(params: Any) -> Any:
    """The tree of parameters with the official name of each in its place."""

    def name(path: Any, _: Any) -> str:
        *layers, leaf = (str(entry.key) for entry in path)
        return ".".join([*layers, "bias" if leaf == "bias" else "weight"])

    return jax.tree.map_with_path(name, params)


def _named(params: Any) -> dict[str, Any]:
    return dict(zip(jax.tree.leaves(_names(params)), jax.tree.leaves(params), strict=True))


def _from_torch(name: str, tensor: np.ndarray) -> np.ndarray:
    if name.startswith("classes."):  # a table, the same in both
        return tensor
    return tensor.transpose(2, 3, 1, 0) if tensor.ndim == 4 else tensor.T


def _to_torch(name: str, array: np.ndarray) -> np.ndarray:
    if name.startswith("classes."):
        return array
    return array.transpose(3, 2, 0, 1) if array.ndim == 4 else array.T


def _config_of_official(tensors: Tensors, path: Path, image_size: int, groups: int) -> UNetConfig:
    """The architecture that the names and shapes of an official state dict tell of."""
    if any(name.startswith("down_blocks.") for name in tensors):
        raise ValueError(
            f"{path} has diffusers' names; give the folder that it lies in, with its config.json."
        )

    def count(pattern: str) -> int:
        return len({found[1] for name in tensors if (found := re.match(pattern, name))})

    levels, blocks = count(r"down\.(\d+)\.block\."), count(r"down\.0\.block\.(\d+)\.")
    firsts = [f"down.{i}.block.0.conv1.weight" for i in range(levels)]
    for name in ("conv_in.weight", *firsts):
        if name not in tensors or tensors[name].ndim != 4:
            raise ValueError(
                f"{path} lacks the convolution {name}; it is no UNet in the official layout."
            )
    if not levels:
        raise ValueError(
            f"{path} lacks down.0.block.0.conv1.weight; it is no UNet in the official layout."
        )
    channels, image_channels = tensors["conv_in.weight"].shape[:2]
    config = UNetConfig(
        image_size=image_size,
        image_channels=image_channels,
        channels=channels,
        multipliers=tuple(tensors[name].shape[0] // channels for name in firsts),
        blocks=blocks,
        attention_resolutions=tuple(
            image_size >> i for i in range(levels) if f"down.{i}.attn.0.q.weight" in tensors
        ),
        groups=groups,
    )
    config.check()
    return config
