"""The Fréchet distance of a run's samples to its training images, while it trains and at its end.

The images are always 0 … n−1 of the run's seed, so a value depends on the weights alone: a run that
was stopped and resumed reports the same ones. Compare only values of equal n and features.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from rich.console import Console

from ..config import Config, TrainConfig
from ..data import Dataset
from ..features import FeatureFlags, Features, check_covariance, kept_features, load_features
from ..files import digest
from ..metrics import Points, frechet_distance
from .halt import Stop, Stopped, refuse_to_go_on
from .journal import Metrics
from .preview import Draw, sampler_name

_CHUNK = 1000  # images whose features are computed between two looks at a signal; on a CPU:
_CPU_CHUNK = 32


class Quality(NamedTuple):
    """How a run's samples are judged."""

    name: str  # in metrics.jsonl and in checkpoints
    label: str  # with all that the value depends on
    score: Callable[..., float]  # (uint8 images, stop) → the distance, or Stopped
    measure: Callable[[Any, Stop], float]  # (params, stop) → the distance of fresh samples


def make_quality(config: Config, dataset: Dataset, draw: Draw) -> Quality | None:
    """What the flags --train.evaluate-… ask for; None without --train.evaluate-images.

    With --train.evaluate-every the features of the training images are computed here.
    """
    settings, count = config.train, config.train.evaluate_images
    if not count:
        return None
    if min(count, dataset.size) < 2:
        raise ValueError(
            f"--train.evaluate-images is {count} and {dataset.name} has {dataset.size} images; a "
            "Fréchet distance needs 2 or more of each, or give 0 for none."
        )
    out, N, D = Path(config.out), dataset.size, int(np.prod(dataset.shape))
    if settings.evaluate_features == "pixels":
        check_covariance(
            (N, D), "--train.evaluate-features inception, or --train.evaluate-images 0"
        )
    features = load_features(feature_flags(settings), out, dataset.shape[-1], Console(quiet=True))

    @functools.cache
    def reference() -> Points:
        images = dataset.read(np.arange(N))
        place = out / "ablations" / "reference"
        return Points(kept_features(features, lambda: images, digest(images), place))

    if settings.evaluate_every:
        reference()

    def score(images: np.ndarray, stop: Stop | None = None) -> float:
        parts = list(_features_of(images, features, stop))
        return float(frechet_distance(reference(), np.concatenate(parts)))

    def measure(params: Any, stop: Stop) -> float:
        return score(draw(params, count, stop), stop)

    what = f"{features.label('frechet')}, {features.name}, n={count:,} against {N:,} train images"
    label = f"{what}, {sampler_name(config)}"
    return Quality(settings.frechet_name(), label, score, measure)


def judge(
    validate: Callable[..., float] | None,
    quality: Quality | None,
    stop: Stop,
    params: Any,
    saved: bool,
    due: bool,
) -> Metrics:
    """The validation loss of weights that are saved; their Fréchet distance if it is due.

    After a signal, what is known so far.
    """
    judged: Metrics = {}
    with contextlib.suppress(Stopped):
        if validate and saved:
            judged["validation_loss"] = validate(params, stop)
        if quality and due:
            judged[quality.name] = quality.measure(params, stop)
    return judged


def described(config: Config, quality: Quality | None) -> list[str]:
    """What will be measured during training, in a line."""
    every = config.train.evaluate_every
    return [f"every {every:,} steps: {quality.label}"] if quality and every else []


def feature_flags(settings: TrainConfig) -> FeatureFlags:
    """The flags of sample.py that the flags of train.py stand for."""
    inception = settings.evaluate_inception
    return FeatureFlags(
        features=settings.evaluate_features,
        family=settings.evaluate_family,
        inception=Path(inception) if inception else None,
        inception_sha256=settings.evaluate_inception_sha256,
    )


def _features_of(images: np.ndarray, features: Features, stop: Stop | None) -> Iterator[np.ndarray]:
    size = _CPU_CHUNK if jax.default_backend() == "cpu" and features.kept else _CHUNK
    for first in range(0, len(images), size):
        refuse_to_go_on(stop)
        yield features.extract(images[first : first + size])
