"""Import and export weights: the official DDPM/DDIM layout, and diffusers' UNet2DModel.

Our layers have the names of the official checkpoints (`down.1.attn.0.q`); diffusers' names follow
by a table. PyTorch stores a convolution as (out, in, height, width) and a dense layer as (out, in);
we store (height, width, in, out) and (in, out). The 1×1 convolutions of the official attention are
dense layers here.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import safetensors
from safetensors.numpy import save_file

from ..architecture import UNetConfig
from ..config import DiffusionConfig
from ..files import whole, write
from .diffusers_layout import (
    diffusers_name,
    learns_sigma,
    read_settings,
    unet_of_diffusers,
    unet_to_diffusers,
)
from .diffusers_scheduler import not_taken_over, schedule_to_diffusers
from .torch_file import check_regular, read_torch_file
from .unet import unet_shapes

Tensors = Mapping[str, Any]

_WEIGHTS = "diffusion_pytorch_model"
_MAX_FILES = 1000
_FROM_TORCH, _TO_TORCH = (2, 3, 1, 0), (3, 2, 0, 1)  # axes of a convolution's kernel


def load_pretrained(
    path: str | Path, *, image_size: int | None = None, groups: int = 32
) -> tuple[UNetConfig, dict[str, Any]]:
    """The architecture and float32 params of a published checkpoint.

    No code in a file is run. A file that is not a checkpoint, is damaged, or has a missing, extra
    or wrongly shaped tensor raises a ValueError that names it.

    Args:
        path: an official checkpoint (a state dict, or the list that the official code saves, from
            which the EMA weights are taken; PyTorch's formats or .safetensors), or a diffusers
            folder with config.json and .safetensors or .bin.
        image_size: of an official checkpoint; by default its attention is at 16×16, as in all.
        groups: groups of GroupNorm, not stored in an official checkpoint.
    """
    path = Path(path)
    if path.is_dir():
        return _load_folder(path)
    tensors = _state_dict(path)
    config = _config_of_official(tensors, path, image_size, groups)
    return config, _fill(config, tensors, path, lambda name: name)


def import_remarks(path: str | Path) -> Iterator[str]:
    """What an import leaves out or assumes, one line each; none for an official checkpoint."""
    path = Path(path)
    if not path.is_dir():
        return
    if learns_sigma(read_settings(_unet_folder(path) / "config.json")):
        yield "not taken over: the learned σ, the second half of the outputs; ε is the first"
    yield from not_taken_over(path)


def _load_folder(path: Path) -> tuple[UNetConfig, dict[str, Any]]:
    if (path / "checkpoints").is_dir():
        raise ValueError(
            f"{path} is a run directory of train.py; sample from it, or export it first."
        )
    folder = _unet_folder(path)
    values = read_settings(folder / "config.json")
    config = unet_of_diffusers(values, folder / "config.json")
    tensors: dict[str, Any] = {}
    for file in _weight_files(folder):
        part = _state_dict(file)
        if twice := tensors.keys() & part.keys():
            raise ValueError(f"{file} has {_quoted(min(twice))}, as another part has.")
        tensors |= part
    if learns_sigma(values):
        half = config.image_channels
        for name in {"conv_out.weight", "conv_out.bias"} & tensors.keys():
            if tensors[name].shape[:1] == (2 * half,):
                tensors[name] = tensors[name][:half]
    levels, old = len(config.multipliers), any(".query." in name for name in tensors)
    return config, _fill(config, tensors, folder, lambda name: diffusers_name(name, levels, old))


def _unet_folder(path: Path) -> Path:
    """The folder of the UNet in a pipeline, or the folder itself."""
    return path / "unet" if (path / "unet" / "config.json").is_file() else path


def _weight_files(folder: Path) -> list[Path]:
    """The files that hold a folder's weights: whole before parts, float32 before other variants."""
    for suffix in ("safetensors", "bin"):
        found = sorted(folder.glob(f"{_WEIGHTS}*.{suffix}"), key=lambda file: len(file.name))
        whole = [file for file in found if not re.search(r"-\d+-of-\d+\.\w+$", file.name)]
        indices = sorted(folder.glob(f"{_WEIGHTS}.{suffix}.index*.json"), key=lambda f: len(f.name))
        if f"{_WEIGHTS}.{suffix}" in {file.name for file in whole} or (whole and not indices):
            return whole[:1]
        if indices:
            return _parts(indices[0])
    raise ValueError(
        f"{folder} holds none of {_WEIGHTS}.safetensors and {_WEIGHTS}.bin; "
        "give a folder that save_pretrained wrote."
    )


def _parts(index: Path) -> list[Path]:
    """The files that an index of parts names, which lie beside it."""
    places = read_settings(index).get("weight_map")
    names = set(places.values()) if isinstance(places, dict) and all(
        isinstance(name, str) for name in places.values()
    ) else set()  # fmt: skip
    if not 1 <= len(names) <= _MAX_FILES or any(name != Path(name).name for name in names):
        raise ValueError(f"{index} has no weight_map of tensors to files beside it.")
    return [index.parent / name for name in sorted(names)]


def save_diffusers(
    path: str | Path, config: UNetConfig, params: Any, diffusion: DiffusionConfig | None = None
) -> None:
    """Write weights as a folder that diffusers' `UNet2DModel.from_pretrained` loads.

    An existing UNet2DModel is replaced. With `diffusion`, `DDIMPipeline.from_pretrained` and
    `DDIMScheduler.from_pretrained` load the folder, too.
    """
    path = Path(path)
    tensors = {
        diffusers_name(name, len(config.multipliers)): np.ascontiguousarray(
            _permuted(name, np.asarray(leaf, np.float32), _TO_TORCH)
        )
        for name, leaf in _named(params).items()
    }
    with whole(path / f"{_WEIGHTS}.safetensors") as partial:
        save_file(tensors, partial, metadata={"format": "pt"})
    settings = {"config": unet_to_diffusers(config)}
    if diffusion is not None:
        settings["scheduler_config"] = schedule_to_diffusers(diffusion)
        settings["model_index"] = {
            "_class_name": "DDIMPipeline",
            "scheduler": ["diffusers", "DDIMScheduler"],
            "unet": ["diffusers", "UNet2DModel"],
        }
    for name, values in settings.items():
        write(path / f"{name}.json", json.dumps(values, indent=2) + "\n")


def _state_dict(path: Path) -> Tensors:
    """The tensors of a file, by name."""
    check_regular(path, "a checkpoint")
    if path.suffix == ".safetensors":
        try:
            with safetensors.safe_open(path, framework="numpy") as file:
                content: Any = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except Exception as error:  # as the library's Rust and NumPy parts raise it
            reason = (str(error) or type(error).__name__).splitlines()[0][:200]
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
                f"{path} has a {type(tensor).__name__} under {_quoted(name)}, where a tensor "
                "should be."
            )
    plain = {str(name).removeprefix("module."): tensor for name, tensor in content.items()}
    if len(plain) < len(content):
        raise ValueError(f"{path} has a tensor both with and without the prefix module.")
    return plain


def _quoted(name: Any) -> str:
    """A name from the file, which may be long or hold control characters."""
    plain = isinstance(name, str) and re.fullmatch(r"[\w.-]{1,100}", name)
    return name if plain else repr(name)[:100]


def _fill(
    config: UNetConfig, tensors: Tensors, path: Path, rename: Callable[[str], str]
) -> dict[str, Any]:
    """The parameters of a network, each from the tensor of its name."""
    config.check()
    blocks = len(config.multipliers) * (2 * config.blocks + 1) + 2  # each has 10 tensors or more
    if len(tensors) < 10 * blocks:  # before a network is built that the file cannot fill
        raise ValueError(
            f"{path} has {len(tensors)} tensors, and the network that it describes more than "
            f"{10 * blocks}; give a complete checkpoint."
        )
    template = unet_shapes(config)
    expected = [rename(name) for name in _named(template)]
    missing = [name for name in expected if name not in tensors]
    extra = sorted(tensors.keys() - set(expected))
    for names, problem in ((missing, "lacks"), (extra, "has, beyond what this network takes,")):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise ValueError(f"{path} {problem} the tensor {_quoted(names[0])}{more}.")

    def convert(name: str, leaf: jax.ShapeDtypeStruct) -> jax.Array:
        theirs = rename(name)
        tensor = tensors[theirs]
        # A view, so that a tensor of the wrong shape is never copied.
        if len(leaf.shape) == 2 and tensor.shape[2:] == (1, 1):
            tensor = tensor[:, :, 0, 0]
        ours = _permuted(name, tensor, _FROM_TORCH)
        if ours.shape != leaf.shape:
            shape = _permuted(name, np.broadcast_to(0, leaf.shape), _TO_TORCH).shape
            raise ValueError(
                f"{path} has {theirs} in the shape {tensors[theirs].shape}, "
                f"which this network has as {shape}."
            )
        if ours.dtype.kind not in "fV":  # V: bfloat16
            raise ValueError(
                f"{path} has {theirs} as {ours.dtype}; weights are floating-point numbers."
            )
        with np.errstate(over="ignore"):
            values = ours.astype(np.float32)
        if not np.isfinite(values).all():
            raise ValueError(
                f"{path} has {theirs} with numbers that are NaN, infinite or too large for "
                "float32; give a checkpoint from before the training diverged."
            )
        return jax.device_put(values)  # `asarray` compiles a program for each shape

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


def _config_of_official(
    tensors: Tensors, path: Path, image_size: int | None, groups: int
) -> UNetConfig:
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
    widths = [tensors[name].shape[0] for name in firsts]
    if channels < 1 or any(width % channels for width in widths):
        raise ValueError(f"{path} has {widths} channels, not multiples of {channels}.")
    attends = [f"down.{i}.attn.0.q.weight" in tensors for i in range(levels)]
    image_size = image_size or (16 << attends.index(True) if True in attends else 32)
    return UNetConfig(
        image_size=image_size,
        image_channels=image_channels,
        channels=channels,
        multipliers=tuple(width // channels for width in widths),
        blocks=count(r"down\.0\.block\.(\d+)\."),
        attention_resolutions=tuple(image_size >> i for i, attend in enumerate(attends) if attend),
        groups=groups,
    )
