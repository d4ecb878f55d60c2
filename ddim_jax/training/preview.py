"""Samples drawn during training, always from the same noise, cycling through the classes."""

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.console import Console

from ..config import Config
from ..devices import full_batch, make_mesh
from ..diffusion.reverse import step_table
from ..diffusion.sigmas import eta
from ..diffusion.timesteps import TIMESTEPS
from ..files import CannotWrite
from ..images import save_grid, to_uint8
from ..model import unet_apply
from ..runtime import program
from ..sampler import Plan, conditional, in_batches, labelled, make_sampler, on_mesh
from .halt import Stop, awaited
from .state import TrainState

Draw = Callable[..., np.ndarray]


def make_draw(config: Config) -> Draw:
    """draw(params, count, stop) → uint8 images, or Stopped; compiled on the first call."""
    settings, alpha_bar, apply = (
        config.train,
        config.diffusion.alpha_bar(),
        unet_apply(config.model),
    )
    plan = Plan(step_table(alpha_bar, _tau(config)[1], eta(0.0)), np.uint32(config.seed))
    size = full_batch(settings.sample_images)
    mesh, labels = make_mesh(size), tuple(range(config.model.num_classes))

    denoise = conditional(apply, alpha_bar, config.diffusion.prediction)
    sampler = make_sampler(denoise, config.model.image_shape(), mesh)

    def draw(params: Any, count: int, stop: Stop | None = None) -> np.ndarray:
        params = on_mesh(params, mesh)
        parts = in_batches(
            lambda indices: awaited(sampler(params, labelled(indices, labels), plan), stop),
            count,
            size,
        )
        return np.concatenate([to_uint8(part) for part in parts])

    return draw


def _tau(config: Config) -> tuple[str, np.ndarray]:
    """The τ of previews; where ᾱ_T = 0, only one that visits T starts as training does."""
    name = "trailing" if config.diffusion.alpha_bar()[-1] == 0 else "quadratic"
    return name, TIMESTEPS[name](config.diffusion.alpha_bar(), config.train.sample_steps)


def sampler_name(config: Config) -> str:
    """How previews are drawn, in words."""
    return f"S={config.train.sample_steps} {_tau(config)[0]}, eta=0"


def save_preview(images: np.ndarray, path: Path, console: Console) -> None:
    """Write a grid of samples, in the first process only; a full disk does not end a training."""
    if jax.process_index():
        return
    try:
        save_grid(images, path)
    except CannotWrite as error:
        console.print(f"warning: {error} Training goes on.")


def finish(config: Config, state: TrainState, draw: Draw, quality: Any, console: Console) -> None:
    """Write the last sample grid, and print the Fréchet distance if it was not measured before."""
    out = Path(config.out)
    few = config.train.sample_images if config.train.sample_every else 0
    count = config.train.evaluate_images if quality and not config.train.evaluate_every else 0
    images = draw(state.ema, max(count, few)) if max(count, few) else np.zeros(0)
    if few:
        save_preview(images[:few], out / "samples.png", console)
    where = f"; samples in {out / 'samples.png'}" if few else ""
    console.print(f"trained to step {int(state.step)}{where}")
    if count and jax.process_index() == 0:
        console.print(f"{quality.label}: {quality.score(images[:count]):.3f}")
    console.print(f"sample with: {program('sample')} generate {shlex.quote(str(out))}")
