"""`sample.py ablate`: every cell of a grid of σ × τ × S from the same noise, measured and shown.

DIR/ablations/cells/HASH/INDEX.npz    images of a cell, under a hash of all that they depend on
DIR/ablations/NAME/                   a report on the cells of one grid
"""

import importlib.metadata
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import numpy as np
from rich.console import Console

from ..devices import describe, full_batch
from ..features import FeatureFlags, Features, load_features
from ..files import make_directory
from ..images import save_rows
from ..metrics import STATISTICS, Statistics
from ..settings import IMAGES, MANY, at_least
from .bits import elbo_metrics
from .cells import Drawing, Drawn, draw_cells
from .flags import DrawFlags, chosen_cells
from .grid import Cell, concerns
from .image_sets import ImageSet, check_recipe, check_shapes, open_images
from .measure import change, differences, exact_labels, few_images, measure_cells, open_reference
from .measure import entry as cell_entry
from .paper import STEPS
from .source import Source
from .tables import console_table, estimate

_SHOWN = 64  # images of a cell in the page's viewer
_COLUMNS = 10  # images of a σ in samples.png
_VERSIONS = ("ddim_jax", "jax", "jaxlib", "flax", "numpy")
_TABLE_1 = ("eta=0", "eta=0.2", "eta=0.5", "eta=1", "hat")


@dataclass(frozen=True)
class Config(FeatureFlags, DrawFlags):
    """Compare σ schedules on one model: a table with intervals, figures, and a page of images."""

    preset: Literal["none", "table1"] = "none"
    """table1: the paper's Table 1, FID of 50,000 images at S = 10 20 50 100 1000."""
    sigma: tuple[str, ...] = _TABLE_1
    """One or more σ, each as in generate; the default is the paper's Table 1."""
    timesteps: tuple[str, ...] = ("",)
    """One or more τ, each as in generate."""
    solver: tuple[str, ...] = ("first",)
    """One or more solvers, each as in generate."""
    steps: tuple[int, ...] = ()
    """One or more S; empty: 10 20 50 100 1000, or on a CPU 5 10 20 50."""
    sampler: tuple[str, ...] = ()
    """A list of samplers instead of a grid: FILE.npz, or a cell as "eta=0 quadratic S=10"."""
    name: str = ""
    """The report's directory in RUN/ablations; empty: `default`, or `table1` with that preset."""
    num_images: Annotated[int, IMAGES] = 0
    """n, images per cell; 0: 10,000, or on a CPU 512."""
    likelihood: Annotated[int, at_least(0, MANY)] = 0
    """Test images for the ELBO, where every step has noise; 0: no ELBO."""
    against: str = ""
    """Reference images or statistics, as in evaluate; empty: the run's training images."""
    baseline: str = ""
    """The cell to compare with, such as "eta=0 quadratic S=50"; empty: first σ, largest S."""

    def check(self) -> None:
        """Raise a ValueError if a field is out of range, or does not fit another field."""
        super().check()
        if "/" in self.name or self.name in (".", "..", "cells", "reference"):
            raise ValueError(
                f"--name is {self.name!r}; give a directory name other than 'cells' and "
                "'reference', without a slash."
            )
        if not (self.sigma and self.timesteps and self.solver):
            raise ValueError(
                "--sigma, --timesteps and --solver may not be empty; give one or more of each."
            )

    def resolved(self) -> "Config":
        """The configuration with the defaults of this machine filled in."""
        cpu, table1 = jax.default_backend() == "cpu", self.preset == "table1"
        steps = self.steps or ((5, 10, 20, 50) if cpu and not table1 else STEPS)
        count = self.num_images or (50_000 if table1 else 512 if cpu else 10_000)
        name = self.name or ("table1" if table1 else "default")
        features = "inception" if table1 and self.features == "pixels" else self.features
        return replace(self, steps=steps, num_images=count, name=name, features=features)


def run(config: Config, console: Console) -> None:
    """Draw the missing images of a grid, measure them, and write the report."""
    config.check()
    config, source = config.resolved(), config.open()
    grid = chosen_cells(config, source, config.steps, console)
    baseline = _baseline(config.baseline, grid)
    warnings = concerns(source.alpha_bar, source.kind, grid)
    # All that can be refused is refused before the first image is drawn.
    directory = source.directory / "ablations" / config.name
    make_directory(directory, directory, "--name")
    features = load_features(config, source.directory, source.image_shape[-1], console)
    reference = open_reference(
        _images(config, source, features), features, source.directory / "ablations" / "reference"
    )
    warnings += few_images(config.num_images, reference.points["frechet"].shape[1])
    for warning in warnings:
        console.print(f"warning: {warning}")
    drawing = Drawing(
        source, config.seed, config.num_images, full_batch(config.batch_size),
        config.labels(source), config.guidance,
    )  # fmt: skip
    clips = [config.clip_index(cell, source) for cell in grid]
    drawn, compilations = draw_cells(drawing, grid, clips, console)
    spreads = measure_cells(grid, drawn, reference, features, console)
    elbos = None
    if config.likelihood:
        elbos = elbo_metrics(source, grid, config.likelihood, config.seed, drawing.size, console)
    if jax.process_index():
        return
    if config.clip not in ("official", "none"):
        # Clipping is not linear, so the exact results do not hold for this sampler.
        source = source._replace(moments=None)
    calls = 1 if config.guidance == 1 else 2
    entries = _entries(source, grid, drawn, spreads, baseline, calls)
    counts = {name: points.shape[0] for name, points in reference.points.items()}
    labels = _labels(config, source, features, baseline, counts)
    if elbos:
        labels["bits"] = elbos.label
        for entry, bits in zip(entries, elbos.values, strict=True):
            entry["metrics"]["bits"] = bits
    results = _results(config, source.data.source, entries, labels, baseline, compilations)
    results["warnings"] = warnings
    from .report import write_report  # imports matplotlib for half a second

    pictures = {cell.name: made.pictures(_SHOWN) for cell, made in zip(grid, drawn, strict=True)}
    write_report(results, pictures, directory)
    _save_samples(grid, pictures, directory / "samples.png")
    shown = "w2_covariance" if source.moments is not None else "frechet"
    _print_tables(entries, shown, labels[shown], console)
    made = f"{compilations} compilation{'' if compilations == 1 else 's'} of the sampler"
    seconds = f"{results['wall_seconds']:.0f} s of sampling on {describe()}"
    console.print(f"{made} for {len(grid)} cells, {seconds}")
    console.print(f"report: {directory / 'index.html'}, table.md, results.csv, results.json")


def _images(config: Config, source: Source, features: Features) -> np.ndarray | Statistics:
    """What the cells are compared with."""
    if not config.against:
        return source.reference().images
    found = open_images(config.against, "--against", source.image_shape)
    check_recipe(found, features.recipe)
    if config.features != "inception" and found.images is not None:
        check_shapes(found, ImageSet(source.name, np.zeros((0, *source.image_shape), np.uint8)))
    images = found.statistics if found.images is None else found.images
    assert images is not None  # an ImageSet has one of the two
    return images


def _entries(
    source: Source,
    grid: list[Cell],
    drawn: list[Drawn],
    spreads: list[dict[str, Any]],
    baseline: str,
    calls: int,
) -> list[dict[str, Any]]:
    """The report's entry for every cell; a step takes `calls` calls of the network."""
    at = [cell.name for cell in grid].index(baseline)
    base, entries = drawn[at].images(), []
    for cell, made, of_cell in zip(grid, drawn, spreads, strict=True):
        entry = cell_entry(source, cell, made, of_cell)
        entry["network_calls"] *= calls
        entry["metrics"]["change"] = change(made, base)
        if cell.name != baseline:
            entry["difference"] = differences(of_cell, spreads[at])
        entries.append(entry)
    return entries


def _labels(
    config: Config,
    source: Source,
    features: Features,
    baseline: str,
    reference_counts: dict[str, int],
) -> dict[str, str]:
    """The name of each metric, with everything that it depends on."""
    of = f"{features.name}, n={config.num_images:,}"
    change = f"RMS difference from the same image of {baseline}, pixels in [-1, 1]"
    distances = {
        name: f"{features.label(name)}, {of} against {f'{count:,}' if count else config.against}"
        for name, count in reference_counts.items()
    }
    return exact_labels(source) | distances | {"change": f"{change}, n={config.num_images:,}"}


def _results(
    config: Config,
    data: str,
    entries: list[Any],
    labels: dict[str, str],
    baseline: str,
    compilations: int,
) -> dict[str, Any]:
    """Everything that the report contains."""
    elsewhere = ("run", "oracle", "name")
    return {
        "name": config.name,
        "run": str(config.run or ""),
        "oracle": config.oracle,
        "data": config.against or data,
        "versions": {name: importlib.metadata.version(name) for name in _VERSIONS},
        "device": describe(),
        "settings": {key: value for key, value in vars(config).items() if key not in elsewhere},
        "seed": config.seed,
        "n": config.num_images,
        "baseline": baseline,
        "compilations": compilations,
        "wall_seconds": sum(entry["seconds"] for entry in entries),
        "metrics": labels,
        "larger_is_better": [name for name, s in STATISTICS.items() if s.larger_is_better],
        "cells": entries,
    }


def _save_samples(grid: list[Cell], pictures: dict[str, np.ndarray], path: Path) -> None:
    """The first images of every σ at the first τ and its smallest S, one row per σ."""
    here = [cell for cell in grid if cell.timesteps == grid[0].timesteps]
    fewest = [cell for cell in here if cell.steps == min(cell.steps for cell in here)]
    rows = np.stack([pictures[cell.name][:_COLUMNS] for cell in fewest])
    save_rows(rows, path, [cell.sigma for cell in fewest])


def _baseline(asked: str, grid: list[Cell]) -> str:
    names = [cell.name for cell in grid]
    if asked and asked not in names:
        raise ValueError(f"--baseline is {asked!r}; the grid has {', '.join(names)}.")
    return asked or max(grid, key=lambda cell: (cell.sigma == grid[0].sigma, cell.steps)).name


def _print_tables(entries: list[Any], metric: str, label: str, console: Console) -> None:
    """One metric as a table of σ × S for each τ."""
    for kind in dict.fromkeys(entry["timesteps"] for entry in entries):
        here = [entry for entry in entries if entry["timesteps"] == kind]
        steps = sorted({entry["steps"] for entry in here})
        rows = [["σ", *(f"S={count}" for count in steps)]]
        for sigma in dict.fromkeys(entry["sigma"] for entry in here):
            texts = {
                e["steps"]: estimate(e["metrics"][metric]) for e in here if e["sigma"] == sigma
            }
            rows.append([sigma, *(texts.get(count, estimate(None)) for count in steps)])
        console.print(console_table(f"{label}; τ {kind}", rows))
