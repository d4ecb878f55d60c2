"""How well images survive being encoded and decoded, as a function of S (DDIM paper, arXiv:2010.02502, section 5.4, Table 2).

    (1)  error(S) = mean over images of ‖decode(encode(x_0)) − x_0‖² / (4 D)      per dimension, on images in [0, 1]

Encoding and decoding are Euler's method for one ODE in x/√ᾱ, in opposite directions through the same S times. In a step of
length h both have the local error −h²/2 · d²(x/√ᾱ); going back does not undo the first but adds the second, so a round trip has
twice the error of one way, to leading order. Over S steps the root of (1) falls as 1/S and (1) as 1/S², once S is large enough.
"""

import json
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from platform import python_version
from typing import Literal, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float
from rich.console import Console

from ..data import Dataset, load_dataset
from ..devices import describe
from ..diffusion.encoding import encode
from ..diffusion.prediction import Denoiser
from ..diffusion.reverse import StepTable, stack_tables
from ..diffusion.sampling import image_keys, sample
from ..diffusion.types import Images
from ..images import to_uint8, to_unit_range
from .generate import LoadedRun, RunFlags, make_directory
from .pictures import save_rows

CIFAR10 = {10: 0.014, 20: 0.0065, 50: 0.0023, 100: 0.0009, 200: 0.0004, 500: 0.0001, 1000: 0.0001}
"""Table 2 of the paper: S → error on the CIFAR-10 test split."""

_SHOWN = 16  # images in the picture


@dataclass(frozen=True)
class ReconstructConfig(RunFlags):
    """Encode images, decode them again, and measure what is lost, at several S (the paper's Table 2)."""

    out: Path | None = None
    """Directory for table.md, results.json and reconstructions.png; none: RUN/reconstruction."""
    steps: tuple[int, ...] = ()
    """The S, each both for encoding and for decoding; empty: of 10 20 50 100 200 500 1000 those that the run's T allows."""
    num_images: int = 128
    """N, images drawn without replacement by the seed; all of a split that has fewer."""
    split: Literal["test", "train"] = "test"
    """Which images; where there is no test split, as in a folder, the train split, which is said."""
    source: str = ""
    """Images of another source, as --data.source of train.py; empty: the run's."""
    seed: int = 0
    """Seed of the choice of images, 0 to 2³²−1."""

    def check(self, **least: int) -> None:
        """Raise ValueError if a field is out of range."""
        super().check(num_images=2, **least)  # one image has no interval


class Error(NamedTuple):
    """The error (1) at one S, and half of its 95 % interval."""

    steps: int
    mse: float
    margin: float


def round_trip(denoise: Denoiser, x_0: Images, tables: StepTable) -> Float[Array, "E B *dims"]:
    """Encode images and decode them again through the same times, for many tables in one compiled program.

    Equation: sample(encode(x_0)) for every table, one after the other (`lax.map`). Memory: E batches of results.

    Args:
        denoise: a Denoiser.
        x_0: images (B, H, W, C) in [−1, 1].
        tables: leaves (E, S_max), from `stack_tables`, of η = 0.

    Returns:
        The reconstructions by every table, shape (E, B, H, W, C), not clipped.

    Source: arXiv:2010.02502, section 5.4.
    """
    keys = image_keys(0, np.arange(len(x_0)))  # they draw nothing: η = 0
    return jax.lax.map(
        lambda table: sample(denoise, encode(denoise, x_0, table), table, keys), tables
    )


def reconstruction_errors(
    steps: Iterable[int],
    images: Float[np.ndarray, "B *dims"],
    reconstructions: Float[np.ndarray, "B E *dims"],
) -> list[Error]:
    """The error (1) at every S, with a normal 95 % interval of the mean over images, which are independent.

    Equation: mean ± 1.96 · std/√B, std with divisor B − 1, in float64.

    Args:
        steps: the S of each table.
        images: (B, …) in [−1, 1].
        reconstructions: of each table, (B, E, …).

    Returns:
        One Error a table.

    >>> images = np.zeros((2, 1, 1, 1), np.float32)
    >>> (error,) = reconstruction_errors([10], images, np.array([0.2, 0.4]).reshape(2, 1, 1, 1, 1))
    >>> error.steps, round(error.mse, 6), round(error.margin, 6)
    (10, 0.025, 0.0294)
    """
    difference = (reconstructions.astype(np.float64) - images[:, None]) / 2
    of_image = np.square(difference).mean(axis=tuple(range(2, difference.ndim)))
    margins = 1.96 * of_image.std(0, ddof=1) / np.sqrt(len(images))
    return [
        Error(S, *map(float, values))
        for S, *values in zip(steps, of_image.mean(0), margins, strict=True)
    ]


def reconstruct(config: ReconstructConfig, console: Console) -> None:
    """Measure the error (1) of a run's model, and write a table, its numbers and a picture.

    Args:
        config: which images and which S.
        console: where progress and the table go.

    Raises:
        ValueError: a flag out of range, a run without a readable checkpoint, data that are missing, a directory that cannot
            be written.
    """
    config.check()
    start = time.perf_counter()
    run = config.load(min(config.batch_size, config.num_images))
    T = len(run.alpha_bar) - 1
    steps = config.steps or tuple(S for S in CIFAR10 if S <= T) or (T,)
    tables = stack_tables([config.steps_of(run.alpha_bar, S) for S in steps])
    dataset, split = _open(config, run)
    if dataset.size < 2:
        raise ValueError(
            f"the {split} split of {dataset.name} has {dataset.size} image; an interval needs 2 or more."
        )
    directory = config.out or config.run / "reconstruction"
    make_directory(directory, directory)
    chosen = np.random.default_rng(config.seed).permutation(dataset.size)[: config.num_images]
    images = to_unit_range(dataset.read(chosen))

    # The tables come second to the images, so that what a batch returns begins with its images.
    there_and_back = run.jit(
        lambda params, x_0, tables: round_trip(run.denoiser(params), x_0, tables).swapaxes(0, 1)
    )
    reconstructions = run.in_batches(
        lambda indices: there_and_back(run.params, images[indices], tables),
        len(images),
        console,
        "reconstructing",
    )
    errors = reconstruction_errors(steps, images, reconstructions)
    if jax.process_index():
        return
    rows = np.concatenate([images[:_SHOWN, None], reconstructions[:_SHOWN]], 1).swapaxes(0, 1)
    labels = ["original", *(f"S = {error.steps}: {error.mse:.2g}" for error in errors)]
    save_rows(np.stack([to_uint8(row) for row in rows]), directory / "reconstructions.png", labels)
    device = f"{run.mesh.size} of {describe()}"
    report = {
        "settings": asdict(config)
        | {"run": str(config.run), "out": str(directory), "steps": steps, "checkpoint": run.step},
        "data": {"source": dataset.name, "split": split, "n": len(images)},
        "results": [error._asdict() for error in errors],
        "paper_cifar10": CIFAR10,
        "versions": {"python": python_version(), "jax": jax.__version__, "numpy": np.__version__},
        "device": device,
        "precision": "float32",
        "seconds": time.perf_counter() - start,
    }
    (directory / "results.json").write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n")
    note = "" if split == config.split else f", for want of a {config.split} split"
    table = _table(
        config,
        run.step,
        errors,
        f"{len(images):,} images of {dataset.name} ({split} split{note})",
        device,
    )
    (directory / "table.md").write_text(table)
    console.print(table, markup=False)
    console.print(
        f"{directory}: table.md, results.json, reconstructions.png; {report['seconds']:.1f} s"
    )


def _open(config: ReconstructConfig, run: LoadedRun) -> tuple[Dataset, str]:
    """The images, and the split that they are of."""
    data, shape = run.config.data, run.config.model.image_shape()
    if config.source:
        data = replace(data, source=config.source)
        data.check()
    try:
        return load_dataset(data, shape, config.split), config.split
    except ValueError as error:
        if config.split == "train":
            raise
        try:
            return load_dataset(data, shape, "train"), "train"
        except ValueError:
            raise error from None  # nothing of it can be read: that there is no test split is not the point


def _table(
    config: ReconstructConfig, step: int, errors: list[Error], images: str, device: str
) -> str:
    """The results as Markdown, beside the paper's."""
    lines = [
        f"| {S} | {mse:.3g} | ± {margin:.2g} | {CIFAR10.get(S, '')} |" for S, mse, margin in errors
    ]
    return "\n".join([
        f"Reconstruction error of {config.run}, step {step}: {images}, seed {config.seed}, encoded and decoded",
        f"in S steps, {config.timesteps} τ, η = 0, float32 on {device}. MSE per dimension of images in [0, 1], reconstructions",
        "not clipped (in the picture they are). The last column is another model on other data: the paper's Table 2.",
        "",
        "| S | MSE | 95 % interval of the mean | CIFAR-10, in the paper |",
        "|---:|---:|---:|---:|",
        *lines,
        "",
    ])  # fmt: skip
