"""`sample.py trajectory`: images at the steps of sampling, as a strip and as an animation."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import jax
import numpy as np
from rich.console import Console

from ..diffusion.sampling import Trajectory
from ..files import check_output
from ..images import save_animation, save_rows, to_uint8
from ..sampler import labelled, make_sampler
from ..settings import MANY, at_least
from .flags import Ready, SamplerFlags, check_png

_COLUMNS = 10  # of the strip
_FRAMES = 100  # of the animation, at most


@dataclass(frozen=True)
class Config(SamplerFlags):
    """Show x_t and x̂_0 over the steps: a strip of up to 10 columns, a GIF of up to 100 frames."""

    out: Path = Path("trajectory.png")
    """FILE.png, the strip. The animation is FILE.gif beside it."""
    num_images: Annotated[int, at_least(1, MANY)] = 4
    """N: images 0 … N−1 of the seed, each with a row of x_t and a row of x̂_0."""

    def check(self) -> None:
        """Raise a ValueError if a field is out of range, or does not fit another field."""
        super().check()
        check_png(self.out)


def run(config: Config, console: Console) -> None:
    """Write x_t and x̂_0(x_t, t) at selected steps; the last of both is x_0."""
    config.check()
    for suffix in (".png", ".gif"):
        check_output(config.out.with_suffix(suffix))
    ready = config.ready(min(config.batch_size, config.num_images), console)
    states = walk(ready, config.num_images, console)
    if jax.process_index():
        return
    images = np.stack([np.stack([to_uint8(state) for state in part]) for part in states])
    times = [*ready.cell.table.t.tolist(), 0]
    strip, frames = _evenly(len(times), _COLUMNS), _evenly(len(times), _FRAMES)
    # images is (2, S + 1, N, …): x_t and x̂_0, the states, the images.
    rows = images[:, strip].transpose(2, 0, 1, 3, 4, 5).reshape(-1, len(strip), *images.shape[3:])
    labels = ["$x_t$", r"$\hat{x}_0$"] * config.num_images
    save_rows(rows, config.out, labels, [f"t = {times[i]}" for i in strip])
    animation = config.out.with_suffix(".gif")
    save_animation(images[:, frames].swapaxes(0, 1), animation)
    console.print(
        f"{config.out} and {animation} ({len(frames)} frames, x_t above x̂_0): "
        f"{config.num_images:,} images {images.shape[3:]}, {ready.describe()}"
    )


def walk(ready: Ready, count: int, console: Console) -> list[np.ndarray]:
    """x_t and x̂_0 of the images 0 … count−1 at all times, x_0 last; each (S+1, count, …)."""
    source = ready.source
    sampler = make_sampler(source.denoise, source.image_shape, ready.mesh, observe=Trajectory)

    def draw(params: Any, indices: np.ndarray) -> Any:
        x_0, path = jax.tree.map(
            np.asarray, sampler(params, labelled(indices, ready.labels), ready.plan)
        )
        return [np.concatenate([states, x_0[:, None]], 1) for states in path]

    parts = ready.draw(draw, count, "sampling", console)
    return [np.concatenate(states).swapaxes(0, 1) for states in zip(*parts, strict=True)]


def _evenly(count: int, most: int) -> list[int]:
    """Up to `most` of 0 … count−1, evenly spaced, both ends included."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(int)).tolist()
