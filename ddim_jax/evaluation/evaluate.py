"""`sample.py evaluate`: FID, KID, precision, recall, density, coverage of any two sets of images.

~/.cache/ddim_jax/features/features-HASH.npy    features of a set; a run's are beside its images
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, NamedTuple

import jax
import numpy as np
import tyro
from rich.console import Console

from ..devices import describe, full_batch
from ..features import FeatureFlags, Features, check_covariance, kept_features, load_features
from ..files import check_output, digest
from ..metrics import STATISTICS, Points, Statistics, save_statistics
from ..settings import IMAGES
from .cells import Drawing, draw_cells
from .flags import SamplerFlags
from .grid import concerns
from .image_sets import ImageSet, check_recipe, check_shapes, open_images
from .measure import measurable
from .tables import console_table, estimate


@dataclass(frozen=True)
class Config(FeatureFlags, SamplerFlags):
    """Compare images with a reference: distances with intervals, and everything they depend on."""

    run: tyro.conf.Positional[Path | None] = None
    """Images: a run, which draws them; FILE.npz; a folder; or a data set such as cifar10@test."""
    against: str = ""
    """Reference: FILE.npz of images or statistics (mu and sigma), a folder, or a data set."""
    num_images: Annotated[int, IMAGES] = 0
    """n, images to evaluate; 0: all of a set; 10,000 of a run, or 512 on a CPU."""
    save_statistics: Path | None = None
    """Write the mean and covariance of the images' features, and their origin, to FILE.npz."""

    def check(self) -> None:
        """Raise a ValueError if a field is out of range, or does not fit another field."""
        super().check()
        if not (self.against or self.save_statistics):
            raise ValueError("--against is empty; give a reference, or --save-statistics FILE.npz.")
        if self.save_statistics:
            if self.save_statistics.suffix != ".npz":
                raise ValueError(
                    f"--save-statistics is {self.save_statistics}; its name must end in .npz."
                )
            check_output(self.save_statistics, "--save-statistics")


class Samples(NamedTuple):
    """Images to evaluate, a hash of them, and where their features and a classifier lie."""

    name: str
    images: np.ndarray
    content: str
    place: Path
    directory: Path


def run(config: Config, console: Console) -> None:
    """Print the statistics of two sets of images, with intervals and the recipe."""
    config.check()
    reference = open_images(config.against, "--against") if config.against else None
    samples = _samples(config, console)
    images, count = samples.images, len(samples.images)
    features = load_features(config, samples.directory, images.shape[-1], console)
    if reference:
        check_recipe(reference, features.recipe)
        if config.features != "inception":
            check_shapes(ImageSet(samples.name, images), reference)
    if not features.kept:
        D = int(np.prod(images.shape[1:]))
        sizes = [len(reference.images)] if reference and reference.images is not None else []
        for size in [*sizes, *([D] if config.save_statistics else [])]:
            check_covariance((size, D), "--features inception, or fewer images in --against")
    kept = kept_features(features, lambda: images, samples.content, samples.place)
    points, about = Points(kept), f"{count:,} images, {samples.name}"
    if config.save_statistics and jax.process_index() == 0:
        origin = features.recipe | {"images": about}
        save_statistics(config.save_statistics, points.statistics, origin)
        console.print(f"{config.save_statistics}: statistics of {features.name} of {about}")
    if reference is None or jax.process_index():
        return
    target = _reference_points(reference, features)
    rows = [["", f"n={count:,}"]]
    names = ["frechet"] if reference.images is None else measurable(len(reference.images))
    for name in names:
        statistic = STATISTICS[name]
        spread = statistic.method(statistic.function, target, points)
        rows.append([features.label(name), estimate(statistic.interval(spread)._asdict())])
    console.print(console_table(f"{features.name}, 95 % intervals", rows))
    console.print(f"images: {about}")
    many = f"{target.shape[0]:,}" if target.shape[0] else "an unknown number of"
    console.print(f"reference: {reference.name}, {many} images")
    if reference.images is None and not reference.recipe:
        console.print(
            f"warning: {reference.name} does not say its features; that they are those of "
            f"{features.name} is assumed"
        )
    recipe = ", ".join(
        value if key == "features" else f"{key} {value}" for key, value in features.recipe.items()
    )
    console.print(f"features: {recipe}")


def _samples(config: Config, console: Console) -> Samples:
    if config.oracle is None and config.run and not (config.run / "checkpoints").exists():
        found = open_images(str(config.run), "IMAGES")
        if found.images is None:
            raise ValueError(f"{config.run} has statistics only; the images come first: give them.")
        order = np.random.default_rng(0).permutation(len(found.images))
        images = found.images[order[: config.num_images or None]]
        return Samples(found.name, images, digest(images), _cache(), _cache())
    source = config.open()
    cell, size = config.cell(source, console), full_batch(config.batch_size)
    for concern in concerns(source.alpha_bar, source.kind, [cell]):
        console.print(f"warning: {concern}")
    count = config.num_images or (512 if jax.default_backend() == "cpu" else 10_000)
    drawing = Drawing(source, config.seed, count, size, config.labels(source), config.guidance)
    clip = config.clip_index(cell, source)
    (drawn,), _ = draw_cells(drawing, [cell], [clip], console)
    how = f"{source.name}, step {source.step}" if source.step is not None else source.name
    how += f", {cell.name}, clip {config.clip}, seed {config.seed}, on {describe()}"
    content = digest(drawn.place.name, count)
    return Samples(how, drawn.images(), content, drawn.place, source.directory)


def _reference_points(reference: ImageSet, features: Features) -> Points:
    images = reference.images
    if images is None:
        assert isinstance(reference.statistics, Statistics)
        return Points(reference.statistics)
    return Points(kept_features(features, lambda: images, digest(images), _cache()))


def _cache() -> Path:
    caches = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    return caches / "ddim_jax" / "features"
