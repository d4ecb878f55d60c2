"""The σ-ablation: every cell of a grid from the same noise, by one compiled program, each image computed once and kept.

    DIR/ablations/cells/HASH/INDEX.npz    a batch of images of a cell, under the hash of everything that they depend on
    DIR/ablations/NAME/                   a report on the cells of one grid

A command that is stopped and started again computes what is missing; two grids that share cells share their images.
"""

import dataclasses
import importlib.metadata
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ..devices import batch_sharding, describe, full_batch, make_mesh, replicated
from ..diffusion.reverse import StepTable, stack_tables
from ..diffusion.sampling import image_keys, initial_noise, sample_path
from ..images import to_uint8
from .features import classifier_path, load_features
from .grid import CLIPS, Cell, GridFlags, clipped
from .sources import Oracle, Source, digest, oracle_source, run_source
from .summary import summarise


@dataclass(frozen=True)
class AblateConfig:
    """Compare σ schedules on one model: a table with intervals, figures, and a page to look at."""

    run: tyro.conf.Positional[Path | None] = None
    """The run directory, as train.py leaves it; leave it out with --oracle."""
    oracle: Oracle | None = None
    """An exact denoiser instead: of a Gaussian or a class mixture fitted to digits, or of the digits or emoji themselves."""
    grid: tyro.conf.OmitArgPrefixes[GridFlags] = field(default_factory=GridFlags)
    name: str = "default"
    """The report's directory, below RUN/ablations (of an oracle: runs/oracle-NAME/ablations)."""
    num_images: int = 0
    """n, images a cell; 0: 10,000, and on a CPU 512."""
    features: Literal["pixels", "classifier"] = "pixels"
    """What distances are measured on: raw pixels, or the hidden layer of a small classifier (`sample.py classifier RUN`)."""
    clip: Literal["official", "none", "x0", "rederive"] = "official"
    """Clip x̂_0 to [−1, 1]; official: rederive with σ̂, none with the others, and on a Gaussian oracle, which is exact."""
    baseline: str = ""
    """The cell that the others are compared with, "eta=0 quadratic S=50" say; empty: the first σ at the largest S."""
    checkpoint: str = "latest"
    """latest, best (the lowest validation loss of those kept), or a step number."""
    seed: int = 0
    """Seed of the noise, which all cells share, 0 to 2³²−1."""
    batch_size: int = 0
    """Images that are computed at once; 0: 500, and on a CPU 128."""

    def check(self) -> None:
        """Raise ValueError if a field is out of range, alone or beside another."""
        if (self.run is None) == (self.oracle is None):
            raise ValueError(f"RUN is {self.run} and --oracle {self.oracle}; give one of the two.")
        for name, value, least in (
            ("num-images", self.num_images, 0),
            ("batch-size", self.batch_size, 0),
        ):
            if value < least:
                raise ValueError(f"--{name} is {value}; it must be {least} or more.")
        if (
            0 < self.num_images < 8
        ):  # the intervals halve the samples, and each half needs three neighbours
            raise ValueError(
                f"--num-images is {self.num_images}; distances with intervals need 8 or more."
            )
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"--seed is {self.seed}; it must be from 0 to {2**32 - 1}.")
        if not self.name or "/" in self.name or self.name in (".", "..", "cells"):
            raise ValueError(
                f"--name is {self.name!r}; give a directory name other than 'cells', without a slash."
            )

    def directory(self) -> Path:
        """Where ablations of this model are kept."""
        return (self.run or Path("runs") / f"oracle-{self.oracle}") / "ablations"

    def resolved(self) -> "AblateConfig":
        """The configuration with the defaults of this machine filled in."""
        cpu = jax.default_backend() == "cpu"
        steps = self.grid.steps or ((5, 10, 20, 50) if cpu else (10, 20, 50, 100, 1000))
        return dataclasses.replace(
            self,
            grid=dataclasses.replace(self.grid, steps=steps),
            num_images=self.num_images or (512 if cpu else 10_000),
            batch_size=full_batch(self.batch_size or (128 if cpu else 500)),
        )


class Drawn(NamedTuple):
    """What a cell gave: its images, the root mean square of x̂_0 at each step, and the seconds that it took."""

    images: np.ndarray
    x_0_rms: np.ndarray
    seconds: float


Draw = Callable[[StepTable, int, np.ndarray], tuple[np.ndarray, np.ndarray]]


def ablate(config: AblateConfig, console: Console) -> None:
    """Draw what is missing of a grid, and write the report.

    Args:
        config: the model and the grid.
        console: where progress goes.

    Raises:
        ValueError: a flag out of range, a run that cannot be read, a grid that is none.
    """
    config.check()
    config = config.resolved()
    source = (
        run_source(config.run, config.checkpoint)
        if config.run
        else oracle_source(config.oracle or "digits")
    )
    cells = config.grid.cells(source.alpha_bar, config.grid.steps)
    baseline = _baseline(config, cells)
    features = load_features(config.features, source, classifier_path(config.run, config.oracle))
    drawn, compilations = draw_cells(config, source, cells, console)
    if jax.process_index() == 0:
        summarise(config, source, features, cells, baseline, drawn, compilations, console)


def _baseline(config: AblateConfig, cells: list[Cell]) -> str:
    names = [cell.name for cell in cells]
    if config.baseline and config.baseline not in names:
        raise ValueError(f"--baseline is {config.baseline!r}; the grid has {', '.join(names)}.")
    return (
        config.baseline
        or max(cells, key=lambda cell: (cell.family.name == cells[0].family.name, cell.steps)).name
    )


def draw_cells(
    config: AblateConfig, source: Source, cells: list[Cell], console: Console
) -> tuple[list[Drawn], int]:
    """The images of every cell, those that are on disk not drawn again; and how often the sampler was compiled."""
    size = config.batch_size
    firsts = range(0, config.num_images, size)
    places = [config.directory() / "cells" / _identity(config, source, cell) for cell in cells]
    files = [[place / f"{first:08d}.npz" for first in firsts] for place in places]
    missing = {
        (i, first)
        for i, some in enumerate(files)
        for first, file in zip(firsts, some, strict=True)
        if not file.exists()
    }
    draw, count = make_draw(source, size, max(len(cell.table.t) for cell in cells))
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("steps"),
        TimeRemainingColumn(),
    )
    total = sum(cells[i].steps for i, _ in missing)
    if len(missing) < len(cells) * len(firsts):
        console.print(
            f"{len(cells) * len(firsts) - len(missing)} of {len(cells) * len(firsts)} batches are there already"
        )
    if missing:
        draw(
            jax.tree.map(np.zeros_like, cells[0].table), 0, np.zeros((size, 2), np.uint32)
        )  # compile: no step is active
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal or not missing
    ) as bar:
        task = bar.add_task("", total=total)
        for i, first in sorted(missing):
            bar.update(task, description=cells[i].name)
            start = time.perf_counter()
            keys = np.asarray(
                jax.random.key_data(image_keys(config.seed, np.arange(first, first + size)))
            )
            images, squares = draw(cells[i].table, _clip_mode(config, source, cells[i]), keys)
            if jax.process_index() == 0:
                _save(
                    files[i][first // size], to_uint8(images), squares, time.perf_counter() - start
                )
            bar.advance(task, cells[i].steps)
    return (
        [_load(some, config.num_images) for some in files] if jax.process_index() == 0 else []
    ), count()


def make_draw(source: Source, size: int, rows: int) -> tuple[Draw, Callable[[], int]]:
    """draw(table, clip mode, key data (B, 2)) → (images, mean of x̂_0² (S, B)), compiled once for every table up to `rows` rows.

    Args:
        source: the model.
        size: images a batch.
        rows: the largest S; shorter tables are padded with rows that do nothing.

    Returns:
        draw, and a function that counts its compilations.
    """
    mesh = make_mesh(size)
    whole, split = replicated(mesh), batch_sharding(mesh)
    longest = StepTable(*(np.zeros(rows, kind) for kind in (int, float, float, float, float, bool)))
    params = (
        None
        if source.params is None
        else jax.device_put(jax.tree.map(np.asarray, source.params), whole)
    )

    def run(params: Any, table: StepTable, mode: Any, key_data: Any) -> Any:
        keys = jax.random.wrap_key_data(
            jax.lax.with_sharding_constraint(key_data, split), impl="threefry2x32"
        )
        denoise = clipped(source.denoise(params), mode, source.alpha_bar)
        x_T = initial_noise(keys, source.image_shape)
        return sample_path(
            denoise, x_T, table, keys, observe=lambda _, x_0: jnp.mean(x_0**2, axis=(1, 2, 3))
        )

    program: Any = jax.jit(run, in_shardings=whole, out_shardings=whole)

    def draw(table: StepTable, mode: int, key_data: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        padded = jax.tree.map(lambda leaf: leaf[0], stack_tables([table, longest]))
        with jax.default_matmul_precision("highest"):
            images, squares = program(params, padded, np.int32(mode), key_data)
        return np.asarray(images), np.asarray(squares)[np.asarray(padded.active)]

    return draw, program._cache_size


def _clip_mode(config: AblateConfig, source: Source, cell: Cell) -> int:
    if config.clip != "official":
        return CLIPS.index(config.clip)
    return CLIPS.index("rederive" if cell.family.rederive and source.moments is None else "none")


def _identity(config: AblateConfig, source: Source, cell: Cell) -> str:
    """A hash of everything that the images of a cell depend on, rounding included."""
    versions = [importlib.metadata.version(name) for name in ("ddim_jax", "jax", "jaxlib", "flax")]
    mode = _clip_mode(config, source, cell)
    return digest(
        source.identity,
        source.alpha_bar,
        *cell.table,
        mode,
        config.seed,
        config.batch_size,
        versions,
        describe(),
    )[:32]


def _save(file: Path, images: np.ndarray, squares: np.ndarray, seconds: float) -> None:
    """Whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    partial_file = file.with_suffix(".partial.npz")
    np.savez(partial_file, images=images, squares=squares, seconds=seconds)
    partial_file.replace(file)


def _load(files: list[Path], count: int) -> Drawn:
    def parts(name: str) -> Iterator[np.ndarray]:
        for file in files:
            with np.load(file) as arrays:
                yield arrays[name]

    images = np.concatenate(list(parts("images")))[:count]
    squares = np.concatenate(list(parts("squares")), axis=1)[:, :count]
    return Drawn(images, np.sqrt(squares.mean(axis=1)), float(sum(parts("seconds"))))
