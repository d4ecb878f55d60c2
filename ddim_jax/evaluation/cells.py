"""The images of a grid's cells: each computed once, by one compiled program, and cached.

They are stored under a hash of everything that they depend on. So a command that is stopped and
restarted draws only what is missing, grids share the cells that they have in common, and images of
a changed model are never mixed in.
"""

import importlib.metadata
import time
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ..devices import describe, make_mesh
from ..diffusion.reverse import StepTable, stack_tables
from ..files import digest, whole
from ..images import to_uint8
from ..sampler import Batch, Plan, make_sampler, on_mesh
from .grid import Cell
from .source import Source


class Drawing(NamedTuple):
    """What to draw for every cell: images 0 … num_images−1 of a seed, `size` at a time."""

    source: Source
    seed: int
    num_images: int
    size: int


class Drawn(NamedTuple):
    """Results of a cell: images, the root mean square of x̂_0 at each step, and the time taken."""

    images: np.ndarray
    x_0_rms: np.ndarray
    seconds: float


def draw_cells(
    drawing: Drawing, cells: Sequence[Cell], clips: Sequence[int], console: Console
) -> tuple[list[Drawn], int]:
    """The images of every cell, and the number of compilations that drawing them took.

    Only the first process returns images.
    """
    firsts = range(0, drawing.num_images, drawing.size)
    files = [
        [_place(drawing, cell, clip) / f"{first:08d}.npz" for first in firsts]
        for cell, clip in zip(cells, clips, strict=True)
    ]
    missing = [
        (i, first)
        for i, of_cell in enumerate(files)
        for first, file in zip(firsts, of_cell, strict=True)
        if _read(file) is None
    ]
    total = len(cells) * len(firsts)
    if len(missing) < total:
        console.print(f"{total - len(missing)} of {total} batches already exist")
    compilations = _draw_missing(drawing, cells, clips, files, missing, console) if missing else 0
    if jax.process_index():
        return [], compilations
    return [_load(of_cell, drawing.num_images) for of_cell in files], compilations


def _draw_missing(
    drawing: Drawing,
    cells: Sequence[Cell],
    clips: Sequence[int],
    files: list[list[Path]],
    missing: list[tuple[int, int]],
    console: Console,
) -> int:
    source, size, mesh = drawing.source, drawing.size, make_mesh(drawing.size)
    params = on_mesh(source.params, mesh)
    # Shorter tables are padded to the longest with rows that do nothing: one program for all.
    tables = stack_tables([cell.table for cell in cells])
    sampler = make_sampler(source.denoise, source.image_shape, mesh, observe=_mean_square)

    def draw(first: int, table: StepTable, clip: int) -> tuple[np.ndarray, np.ndarray]:
        batch = Batch(np.arange(first, first + size, dtype=np.uint32))
        plan = Plan(table, np.uint32(drawing.seed), np.int32(clip))
        images, squares = sampler(params, batch, plan)
        return np.asarray(images), np.asarray(squares).T[np.asarray(table.active)]

    draw(0, jax.tree.map(lambda leaf: np.zeros_like(leaf[0]), tables), 0)  # compile: all inactive
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(),
               TextColumn("steps"), TimeRemainingColumn())  # fmt: skip
    quiet = not console.is_terminal
    with Progress(*columns, console=console, transient=True, disable=quiet) as bar:
        task = bar.add_task("", total=sum(cells[i].steps for i, _ in missing))
        for i, first in missing:
            bar.update(task, description=cells[i].name)
            start = time.perf_counter()
            table = jax.tree.map(lambda leaf, i=i: leaf[i], tables)
            images, squares = draw(first, table, clips[i])
            if jax.process_index() == 0:
                with whole(files[i][first // size]) as partial:
                    seconds = time.perf_counter() - start
                    np.savez(partial, images=to_uint8(images), squares=squares, seconds=seconds)
            bar.advance(task, cells[i].steps)
    return sampler._cache_size()  # type: ignore[attr-defined]


def _mean_square(x_t: jax.Array, x_0: jax.Array) -> jax.Array:
    return jnp.mean(x_0**2, axis=(1, 2, 3))


def _place(drawing: Drawing, cell: Cell, clip: int) -> Path:
    """The directory of a cell's images: a hash of all that they depend on, even in rounding."""
    source = drawing.source
    versions = [importlib.metadata.version(name) for name in ("ddim_jax", "jax", "jaxlib", "flax")]
    identity = digest(
        *source.identity, source.alpha_bar, *cell.table, clip, drawing.seed, drawing.size, versions,
        describe(),
    )  # fmt: skip
    return source.directory / "ablations" / "cells" / identity[:32]


def _load(files: Sequence[Path], count: int) -> Drawn:
    images, squares, seconds = zip(*(_read(file) or () for file in files), strict=True)
    mean_squares = np.concatenate(squares, axis=1)[:, :count].mean(axis=1)
    return Drawn(np.concatenate(images)[:count], np.sqrt(mean_squares), float(sum(seconds)))


def _read(file: Path) -> list[np.ndarray] | None:
    """Images, mean squares of x̂_0 and seconds of a batch; None where it is missing or damaged."""
    try:
        with np.load(file) as arrays:
            return [arrays[name] for name in ("images", "squares", "seconds")]
    except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile):
        return None
