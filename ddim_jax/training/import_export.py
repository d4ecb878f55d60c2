"""`train.py import` and `train.py export`: runs from published weights, and the reverse."""

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import jax
import tyro
from rich.console import Console

from ..config import UNetConfig, presets, save_config
from ..files import check_path, make_directory
from ..model.diffusers_scheduler import schedule_of_diffusers
from ..model.hub import fetch, is_hub_name
from ..model.pretrained import import_remarks, load_pretrained, save_diffusers
from .checkpoint import checkpoints, latest_step, load_run, save_checkpoint
from .directory import only_one
from .state import initial_state, make_optimizer


@dataclass(frozen=True)
class ImportConfig:
    """Make a run directory from published weights, to sample from or to train further."""

    weights: tyro.conf.Positional[Path]
    """An official checkpoint (.ckpt, .pt, .pth, .safetensors), a UNet2DModel folder, or OWNER/NAME
    on the Hugging Face Hub."""
    run: tyro.conf.Positional[Path]
    """The run directory to make."""
    image_size: int | None = None
    """Height and width of the images, for an official checkpoint (a diffusers folder has it). By
    default that at which its attention is at 16×16, as in all of DDPM's, or 32."""
    groups: int = UNetConfig.groups
    """Groups of GroupNorm, for an official checkpoint (a diffusers folder has it)."""


@dataclass(frozen=True)
class ExportConfig:
    """Write the averaged (EMA) weights of a run as a folder that diffusers can load."""

    run: tyro.conf.Positional[Path]
    """The run directory."""
    folder: tyro.conf.Positional[Path]
    """The folder to write."""
    checkpoint: str = "latest"
    """latest, best (the lowest validation loss of those kept), or a step number."""


def import_run(config: ImportConfig, console: Console) -> None:
    """Save the weights as step 0 of a new run with the paper's training settings."""
    check_path(config.run, "RUN")
    if latest_step(config.run) is not None:
        raise ValueError(f"{config.run} holds a checkpoint already; choose another directory.")
    weights = config.weights
    if is_hub_name(weights):
        weights = fetch(weights.as_posix())
    model, params = load_pretrained(weights, image_size=config.image_size, groups=config.groups)
    preset = presets()["cifar10"]
    dropout = preset.train.label_dropout if model.variants.null_class else 0.0
    run = replace(
        preset,
        out=str(config.run),
        model=model,
        diffusion=schedule_of_diffusers(weights),
        train=replace(preset.train, label_dropout=dropout),
    )
    run.check()
    # One program, not several for each shape.
    start = jax.jit(partial(initial_state, optimizer=make_optimizer(run.train)))
    with only_one(config.run):
        with checkpoints(config.run, keep=1) as manager:
            save_checkpoint(manager, start(params), run)
        save_config(run, config.run / "config.json")
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    size = f"{count:,} parameters for images {model.image_shape()}"
    console.print(f"{config.run}: {size}, from {config.weights}")
    if (
        not weights.is_dir()
        and model.attention_resolutions
        and 16 not in (model.attention_resolutions)
    ):
        console.print(
            f"warning: at --image-size {config.image_size} the attention is at "
            f"{max(model.attention_resolutions)}×{max(model.attention_resolutions)}, in DDPM's own "
            "models at 16×16; without the flag the weights tell the size"
        )
    for remark in import_remarks(weights):
        console.print(f"  {remark}")


def export_run(config: ExportConfig, console: Console) -> None:
    """Write a run's weights and noising process for diffusers."""
    run, params = load_run(config.run, config.checkpoint)
    make_directory(config.folder, config.folder, "FOLDER")
    save_diffusers(config.folder, run.model, params, run.diffusion)
    console.print(
        f'{config.folder}: UNet2DModel.from_pretrained("{config.folder}") loads it, and so does '
        "DDIMPipeline.from_pretrained"
    )
