"""Distances between sets of images, as functions of their features, and intervals for them."""

from collections.abc import Callable
from typing import Any, NamedTuple

from .distances import coverage, density, kernel_distance, paired_differences, precision, recall
from .frechet import frechet_distance, frechet_of_statistics
from .intervals import (
    Interval,
    Spread,
    bootstrap,
    bootstrap_difference,
    difference,
    half_samples,
    interval,
    jackknife,
    mean_interval,
)
from .points import Points, Statistics
from .statistics import load_recipe, load_statistics, save_statistics


class Statistic(NamedTuple):
    """A function (reference, samples) of features, the method of its interval, and its label."""

    label: str
    function: Callable[..., Any]
    method: Callable[..., Spread]
    larger_is_better: bool = False
    is_share: bool = False

    def interval(self, spread: Spread) -> Interval:
        """The 95 % interval, of which nothing is outside [0, 1] if the statistic is a share."""
        whole = interval(spread)
        if not self.is_share:
            return whole
        return whole._replace(low=max(whole.low, 0.0), high=min(whole.high, 1.0))


STATISTICS: dict[str, Statistic] = {
    "frechet": Statistic("Fréchet distance", frechet_distance, jackknife),
    "kernel": Statistic("kernel distance", kernel_distance, jackknife),
    "precision": Statistic("precision (k=3)", precision, jackknife, True, True),
    "recall": Statistic("recall (k=3)", recall, half_samples, True, True),
    "density": Statistic("density (k=5)", density, jackknife, True),
    "coverage": Statistic("coverage (k=5)", coverage, half_samples, True, True),
}

__all__ = [
    "STATISTICS",
    "Statistic",
    "Statistics",
    "Points",
    "Interval",
    "Spread",
    "bootstrap",
    "bootstrap_difference",
    "coverage",
    "density",
    "difference",
    "frechet_distance",
    "frechet_of_statistics",
    "half_samples",
    "interval",
    "jackknife",
    "kernel_distance",
    "load_recipe",
    "load_statistics",
    "mean_interval",
    "paired_differences",
    "precision",
    "recall",
    "save_statistics",
]
