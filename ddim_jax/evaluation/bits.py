"""Bits/dim of images under the samplers of a grid, and under the ODE; in batches, over devices."""

import contextlib
import math
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console

from ..data import MissingSplit, load_dataset
from ..devices import full_batch, make_mesh
from ..diffusion.flow import ode_log_likelihood
from ..diffusion.keys import Purpose, image_keys
from ..diffusion.likelihood import Elbo, bits_per_dim, elbo
from ..diffusion.reverse import stack_tables
from ..images import to_unit_range
from ..metrics import mean_interval
from ..progress import progress
from ..sampler import batch_program, in_batches, on_mesh
from .grid import Cell
from .source import Source


class Split(NamedTuple):
    """Images in [−1, 1], and their labels if the model cannot do without."""

    name: str
    images: np.ndarray
    labels: np.ndarray | None


def has_elbo(cell: Cell) -> bool:
    """Whether every step that does not go to data has noise, and the solver is of first order."""
    table, inner = cell.table, cell.table.active & (cell.table.s > 0)
    noisy = np.all((table.sigma[inner] > 0) & (table.noise[inner] > 0))
    return bool(noisy) and not _corrected(cell)


def _corrected(cell: Cell) -> bool:
    return any(np.any(numbers) for numbers in cell.table[-2:])


def elbos(
    source: Source, split: Split, grid: Sequence[Cell], seed: int, size: int, console: Console
) -> list[Elbo]:
    """The terms of every cell for each image, all cells in one program."""
    tables = stack_tables([cell.table for cell in grid])
    levels = 256 if source.bounded else None

    def terms(params: Any, batch: Any, tables: Any) -> Any:
        x_0, indices, label = batch
        denoise, keys = source.denoise(params, label), image_keys(seed, indices, Purpose.LIKELIHOOD)
        of_cells = jax.lax.map(
            lambda table: elbo(denoise, x_0, source.alpha_bar, table, keys, levels=levels), tables
        )
        return jax.tree.map(lambda leaf: leaf.swapaxes(0, 1), of_cells)

    doing = f"{split.name}: ELBO"
    found = _in_batches(source, split, terms, (tables,), size, doing, console)
    return [jax.tree.map(lambda leaf, i=i: leaf[:, i], found) for i in range(len(grid))]


class ElboMetric(NamedTuple):
    """The ELBO as a metric of an ablation: its label, and an estimate for each cell."""

    label: str
    values: list[dict[str, float]]


def elbo_metrics(
    source: Source, grid: Sequence[Cell], count: int, seed: int, size: int, console: Console
) -> ElboMetric:
    """The bits/dim of every cell on `count` test images, or on others if there are none."""
    split = next(splits(source, count))
    have = [cell for cell in grid if has_elbo(cell)]
    found = iter(elbos(source, split, have, seed, size, console) if have else [])
    values = []
    for cell in grid:
        if has_elbo(cell):
            values.append(interval_of(bits(source, next(found))["bits"]))
        else:  # infinite without noise; not known for a solver with memory
            values.append({"value": math.nan if _corrected(cell) else math.inf})
    width = "256 levels" if source.bounded else "density"
    label = f"ELBO, bits/dim, {width}, {len(split.images):,} {split.name} images"
    return ElboMetric(label, values)


def bits(source: Source, terms: Elbo) -> dict[str, np.ndarray]:
    """Bits/dim of every image, and its two parts."""
    shape, density = source.image_shape, not source.bounded
    terms = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), terms)
    rate = bits_per_dim(-(terms.prior + terms.steps.sum(axis=1)), shape)
    distortion = bits_per_dim(-terms.data, shape, density=density)
    return {"bits": rate + distortion, "rate": rate, "distortion": distortion}


def dequantised(x_0: Any, keys: Any) -> Any:
    """x_0 + (u − ½)/127.5, u ~ U[0, 1) of each image: a density within the bins of 256 levels."""
    draw = partial(jax.random.uniform, shape=x_0.shape[1:], dtype=jnp.float32)
    return x_0 + (jax.vmap(draw)(keys) - 0.5) / 127.5


def ode_nats(
    source: Source, split: Split, seed: int, size: int, stride: int, console: Console
) -> np.ndarray:
    """Log p of the images, each with uniform noise of a level's width."""

    def density(params: Any, batch: Any) -> Any:
        x_0, indices, label = batch
        keys = image_keys(seed, indices, Purpose.LIKELIHOOD)
        x_0 = dequantised(x_0, keys) if source.bounded else x_0
        denoise = source.denoise(params, label)
        return ode_log_likelihood(denoise, x_0, source.alpha_bar, keys, stride=stride)

    doing = f"{split.name}: ODE"
    found = _in_batches(source, split, density, (), size, doing, console)
    return np.asarray(found, np.float64)


def _in_batches(
    source: Source, split: Split, function: Any, rest: tuple[Any, ...], size: int, doing: str,
    console: Console,
) -> Any:  # fmt: skip
    """function(params, (x_0, indices, label), *rest) for all images of a split."""
    count = len(split.images)
    size = full_batch(min(size, count))
    mesh = make_mesh(size)
    params, program = on_mesh(source.params, mesh), batch_program(function, mesh)

    def call(indices: np.ndarray) -> Any:
        at = indices % count
        label = None if split.labels is None else split.labels[at]
        return program(params, (split.images[at], indices, label), *rest)

    parts = []
    with progress(console, count, "images") as show:
        for part in in_batches(call, count, size):
            parts.append(part)
            show(doing, len(jax.tree.leaves(part)[0]))
    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)


def splits(source: Source, most: int) -> Iterator[Split]:
    """Test images, if there are any, and training images; of an oracle, its data."""
    if source.step is None:
        images = source.reference().images
        yield Split("data", images[np.random.default_rng(0).permutation(len(images))[:most]], None)
        return
    with contextlib.suppress(MissingSplit):
        yield open_split(source, "test", most)
    yield open_split(source, "train", most)


def open_split(source: Source, name: Literal["test", "train"], most: int) -> Split:
    """Up to `most` images of a split of a run's data, in a fixed random order."""
    dataset = load_dataset(source.data, source.image_shape, name)
    chosen = np.random.default_rng(0).permutation(dataset.size)[:most]
    labels = None
    if not source.has_no_label and dataset.label is not None:
        labels = np.asarray(dataset.label(chosen), np.int32)
    return Split(name, to_unit_range(dataset.read(chosen)), labels)


def interval_of(values: np.ndarray) -> dict[str, float]:
    """The mean over images and its interval."""
    return mean_interval(np.asarray(values, np.float64))._asdict()
