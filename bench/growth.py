"""Time and memory of what grows with n: metrics, grids and their pages, checkpoints, folders."""

import os
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from json import dumps
from pathlib import Path
from typing import Any

import jax
import numpy as np
from PIL import Image
from rich.console import Console

from ddim_jax.config import DataConfig, presets
from ddim_jax.data import load_dataset
from ddim_jax.devices import make_mesh, setup
from ddim_jax.evaluation import ablate
from ddim_jax.evaluation.measure import NEIGHBOURS
from ddim_jax.metrics import STATISTICS, Points
from ddim_jax.training import load_run
from ddim_jax.training.prepare import device_batches

from .machine import in_child, peak_bytes
from .rounds import Row
from .start import save_run

_HERE = "bench.growth"  # __name__ is __main__ in a process of its own
DIMENSIONS = 2048  # of Inception's features
Work = dict[str, float]  # seconds of each part, and sizes in MiB


def bench_growth(sizes: tuple[int, ...]) -> list[Row]:
    """Every work at every n, each in a process of its own."""
    rows = []
    cases = [(work, str(n)) for work in ("distances", "grid", "folder") for n in sizes]
    for work, n in [("nothing", "0"), *cases, *(("checkpoint", name) for name in presets())]:
        for name, value in in_child(_HERE, work, n).items():
            rows.append(Row(name, value, "MiB" if "MiB" in name else "s"))
    return [row._replace(measure=row.measure.replace(", MiB", "")) for row in rows]


def nothing(_: int, folder: Path) -> Work:
    """What every other process needs, too."""
    return {}


def distances(n: int, folder: Path) -> Work:
    """Every statistic with its interval as an ablation takes it, in this order, of features.

    What several statistics share is in the time of the first of them.
    """
    rng = np.random.default_rng(0)
    # Factors, as real features have, rather than noise without structure.
    mixing = rng.standard_normal((64, DIMENSIONS))
    real, fake = (
        Points(rng.standard_normal((n, 64)) @ mixing + 0.1 * rng.standard_normal((n, DIMENSIONS)))
        for _ in range(2)
    )
    part = real if n <= NEIGHBOURS else Points(real.features[:NEIGHBOURS])
    found = {}
    for name, statistic in STATISTICS.items():
        reference = real if name == "frechet" else part
        start = time.perf_counter()
        statistic.interval(statistic.method(statistic.function, reference, fake))
        label = f"{statistic.label}, {n:,} × {DIMENSIONS:,} against {reference.shape[0]:,}"
        found[label] = time.perf_counter() - start
    return found


def grid(n: int, folder: Path) -> Work:
    """An ablation of an exact oracle of about n/500 cells; then again: only the page is made."""
    os.chdir(folder)
    count = max(n // 2000, 1)
    steps = (5, 10, 20, 50)
    sigma = tuple(f"eta={i / count:.3g}" for i in range(count))
    config = ablate.Config(oracle="gaussian", sigma=sigma, steps=steps, num_images=64)
    times = []
    for _ in range(2):
        start = time.perf_counter()
        ablate.run(config, Console(file=sys.stderr, quiet=True))
        times.append(time.perf_counter() - start)
    (page,) = folder.rglob("index.html")
    name = f"{len(sigma) * len(steps)} cells of 64 images"
    return {
        f"a grid, {name}": times[0],
        f"the page of a grid, {name}": times[1],
        f"index.html, {name}, MiB": page.stat().st_size / 2**20,
    }


def folder(n: int, folder: Path) -> Work:
    """A folder of PNG files of 32×32, until the first batch: new, and again."""
    os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
    images = folder / "images"
    images.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (64, 32, 32, 3), np.uint8)
    for i in range(n):
        Image.fromarray(pixels[i % 64]).save(images / f"{i:06d}.png", compress_level=1)
    preset = presets()["emoji"]
    config = replace(preset, data=DataConfig(f"folder:{images}"))
    found = {}
    for again in ("", ", the second time"):
        start = time.perf_counter()
        dataset = load_dataset(config.data, config.model.image_shape())
        mesh = make_mesh(config.train.batch_size)
        jax.block_until_ready(next(device_batches(config, dataset, mesh, 0)))
        label = f"a folder of {n:,} images until the first batch{again}"
        found[label] = time.perf_counter() - start
    return found


def saved(name: str, folder: Path) -> Work:
    """A run of a preset, in another process than the one that reads it."""
    name, _, place = name.partition(" ")
    save_run(presets()[name], Path(place))
    return {}


def checkpoint(name: str, folder: Path) -> Work:
    """Reading the averaged weights of a preset's run."""
    in_child(_HERE, "saved", f"{name} {folder}")
    start = time.perf_counter()
    params = jax.block_until_ready(load_run(folder)[1])
    seconds = time.perf_counter() - start
    size = sum(leaf.size for leaf in jax.tree.leaves(params))
    return {f"reading the checkpoint of a network of {size:,} numbers": seconds}


WORKS: dict[str, Callable[[Any, Path], Work]] = {
    work.__name__: work for work in (nothing, distances, grid, folder, saved, checkpoint)
}


def main(work: str, n: str) -> None:
    """Do one work, and print its values and the peak of the process."""
    setup()
    with tempfile.TemporaryDirectory() as place:
        found = WORKS[work](int(n) if n.isdigit() else n, Path(place))
        os.chdir("/")
    label = "a process that does nothing" if work == "nothing" else f"{work}, {n}"
    found[f"peak memory of {label}, MiB"] = peak_bytes() / 2**20
    print(dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
