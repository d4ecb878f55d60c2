"""Metrics of the images of a grid: distances with intervals, and paired differences."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from ..diffusion.moments import kl_gaussian, propagate_gaussian, wasserstein2_gaussian
from ..files import digest, whole
from ..metrics import (
    STATISTICS,
    Interval,
    bootstrap,
    bootstrap_difference,
    mean_interval,
    paired_differences,
)
from .cells import Drawn
from .features import Features, pixels
from .flags import shown
from .grid import Cell
from .source import Source

_NEIGHBOURS = 10_000  # reference images for all statistics but the Fréchet distance
Numbers = dict[str, dict[str, float]]


def measure_cells(
    source: Source,
    cells: Sequence[Cell],
    drawn: Sequence[Drawn],
    baseline: str,
    features: Features,
    features_hash: str,
    console: Console,
) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """The report's entry for every cell, and how many reference images each statistic used."""
    images = source.reference().images
    reference = _reference_features(source, images, features, features_hash)
    base = drawn[[cell.name for cell in cells].index(baseline)].images
    base_features = features(base)
    entries = []
    pairs = zip(cells, drawn, strict=True)
    for cell, made in shown(pairs, len(cells), "measuring", console):
        samples = base_features if cell.name == baseline else features(made.images)
        metrics = {
            name: bootstrap(s.function, _part(name, reference), samples)
            for name, s in STATISTICS.items()
        }
        metrics["change"] = mean_interval(paired_differences(pixels(made.images), pixels(base)))
        entry = {
            "id": cell.name,
            "sigma": cell.sigma,
            "timesteps": cell.timesteps,
            "steps": cell.steps,
            "metrics": exact_parts(source, cell) | _numbers(metrics),
            "seconds": made.seconds,
            "network_calls": int(np.sum(cell.table.active)),
            "schedule": {
                name: np.asarray(getattr(cell.table, name)).tolist()
                for name in ("t", "s", "sigma", "noise")
            },
            "x0_rms": made.x_0_rms.tolist(),
        }
        if cell.name != baseline:
            entry["difference"] = _numbers({
                name: bootstrap_difference(
                    s.function, _part(name, reference), samples, base_features
                )
                for name, s in STATISTICS.items()
            })  # fmt: skip
        entries.append(entry)
    return entries, {name: len(_part(name, reference)) for name in STATISTICS}


def exact_labels(source: Source) -> dict[str, str]:
    """The labels of the results of `exact_parts`."""
    if source.moments is None:
        return {}
    return {
        "w2": "W2², exact",
        "w2_mean": "W2², mean part, exact",
        "w2_covariance": "W2², covariance part, exact",
        "kl": "KL in nats, exact",
    }


def exact_parts(source: Source, cell: Cell) -> Numbers:
    """For a Gaussian oracle: the exact W2² and KL of the sampler's output to the data."""
    if source.moments is None:
        return {}
    output = propagate_gaussian(*source.moments, source.alpha_bar, cell.table)
    mean, covariance = wasserstein2_gaussian(*output, *source.moments)
    values = (mean + covariance, mean, covariance, kl_gaussian(*output, *source.moments))
    return {
        name: {"value": value} for name, value in zip(exact_labels(source), values, strict=True)
    }


def _reference_features(
    source: Source, images: np.ndarray, features: Features, features_hash: str
) -> np.ndarray:
    """Features of the reference, in a fixed random order; those of a network are cached."""
    order = np.random.default_rng(0).permutation(len(images))
    if features is pixels:
        return features(images[order])
    name = f"{digest(images, features_hash)[:32]}.npy"
    file: Path = source.directory / "ablations" / "reference" / name
    if not file.exists():
        with whole(file) as partial:
            np.save(partial, features(images[order]))
    return np.load(file)


def _part(name: str, reference: np.ndarray) -> np.ndarray:
    return reference if name == "frechet" else reference[:_NEIGHBOURS]


def _numbers(intervals: dict[str, Interval]) -> Numbers:
    return {
        name: {part: float(value) for part, value in interval._asdict().items()}
        for name, interval in intervals.items()
    }
