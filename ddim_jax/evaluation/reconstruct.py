"""`sample.py reconstruct`: the error of encoding and decoding images, as a function of S.

    (1)  error(S) = mean over images of ‖decode(encode(x_0)) − x_0‖² / (4 D)

per dimension, on images in [0, 1]: DDIM paper (arXiv:2010.02502), section 5.4, Table 2.

Encoding and decoding are Euler's method for one ODE in x/√ᾱ, in opposite directions through the
same S times. In a step of length h both have the local error −h²/2 · d²(x/√ᾱ). Decoding does not
undo the error of encoding but adds its own, so to leading order a round trip has twice the error.
Over S steps the root of (1) falls as 1/S and (1) as 1/S², once S is large enough.
"""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from platform import python_version
from typing import Annotated, Any, Literal

import jax
import numpy as np
from jaxtyping import Array, Float
from rich.console import Console

from ..data import Dataset, MissingSplit, load_dataset
from ..devices import describe, full_batch, make_mesh
from ..diffusion.encoding import encode
from ..diffusion.keys import image_keys
from ..diffusion.prediction import Denoise
from ..diffusion.reverse import StepTable, stack_tables
from ..diffusion.sampling import sample
from ..diffusion.types import Images
from ..files import make_directory, to_json, write
from ..images import save_rows, to_uint8, to_unit_range
from ..metrics import Interval, mean_interval
from ..progress import progress
from ..sampler import Plan, batch_program, in_batches, labelled, on_mesh, planned
from ..settings import MANY, at_least, check_ranges
from .flags import DrawFlags, chosen_cells
from .grid import Cell
from .paper import RECONSTRUCTION, standard_errors
from .source import Source
from .tables import console_table, estimate, markdown

_SHOWN = 16  # images in the PNG


@dataclass(frozen=True)
class Config(DrawFlags):
    """Encode images, decode them again, and measure the error (the paper's Table 2)."""

    out: Path | None = None
    """Directory for table.md, results.json and reconstructions.png; default: RUN/reconstruction."""
    sigma: str = "eta=0"
    """σ for decoding, as in generate; encoding is deterministic."""
    timesteps: str = ""
    """τ, as in generate."""
    solver: str = "first"
    """Solver for decoding, as in generate; encoding is first-order."""
    steps: tuple[int, ...] = ()
    """One or more S, for encoding and decoding; empty: 10 20 50 100 200 500 1000, up to T."""
    sampler: tuple[str, ...] = ()
    """A list of samplers instead: FILE.npz, or a cell as "eta=0 quadratic S=10"."""
    num_images: Annotated[int, at_least(2, MANY)] = 128
    """N, images drawn from the split without replacement; at most its size."""
    split: Literal["test", "train"] = "test"
    """Split of the images; data without a test split use train."""
    source: str = ""
    """Use images of another source, as in train.py's --data.source; empty: the run's."""


def run(config: Config, console: Console) -> None:
    """Measure the error (1) of a model; write a table, a JSON file and a PNG."""
    config.check()
    start = time.perf_counter()
    source = config.open()
    T = len(source.alpha_bar) - 1
    default = tuple(S for S in RECONSTRUCTION if S <= T) or (T,)
    steps = config.steps or default
    grid = chosen_cells(config, source, steps, console)
    dataset, split = _open(config, source)
    if dataset.size < 2:
        raise ValueError(
            f"the {split} split of {dataset.name} has {dataset.size} image; an interval needs two."
        )
    directory = config.out or source.directory / "reconstruction"
    make_directory(directory, directory)
    chosen = np.random.default_rng(config.seed).permutation(dataset.size)[: config.num_images]
    images = to_unit_range(dataset.read(chosen))
    mesh = make_mesh(full_batch(min(config.batch_size, len(images))))
    decoded = _round_trips(config, source, grid, images, mesh, console)
    errors = reconstruction_errors(images, decoded)
    if jax.process_index():
        return
    rows = np.concatenate([images[:_SHOWN, None], decoded[:_SHOWN]], 1).swapaxes(0, 1)
    labels = [f"S = {cell.steps}: {e.value:.2g}" for cell, e in zip(grid, errors, strict=True)]
    picture = np.stack([to_uint8(row) for row in rows])
    save_rows(picture, directory / "reconstructions.png", ["original", *labels])
    device, seconds = f"{mesh.size} of {describe()}", time.perf_counter() - start
    resolved = {"out": directory, "steps": [cell.steps for cell in grid], "checkpoint": source.step}
    comparable = _comparable(config, source, grid[0], split)
    results = [
        {"steps": cell.steps, "mse": e.value, "margin": (e.high - e.low) / 2,
         "standard_errors_from_paper": _away(cell.steps, e) if comparable else None}
        for cell, e in zip(grid, errors, strict=True)
    ]  # fmt: skip
    report = {
        "settings": asdict(config) | resolved,
        "data": {"source": dataset.name, "split": split, "n": len(images)},
        "results": results,
        "paper_cifar10": RECONSTRUCTION,
        "versions": {"python": python_version(), "jax": jax.__version__, "numpy": np.__version__},
        "device": device,
        "precision": str(source.precision),
        "seconds": seconds,
    }
    write(directory / "results.json", to_json(report, indent=2) + "\n")
    note = "" if split == config.split else f", since there is no {config.split} split"
    data = f"{len(images):,} images of {dataset.name} ({split} split{note})"
    title = _title(config, source, grid[0], data, device, comparable)
    table = _table(grid, errors, comparable)
    write(directory / "table.md", f"{title}\n\n{markdown(table)}\n")
    console.print(console_table(title, table))
    console.print(f"{directory}: table.md, results.json, reconstructions.png; {seconds:.1f} s")


def _comparable(config: Config, source: Source, cell: Cell, split: str) -> bool:
    """Whether this is the paper's measurement: deterministic DDIM at quadratic τ on CIFAR-10."""
    data = (config.source or source.data.source, split)
    sampler = (cell.sigma, cell.timesteps)
    return (data, sampler) == (("cifar10", "test"), ("eta=0", "quadratic"))


def _title(
    config: Config, source: Source, cell: Cell, data: str, device: str, comparable: bool
) -> str:
    where = "" if source.step is None else f", step {source.step}"
    paper = (
        "The last column is the paper's Table 2, and in brackets, how far from it in standard "
        "errors of ours."
        if comparable
        else "The last column is another model on other data: the paper's Table 2."
    )
    return (
        f"Reconstruction error of {source.name}{where}: {data}, seed {config.seed}, encoded and "
        f"decoded in S steps, {cell.timesteps} τ, {cell.sigma}, {source.precision} on "
        f"{device}. MSE per dimension of images in [0, 1] with a 95 % interval of the mean; "
        f"reconstructions are not clipped (in the picture they are). {paper}"
    )


def _table(grid: Sequence[Cell], errors: Sequence[Interval], comparable: bool) -> list[list[str]]:
    rows = []
    for cell, error in zip(grid, errors, strict=True):
        paper, away = str(RECONSTRUCTION.get(cell.steps, "")), _away(cell.steps, error)
        beside = f"{paper} [{away:+.1f}]" if comparable and away is not None else paper
        rows.append([str(cell.steps), estimate(error._asdict()), beside])
    return [["S", "MSE", "CIFAR-10, in the paper"], *rows]


def _away(steps: int, error: Interval) -> float | None:
    """How far from the paper in standard errors; None for an S that the paper does not have."""
    paper = RECONSTRUCTION.get(steps)
    return None if paper is None else standard_errors(error, paper)


def round_trip(
    denoise: Denoise, x_0: Images, tables: StepTable, keys: Any
) -> Float[Array, "E B *dims"]:
    """sample(encode(x_0)) for each of the tables (E, S_max), one after the other, not clipped."""

    def both_ways(table: StepTable) -> Any:
        return sample(denoise, encode(denoise, x_0, table), table, keys)

    return jax.lax.map(both_ways, tables)


def reconstruction_errors(
    images: Float[np.ndarray, "B *dims"], decoded: Float[np.ndarray, "B E *dims"]
) -> list[Interval]:
    """The error (1) of every table, with a 95 % interval of the mean over images.

    >>> images = np.zeros((2, 1, 1, 1), np.float32)
    >>> (error,) = reconstruction_errors(images, np.array([0.2, 0.4]).reshape(2, 1, 1, 1, 1))
    >>> round(error.value, 6), round(error.high - error.value, 4)
    (0.025, 0.0294)
    """
    difference = (decoded.astype(np.float64) - images[:, None]) / 2
    of_image = np.square(difference).mean(axis=tuple(range(2, difference.ndim)))
    return [mean_interval(column) for column in of_image.T]


def _round_trips(
    config: Config, source: Source, grid: Sequence[Cell], images: np.ndarray, mesh: Any,
    console: Console,
) -> np.ndarray:  # fmt: skip
    """The images after encoding and decoding, (B, E, …)."""
    params = on_mesh(source.params, mesh)
    clip = np.int32(config.clip_index(grid[0], source))
    scale = None if config.guidance == 1 else np.float32(config.guidance)
    plan = Plan(stack_tables([cell.table for cell in grid]), np.uint32(config.seed), clip, scale)
    labels = config.labels(source)

    def both_ways(params: Any, batch: Any, plan: Plan) -> Any:
        x_0, (indices, label) = batch
        denoise = planned(source.denoise, params, label, plan)
        keys = image_keys(plan.seed, indices)
        return round_trip(denoise, x_0, plan.table, keys).swapaxes(0, 1)

    program, size = batch_program(both_ways, mesh), full_batch(min(config.batch_size, len(images)))
    parts = in_batches(
        lambda indices: program(
            params, (images[indices % len(images)], labelled(indices, labels)), plan
        ),
        len(images),
        size,
    )
    results = []
    with progress(console, -(-len(images) // size), "batches") as show:
        for part in parts:
            results.append(part)
            show("reconstructing")
    return np.concatenate(results)


def _open(config: Config, source: Source) -> tuple[Dataset, str]:
    """The images, and the split that they come from."""
    data = source.data
    if config.source:
        data = replace(data, source=config.source)
        check_ranges(data, "data.")
    try:
        return load_dataset(data, source.image_shape, config.split), config.split
    except MissingSplit:
        return load_dataset(data, source.image_shape, "train"), "train"
