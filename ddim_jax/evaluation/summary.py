"""Numbers out of the images of a grid: distances with intervals, paired differences, and the report on them."""

import dataclasses
import importlib.metadata
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

from ..devices import describe
from ..diffusion.oracle import kl_gaussian, propagate_gaussian, wasserstein2_gaussian
from ..metrics import (
    Interval,
    bootstrap,
    bootstrap_difference,
    coverage,
    density,
    frechet_distance,
    kernel_distance,
    mean_value,
    paired_differences,
    precision,
    recall,
)
from .features import Features, pixels
from .grid import Cell
from .sources import Source, digest

if TYPE_CHECKING:
    from .ablation import AblateConfig, Drawn

_SHOWN = 64  # images of a cell in the page's viewer
_NEIGHBOURS = 10_000  # reference images among which neighbours are looked for, and kernels summed
_STATISTICS: dict[str, tuple[str, Callable[..., float]]] = {
    "frechet": ("Fréchet distance", frechet_distance),
    "kernel": ("kernel distance", kernel_distance),
    "precision": ("precision (k=3)", partial(precision, k=3)),
    "recall": ("recall (k=3)", partial(recall, k=3)),
    "density": ("density (k=5)", partial(density, k=5)),
    "coverage": ("coverage (k=5)", partial(coverage, k=5)),
}
_EXACT = {"w2": "W2², exact", "w2_mean": "W2², part of the mean, exact", "w2_covariance": "W2², part of the covariance, exact",
          "kl": "KL in nats, exact"}  # fmt: skip


def summarise(
    config: "AblateConfig",
    source: Source,
    extractor: tuple[Features, str],
    cells: list[Cell],
    baseline: str,
    drawn: list["Drawn"],
    compilations: int,
    console: Console,
) -> None:
    """Measure the images of a grid, write its report, and print its first metric.

    Args:
        config: of the ablation, resolved.
        source: the model.
        extractor: the features, and their hash.
        cells: the grid.
        baseline: the name of the cell that the others are compared with.
        drawn: what each cell gave.
        compilations: how often the sampler was compiled.
        console: where the table goes.
    """
    features, _ = extractor
    if config.clip not in ("official", "none"):
        source = source._replace(
            moments=None
        )  # a clipped x̂_0 is no linear function: what is known exactly is of another sampler
    reference = _reference_features(config, source, *extractor)
    base = drawn[[cell.name for cell in cells].index(baseline)].images
    pairs = list(zip(cells, drawn, strict=True))
    quiet = not console.is_terminal
    entries = [
        {
            "id": cell.name, "sigma": cell.family.name, "timesteps": cell.kind, "steps": cell.steps,
            "metrics": exact_parts(source, cell) | _measure(features, reference, found.images, base),
            **({} if cell.name == baseline else {"difference": _compare(features, reference, found.images, base)}),
            "seconds": found.seconds, "network_calls": int(cell.table.active.sum()),
            "schedule": {name: np.asarray(getattr(cell.table, name)).tolist() for name in ("t", "sigma", "noise")}
            | {"s": [*np.asarray(cell.table.t)[1:].tolist(), 0]},
            "x0_rms": found.x_0_rms.tolist(),
        }
        for cell, found in track(pairs, "measuring", console=console, transient=True, disable=quiet)
    ]  # fmt: skip
    of = f"{config.features}, n={config.num_images:,}"
    labels = {name: label for name, label in _EXACT.items() if source.moments is not None}
    labels |= {
        name: f"{label}, {of} against {len(source.reference):,}"
        for name, (label, _) in _STATISTICS.items()
    }
    labels["change"] = (
        f"RMS difference from the same image of {baseline}, pixels in [-1, 1], n={config.num_images:,}"
    )
    versions = {
        name: importlib.metadata.version(name)
        for name in ("ddim_jax", "jax", "jaxlib", "flax", "numpy")
    }
    results = {
        "name": config.name, "run": str(config.run or ""), "oracle": config.oracle, "versions": versions, "device": describe(),
        "settings": {key: value for key, value in dataclasses.asdict(config).items() if key not in ("run", "oracle", "name")},
        "seed": config.seed, "n": config.num_images, "baseline": baseline, "compilations": compilations,
        "wall_seconds": sum(found.seconds for found in drawn), "metrics": labels,
        "larger_is_better": ["precision", "recall", "density", "coverage"], "cells": entries,
    }  # fmt: skip
    directory = config.directory() / config.name
    from .report import (
        write_report,
    )  # half a second of matplotlib, which other commands need not wait for

    write_report(results, {cell.name: found.images[:_SHOWN] for cell, found in pairs}, directory)
    shown = "w2_covariance" if source.moments is not None else "frechet"
    _print_table(entries, shown, labels[shown], console)
    made = f"{compilations} compilation{'' if compilations == 1 else 's'} of the sampler"
    console.print(
        f"{made} for {len(cells)} cells, {results['wall_seconds']:.0f} s of sampling on {describe()}"
    )
    console.print(f"report: {directory / 'index.html'}, table.md, results.csv, results.json")


def exact_parts(source: Source, cell: Cell) -> dict[str, dict[str, float]]:
    """Of a Gaussian oracle: the exact distance of the sampler's output from the data, its parts, and the KL."""
    if source.moments is None:
        return {}
    found = propagate_gaussian(*source.moments, source.alpha_bar, cell.table)
    mean, covariance = wasserstein2_gaussian(*found, *source.moments)
    values = {
        "w2": mean + covariance,
        "w2_mean": mean,
        "w2_covariance": covariance,
        "kl": kl_gaussian(*found, *source.moments),
    }
    return {name: {"value": value} for name, value in values.items()}


def _reference_features(
    config: "AblateConfig", source: Source, features: Features, extractor: str
) -> np.ndarray:
    """Features of the reference images, in an order of their own; a classifier's are kept under the hash of both."""
    order = np.random.default_rng(0).permutation(len(source.reference))
    if config.features == "pixels":
        return features(source.reference[order])
    file = config.directory() / "reference" / f"{digest(source.reference, extractor)[:32]}.npy"
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        partial_file = file.with_suffix(".partial.npy")
        np.save(partial_file, features(source.reference[order]))
        partial_file.replace(file)
    return np.load(file)


def _measure(
    features: Features, reference: np.ndarray, images: np.ndarray, base: np.ndarray
) -> dict[str, dict[str, float]]:
    some = features(images)
    found = {
        name: bootstrap(statistic, _part(name, reference), some)
        for name, (_, statistic) in _STATISTICS.items()
    }
    found["change"] = bootstrap(mean_value, 0.0, paired_differences(pixels(images), pixels(base)))
    return {name: _numbers(interval) for name, interval in found.items()}


def _compare(
    features: Features, reference: np.ndarray, images: np.ndarray, base: np.ndarray
) -> dict[str, dict[str, float]]:
    some, other = features(images), features(base)
    return {
        name: _numbers(bootstrap_difference(statistic, _part(name, reference), some, other))
        for name, (_, statistic) in _STATISTICS.items()
    }


def _part(name: str, reference: np.ndarray) -> np.ndarray:
    return reference if name == "frechet" else reference[:_NEIGHBOURS]


def _numbers(interval: Interval) -> dict[str, float]:
    return {name: float(value) for name, value in interval._asdict().items()}


def _print_table(entries: list[dict[str, Any]], metric: str, label: str, console: Console) -> None:
    """One metric, σ × S, for each τ."""
    for kind in dict.fromkeys(entry["timesteps"] for entry in entries):
        here = [entry for entry in entries if entry["timesteps"] == kind]
        steps = sorted({entry["steps"] for entry in here})
        table = Table("σ", *(f"S={count}" for count in steps), title=f"{label}; τ {kind}")
        for family in dict.fromkeys(entry["sigma"] for entry in here):
            texts = {
                entry["steps"]: _text(entry["metrics"][metric])
                for entry in here
                if entry["sigma"] == family
            }
            table.add_row(family, *(texts.get(count, "–") for count in steps))
        console.print(table)


def _text(found: dict[str, float]) -> str:
    value = f"{found['value']:.3g}"
    return f"{value} ± {(found['high'] - found['low']) / 2:.2g}" if "low" in found else value
