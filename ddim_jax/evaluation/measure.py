"""Metrics of the images of a grid, each cell measured once and kept beside its images.

DIR/ablations/cells/HASH/metrics-HASH-N.npz  statistics of a cell and what their intervals need
DIR/ablations/reference/features-HASH.npy    features of the reference

A difference from the baseline is computed from what is kept of both, so another baseline measures
nothing again. Several processes share the cells.
"""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from rich.console import Console

from ..diffusion.moments import kl_gaussian, propagate_gaussian, wasserstein2_gaussian
from ..features import MOST, Features, check_covariance, kept_features, pixels
from ..files import digest, file_sha256, read_arrays, whole
from ..metrics import (
    STATISTICS,
    Interval,
    Points,
    Spread,
    Statistics,
    difference,
    mean_interval,
    paired_differences,
)
from ..progress import progress
from .cells import Drawn
from .grid import Cell
from .source import Source

_SOURCES = sorted((Path(__file__).parent.parent / "metrics").glob("*.py"))
_LEAST = {"precision": 4, "density": 6, "coverage": 6}  # reference images: k + 1
NEIGHBOURS = 10_000  # reference images for all statistics but the Fréchet distance
_RECORDED = (
    "t", "s", "alpha_bar_t", "sigma", "noise", "x_0_correction", "epsilon_correction",
)  # fmt: skip
Numbers = dict[str, dict[str, float]]


class Reference(NamedTuple):
    """What each statistic is measured against, by its name, and a hash of all of it."""

    points: dict[str, Points]
    identity: str


def open_reference(
    images: np.ndarray | Statistics, features: Features, directory: Path
) -> Reference:
    """The features of the reference, in a fixed random order; those of a network are kept.

    Statistics alone are enough for the Fréchet distance, and for nothing else.
    """
    if isinstance(images, Statistics):
        return Reference({"frechet": Points(images)}, digest(*images, features.identity))
    images = images[np.random.default_rng(0).permutation(len(images))]
    if not features.kept:  # their features take far more memory than the images
        shape = len(images), int(np.prod(images.shape[1:]))
        check_covariance(shape, f"--features inception, or --against up to {MOST:,} images")
    content = digest(images)
    points = Points(kept_features(features, lambda: images, content, directory))
    names = measurable(len(images))
    few = points.shape[0] <= NEIGHBOURS
    part = points if few else Points(points.features[:NEIGHBOURS])
    against = {name: points if name == "frechet" else part for name in names}
    return Reference(against, digest(content, features.identity))


def measurable(count: int) -> list[str]:
    """The statistics that a reference of `count` images allows: a ball needs k neighbours in it."""
    if count < 2:
        raise ValueError(
            f"the reference has {count} image; measuring needs 2 or more: use --against."
        )
    return [name for name in STATISTICS if count >= _LEAST.get(name, 2)]


def few_images(count: int, dimensions: int) -> list[str]:
    """A warning where samples are fewer than dimensions."""
    if count >= dimensions:
        return []
    return [
        f"n = {count:,} is less than the {dimensions:,} dimensions of the features: most of a "
        "Fréchet distance is then bias, which falls with n; compare only equal n"
    ]


def measure_cells(
    cells: Sequence[Cell],
    drawn: Sequence[Drawn],
    reference: Reference,
    features: Features,
    console: Console,
) -> list[dict[str, Spread]]:
    """The statistics of every cell, in the first process; empty in the others."""
    name = f"metrics-{digest(reference.identity, *map(file_sha256, _SOURCES))[:32]}"
    files = [made.place / f"{name}-{made.num_images}.npz" for made in drawn]
    missing = [i for i, file in enumerate(files) if _read(file, reference) is None]
    if len(missing) < len(cells):
        console.print(f"{len(cells) - len(missing)} of {len(cells)} cells are already measured")
    # Shares by the cell's place in the grid: each process may find other cells missing.
    share = [i for i in missing if i % jax.process_count() == jax.process_index()]
    with progress(console, len(share), "cells") as show:
        for i in share:
            spreads = _measure(drawn[i], reference, features)
            with whole(files[i]) as partial:
                np.savez(partial, **_flat(spreads))
            show(f"measured {cells[i].name}")
    if jax.process_index():
        return []
    # If another process dies, JAX ends this one, too.
    while None in (found := [_read(file, reference) for file in files]):
        time.sleep(0.5)
    return [spreads for spreads in found if spreads]


def entry(source: Source, cell: Cell, drawn: Drawn, spreads: dict[str, Spread]) -> dict[str, Any]:
    """A cell in the report, without what depends on the baseline."""
    return {
        "id": cell.name,
        "sigma": cell.sigma,
        "timesteps": cell.timesteps,
        "steps": cell.steps,
        "solver": cell.solver,
        "metrics": exact_parts(source, cell)
        | {name: _as_dict(STATISTICS[name].interval(s)) for name, s in spreads.items()},
        "seconds": drawn.seconds,
        "network_calls": int(np.sum(cell.table.active)),
        "schedule": {name: np.asarray(getattr(cell.table, name)).tolist() for name in _RECORDED},
        "x0_rms": drawn.x_0_rms.tolist(),
    }


def change(drawn: Drawn, base: np.ndarray) -> dict[str, float]:
    """The mean RMS difference from the same images of the baseline."""
    images, parts = drawn.images(), max(1, len(base) // 1000)
    pairs = zip(np.array_split(images, parts), np.array_split(base, parts), strict=True)
    differences = [paired_differences(pixels(one), pixels(two)) for one, two in pairs]
    return _as_dict(mean_interval(np.concatenate(differences)))


def differences(spreads: dict[str, Spread], base: dict[str, Spread]) -> Numbers:
    """Each statistic less that of the baseline."""
    return {name: _as_dict(difference(spread, base[name])) for name, spread in spreads.items()}


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


def _measure(drawn: Drawn, reference: Reference, features: Features) -> dict[str, Spread]:
    content = digest(drawn.place.name, drawn.num_images)
    samples = Points(kept_features(features, drawn.images, content, drawn.place))
    return {
        name: STATISTICS[name].method(STATISTICS[name].function, points, samples)
        for name, points in reference.points.items()
    }


def _flat(spreads: dict[str, Spread]) -> dict[str, Any]:
    return {
        f"{name}.{part}": value
        for name, spread in spreads.items()
        for part, value in spread._asdict().items()
    }


def _read(file: Path, reference: Reference) -> dict[str, Spread] | None:
    """The statistics of a cell; None where the file is missing or damaged."""
    arrays = read_arrays(file) or {}
    keys = {name: [f"{name}.{part}" for part in Spread._fields] for name in reference.points}
    if not all(key in arrays for parts in keys.values() for key in parts):
        return None
    return {
        name: Spread(float(arrays[value]), arrays[deviations], arrays[shared])
        for name, (value, deviations, shared) in keys.items()
    }


def _as_dict(numbers: Interval) -> dict[str, float]:
    return {part: float(value) for part, value in numbers._asdict().items()}
