"""The images of a grid's cells: each computed once, by one compiled program, and cached.

They are stored under a hash of everything that they depend on. So a command that is stopped and
restarted draws only what is missing, grids share the cells that they have in common, and images of
a changed model are never mixed in.
"""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console

from ..devices import make_mesh, surroundings
from ..diffusion.reverse import StepTable, stack_tables
from ..files import digest, read_arrays, whole
from ..images import to_uint8
from ..progress import progress
from ..sampler import Plan, labelled, make_sampler, on_mesh
from .grid import Cell
from .source import Source

_PATIENCE = 120.0  # seconds until what one process wrote is seen by the others


class Drawing(NamedTuple):
    """What to draw for every cell: images 0 … num_images−1 of a seed, `size` at a time."""

    source: Source
    seed: int
    num_images: int
    size: int
    labels: tuple[int, ...] = ()  # that the images take in turn
    guidance: float = 1.0


class Drawn(NamedTuple):
    """Results of a cell: where its images are, the RMS of x̂_0 at each step, and the time taken."""

    files: Sequence[Path]
    num_images: int
    x_0_rms: np.ndarray
    seconds: float

    @property
    def place(self) -> Path:
        """The cell's directory, whose name is a hash of all that its images depend on."""
        return self.files[0].parent

    def images(self, first: int | None = None) -> np.ndarray:
        """The images, or the first of them, read from their files."""
        parts: list[np.ndarray] = []
        wanted = min(first or self.num_images, self.num_images)
        for file in self.files:
            if sum(len(part) for part in parts) < wanted:
                with np.load(file) as arrays:
                    parts.append(arrays["images"])
        return np.concatenate(parts)[:wanted]

    def pictures(self, first: int) -> np.ndarray:
        """The first images as uint8."""
        images = self.images(first)
        return images if images.dtype == np.uint8 else to_uint8(images)


def draw_cells(
    drawing: Drawing, cells: Sequence[Cell], clips: Sequence[int], console: Console
) -> tuple[list[Drawn], int]:
    """The images of every cell, and the number of compilations that drawing them took.

    The first process writes them, and every process reads them.
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
    if missing and jax.process_count() > 1:
        _wait_for([file for of_cell in files for file in of_cell])
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
        batch = labelled(np.arange(first, first + size, dtype=np.uint32), drawing.labels)
        scale = None if drawing.guidance == 1 else np.float32(drawing.guidance)
        plan = Plan(table, np.uint32(drawing.seed), np.int32(clip), scale)
        images, squares = sampler(params, batch, plan)
        return np.asarray(images), np.asarray(squares).T[np.asarray(table.active)]

    draw(0, jax.tree.map(lambda leaf: np.zeros_like(leaf[0]), tables), 0)  # compile: all inactive
    with progress(console, sum(cells[i].steps for i, _ in missing), "steps") as show:
        for i, first in missing:
            start = time.perf_counter()
            table = jax.tree.map(lambda leaf, i=i: leaf[i], tables)
            images, squares = draw(first, table, clips[i])
            seconds = time.perf_counter() - start
            if jax.process_index() == 0:
                kept = to_uint8(images) if source.bounded else images
                with whole(files[i][first // size]) as partial:
                    np.savez(partial, images=kept, squares=squares, seconds=seconds)
            show(cells[i].name, cells[i].steps)
    return sampler._cache_size()  # type: ignore[attr-defined]


def _mean_square(x_t: jax.Array, x_0: jax.Array) -> jax.Array:
    return jnp.mean(x_0**2, axis=(1, 2, 3))


def _place(drawing: Drawing, cell: Cell, clip: int) -> Path:
    """The directory of a cell's images: a hash of all that they depend on, even in rounding."""
    source = drawing.source
    identity = digest(
        *source.identity, source.alpha_bar, *cell.table, clip, drawing.seed, drawing.size,
        drawing.labels, drawing.guidance, source.bounded, surroundings(),
    )  # fmt: skip
    return source.directory / "ablations" / "cells" / identity[:32]


def _wait_for(files: Sequence[Path]) -> None:
    """Wait until another process's files appear in this one's view of the file system."""
    deadline = time.monotonic() + _PATIENCE
    while missing := [file for file in files if not file.exists()]:
        if time.monotonic() > deadline:
            raise ValueError(
                f"{missing[0]} does not appear in process {jax.process_index()}; "
                "all processes must see one file system."
            )
        time.sleep(0.5)


def _load(files: Sequence[Path], count: int) -> Drawn:
    squares, seconds = zip(*(_read(file) or () for file in files), strict=True)
    mean_squares = np.concatenate(squares, axis=1)[:, :count].mean(axis=1)
    return Drawn(files, count, np.sqrt(mean_squares), float(sum(seconds)))


def _read(file: Path) -> list[np.ndarray] | None:
    """Mean squares of x̂_0 and seconds of a batch; None where it is missing or damaged."""
    arrays = read_arrays(file) or {}
    found = [arrays.get(name) for name in ("images", "squares", "seconds")]
    return None if any(array is None for array in found) else found[1:]  # type: ignore[return-value]
