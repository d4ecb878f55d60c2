"""What lies between two noises (DDIM paper, arXiv:2010.02502, Fig. 6), and between a noise and its image, as pictures."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import UInt8
from PIL import Image
from rich.console import Console

from ..devices import describe
from ..diffusion.encoding import slerp
from ..diffusion.sampling import image_keys, initial_noise, sample, sample_path
from ..images import to_uint8
from .generate import LoadedRun, RunFlags, SamplingFlags, make_directory

_TILE = 48  # pixels that an image has at least
_GAP = 2
_COLUMNS = 10  # of a trajectory's strip
_FRAMES = 100  # of its animation, at most


@dataclass(frozen=True)
class InterpolateConfig(RunFlags):
    """Decode what lies between pairs of noises: a row of images for each pair (the paper's Fig. 6)."""

    out: Path = Path("interpolation.png")
    """FILE.png."""
    rows: int = 8
    """Pairs of noises: row r goes from the noise of image 2r of the seed to that of image 2r + 1."""
    columns: int = 11
    """Images a row, the two ends included."""
    steps: int = 50
    """S, the number of reverse steps, with η = 0."""

    def check(self, **least: int) -> None:
        """Raise ValueError if a field is out of range."""
        super().check(rows=1, columns=2, **least)
        _check_png(self.out)


@dataclass(frozen=True)
class TrajectoryConfig(SamplingFlags):
    """Show x_t and x̂_0 of some images on their way from noise: a strip of up to 10 steps, and an animation of up to 100."""

    out: Path = Path("trajectory.png")
    """FILE.png, the strip; FILE.gif beside it is the animation."""
    num_images: int = 4
    """N: the images 0 … N−1 of the seed, each with a row of x_t and one of x̂_0."""

    def check(self, **least: int) -> None:
        """Raise ValueError if a field is out of range, alone or beside another."""
        super().check(num_images=1, **least)
        _check_png(self.out)


def interpolate(config: InterpolateConfig, console: Console) -> None:
    """Write the images of the noises between pairs of noises.

    Equation: x_T = slerp(x_T of image 2r, x_T of image 2r + 1; c/(columns − 1)) in row r and column c, decoded with η = 0.

    Args:
        config: what to draw.
        console: where progress goes.

    Raises:
        ValueError: a flag out of range, a run without a readable checkpoint, a file that cannot be written.
    """
    config.check()
    count = config.rows * config.columns
    run = config.load(min(config.batch_size, count))
    table = config.steps_of(run.alpha_bar, config.steps)
    make_directory(config.out.parent, config.out)
    shape, weights = (
        run.config.model.image_shape(),
        np.linspace(0, 1, config.columns, dtype=np.float32),
    )

    def between(params, batch, table):
        first, second, weight = batch
        a, b = (jax.random.wrap_key_data(data, impl="threefry2x32") for data in (first, second))
        x_T = slerp(initial_noise(a, shape), initial_noise(b, shape), weight)
        return sample(run.denoiser(params), x_T, table, a)  # the keys draw nothing: η = 0

    sampler = run.jit(between)

    def draw(places):
        row, column = np.divmod(places, config.columns)
        ends = [_key_data(config.seed, indices) for indices in (2 * row, 2 * row + 1)]
        return sampler(run.params, (*ends, weights[column]), table)

    images = to_uint8(run.in_batches(draw, count, console, "interpolating"))
    if jax.process_index():
        return
    rows = images.reshape(config.rows, config.columns, *shape)
    save_rows(
        rows,
        config.out,
        [f"{2 * r} to {2 * r + 1}" for r in range(config.rows)],
        [f"{w:.2g}" for w in weights],
    )
    console.print(
        f"{config.out}: {config.rows} × {config.columns} images {shape} between noises, S={config.steps} {config.timesteps}, "
        f"eta=0, seed={config.seed}, on {run.mesh.size} of {describe()}"
    )


def trajectory(config: TrajectoryConfig, console: Console) -> None:
    """Write x_t and x̂_0(x_t, t) of some images at chosen steps as a strip, and at more of them as an animation.

    Args:
        config: what to draw.
        console: where progress goes.

    Raises:
        ValueError: a flag out of range, a run without a readable checkpoint, a file that cannot be written.
    """
    config.check()
    run = config.load(min(config.batch_size, config.num_images))
    table = config.table(run.alpha_bar)
    make_directory(config.out.parent, config.out)
    walk = make_walk(run, config)
    states = run.in_batches(
        lambda indices: walk(run.params, _key_data(config.seed, indices), table),
        config.num_images,
        console,
        "sampling",
    )
    if jax.process_index():
        return
    # (2, S + 1, N, …): x_t and x̂_0, then the states, then the images.
    images = np.stack(
        [np.stack([to_uint8(state) for state in part.swapaxes(0, 1)]) for part in states]
    )
    times = [*table.t.tolist(), 0]
    chosen = _evenly(len(times), _COLUMNS)
    rows = images[:, chosen].transpose(2, 0, 1, 3, 4, 5).reshape(-1, len(chosen), *images.shape[3:])
    save_rows(
        rows,
        config.out,
        ["$x_t$", r"$\hat{x}_0$"] * config.num_images,
        [f"t = {times[i]}" for i in chosen],
    )
    animation = config.out.with_suffix(".gif")
    frames = _evenly(len(times), _FRAMES)
    _save_animation([_canvas(images[:, i])[0] for i in frames], animation)
    console.print(
        f"{config.out} and {animation} ({len(frames)} frames, x_t above x̂_0): {config.num_images:,} images {images.shape[3:]}, "
        f"{config.describe()}, on {run.mesh.size} of {describe()}"
    )


def make_walk(run: LoadedRun, config: TrajectoryConfig) -> Any:
    """The jitted walk(params, key data (B, 2), table) → x_t and x̂_0, each (B, S+1, H, W, C), image 0 … S at its time.

    The last of both is the image x_0, at time 0; the others are those of `sample_path`.
    """

    def walk(params, key_data, table):
        keys = jax.random.wrap_key_data(key_data, impl="threefry2x32")
        x_T = initial_noise(keys, run.config.model.image_shape())
        x_0, path = sample_path(config.wrap(run.denoiser(params)), x_T, table, keys)
        return [jnp.concatenate([states, x_0[None]]).swapaxes(0, 1) for states in path]

    return run.jit(walk)


def save_rows(
    rows: UInt8[np.ndarray, "R K H W C"],
    path: Path,
    row_labels: Sequence[str],
    column_labels: Sequence[str] = (),
) -> None:
    """Write images as one PNG in labelled rows; small images are magnified by a whole factor.

    Args:
        rows: uint8 (R, K, H, W, C), C = 1 or 3.
        path: where to; its directory exists.
        row_labels: R texts, which matplotlib sets, formulas between dollars included.
        column_labels: K texts, or none.
    """
    from matplotlib.figure import (
        Figure,
    )  # half a second to import, which other commands need not wait for

    canvas, tile = _canvas(rows)
    height, width = canvas.shape[:2]
    left, top, dpi = 12 + 7 * max(map(len, row_labels)), 20 * bool(column_labels), 100
    size = (left + width, top + height)
    figure = Figure((size[0] / dpi, size[1] / dpi), dpi=dpi)
    # One pixel of the canvas is one of the file.
    axes = figure.add_axes((left / size[0], 0, width / size[0], height / size[1]))
    # As RGB, since a colour map would round the greys.
    axes.imshow(np.asarray(Image.fromarray(canvas).convert("RGB")), interpolation="nearest")
    axes.set_yticks(
        [_GAP + tile[0] / 2 + r * (tile[0] + _GAP) for r in range(len(row_labels))],
        row_labels,
        fontsize=8,
    )
    axes.set_xticks(
        [_GAP + tile[1] / 2 + k * (tile[1] + _GAP) for k in range(len(column_labels))],
        column_labels,
        fontsize=7,
    )
    axes.tick_params(length=0, top=True, labeltop=True, bottom=False, labelbottom=False)
    axes.spines[:].set_visible(False)
    figure.savefig(path)


def _canvas(rows: UInt8[np.ndarray, "R K H W C"]) -> tuple[np.ndarray, tuple[int, int]]:
    """Rows of images on white, (H', W') or (H', W', 3), and the size of an image on it."""
    scale = -(-_TILE // max(rows.shape[2:4]))
    border = [(0, 0), (0, 0), (_GAP, 0), (_GAP, 0), (0, 0)]
    tiles = np.pad(rows.repeat(scale, 2).repeat(scale, 3), border, constant_values=255)
    R, K, height, width, channels = tiles.shape
    canvas = tiles.transpose(0, 2, 1, 3, 4).reshape(R * height, K * width, channels)
    canvas = np.pad(canvas, [(0, _GAP), (0, _GAP), (0, 0)], constant_values=255)
    return (canvas[..., 0] if channels == 1 else canvas), (height - _GAP, width - _GAP)


def _save_animation(frames: Sequence[np.ndarray], path: Path) -> None:
    first, *others = map(Image.fromarray, frames)
    # About four seconds, and a rest on the image.
    pause = max(40, 4000 // len(frames))
    first.save(
        path, save_all=True, append_images=others, duration=[pause] * len(others) + [2000], loop=0
    )


def _evenly(count: int, most: int) -> list[int]:
    """Up to `most` of 0 … count−1, evenly spaced, both ends included."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(int)).tolist()


def _key_data(seed: int, indices: np.ndarray) -> np.ndarray:
    return np.asarray(jax.random.key_data(image_keys(seed, indices)))


def _check_png(out: Path) -> None:
    if out.suffix != ".png":
        raise ValueError(f"--out is {out}; its name must end in .png.")
