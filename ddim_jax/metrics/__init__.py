"""Distances between sets of images, as functions of their features, and intervals for them."""

from .distances import (
    STATISTICS,
    Statistic,
    coverage,
    density,
    frechet_distance,
    kernel_distance,
    paired_differences,
    precision,
    recall,
)
from .intervals import Interval, bootstrap, bootstrap_difference, mean_interval

__all__ = [
    "STATISTICS",
    "Statistic",
    "Interval",
    "bootstrap",
    "bootstrap_difference",
    "coverage",
    "density",
    "frechet_distance",
    "kernel_distance",
    "mean_interval",
    "paired_differences",
    "precision",
    "recall",
]
