"""Sets of features, with the work that several statistics share done once for each set."""

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

Numbers = ArrayLike | Sequence
_KEPT = 2**27  # squared distances that are kept between two sets: 1 GiB


class Statistics(NamedTuple):
    """The Gaussian that a Fréchet distance fits to features; the covariance has divisor N − 1."""

    mean: np.ndarray
    covariance: np.ndarray
    count: int  # type: ignore[assignment]  # it hides tuple.count


class Axes(NamedTuple):
    """The variances of a covariance, and the eigenvectors (D, r) that they belong to."""

    variances: np.ndarray
    vectors: np.ndarray


class Points:
    """Features (N, D) in float64, or only their `Statistics`.

    Everywhere in this package it may stand for the features. What a statistic needs of it is kept:
    measure many samples against one `Points(reference)`.

    >>> Points([[0.0], [2.0]]).statistics.covariance.tolist()
    [[2.0]]
    """

    def __init__(self, features: Numbers | Statistics) -> None:
        """Take the features as they are, without a copy if they are float64."""
        self._kept: dict[str, Any] = {}
        # By the other set itself: an id would be that of another one once the first is gone.
        self._squares: WeakKeyDictionary[Points, np.ndarray] = WeakKeyDictionary()
        if isinstance(features, Statistics):
            self.statistics = features  # takes the place of the cached property
        else:
            self._kept["features"] = np.asarray(features, np.float64)

    @property
    def features(self) -> np.ndarray:
        """The features; a ValueError if only their statistics are known."""
        if "features" not in self._kept:
            raise ValueError(
                "only a mean and a covariance are given, enough for the Fréchet distance alone; "
                "give the features or the images for every other statistic."
            )
        return self._kept["features"]

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, D), also where only the statistics are known."""
        if "features" in self._kept:
            return self.features.shape
        return (self.statistics.count, *np.shape(self.statistics.mean))

    @property
    def mean(self) -> np.ndarray:
        """The mean (D,)."""
        return self.features.mean(0) if "features" in self._kept else self.statistics.mean

    @cached_property
    def statistics(self) -> Statistics:
        """Mean, covariance and count."""
        x = self.features
        return Statistics(x.mean(0), np.atleast_2d(np.cov(x, rowvar=False)), len(x))

    @cached_property
    def axes(self) -> Axes:
        """The eigenvectors of the covariance; where N ≤ D, those of the smaller Gram matrix."""
        N, D = self.shape
        if "features" not in self._kept or N > D:
            variances, vectors = np.linalg.eigh(self.statistics.covariance)
            return Axes(np.clip(variances, 0, None), vectors)
        centred = self.features - self.features.mean(0)
        variances, combinations = np.linalg.eigh(centred @ centred.T / (N - 1))
        real = variances > 1e-13 * max(variances.max(), 1e-300)
        vectors = centred.T @ (combinations[:, real] / np.sqrt((N - 1) * variances[real]))
        return Axes(variances[real], vectors)

    @cached_property
    def cubic_sums(self) -> np.ndarray:
        """Σ_{j≠i} (x_i·x_j/D + 1)³ for every i."""
        diagonal = ((self.features**2).mean(1) + 1) ** 3
        return sum(kernel.sum(0) for _, kernel in cubic(self, self)) - diagonal

    def nearest(self, k: int, size: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Squared distances of each point's nearest others, ascending, and their indices.

        There are `count` of them, or more; `size` is the number of points in a set that needs k.
        """
        if not 1 <= k < size:
            raise ValueError(
                f"k is {k} for {size} points (half of the set in a bootstrap); give 1 ≤ k < {size}."
            )
        count = min(max(count, 16), len(self.features) - 1)
        if "nearest" not in self._kept or self._kept["nearest"][0].shape[1] < count:
            self._kept["nearest"] = self._nearest(count)
        return self._kept["nearest"]

    def _nearest(self, count: int) -> tuple[np.ndarray, np.ndarray]:
        n = len(self.features)
        near, index = np.empty((n, count)), np.empty((n, count), int)
        for rows, squares in self.squares_to(self):
            squares = squares.copy()
            np.fill_diagonal(squares[:, rows], np.inf)  # a point is not its own neighbour
            nearest = np.argpartition(squares, count - 1, axis=1)[:, :count]
            order = np.take_along_axis(squares, nearest, 1).argsort(1)
            index[rows] = np.take_along_axis(nearest, order, 1)
            near[rows] = np.take_along_axis(squares, index[rows], 1)
        return near * (1 + 1e-9), index  # a point on the sphere is inside, despite rounding

    def squares_to(self, other: "Points") -> Iterator[tuple[slice, np.ndarray]]:
        """Blocks of rows of ‖x_i − y_j‖², which are not to be written to; y keeps them if few."""
        a, b = self.features, other.features
        blocks = list(_blocks(len(a), len(b)))
        if len(a) * len(b) > _KEPT:
            return _squared_distances(a, b, blocks)
        if self not in other._squares:
            kept = np.empty((len(a), len(b)))
            for rows, squares in _squared_distances(a, b, blocks):
                kept[rows] = squares
            other._squares[self] = kept
        return ((rows, other._squares[self][rows]) for rows in blocks)


def as_points(a: Any, b: Any) -> tuple[Points, Points]:
    """Both sets as Points, if they are features of one kind, two or more of each."""
    a, b = (x if isinstance(x, Points) else Points(x) for x in (a, b))
    shaped = (len(a.shape), len(b.shape), a.shape[1:]) == (2, 2, b.shape[1:])
    # The count of a statistics file may be unknown, 0.
    if not shaped or any("features" in x._kept and x.shape[0] < 2 for x in (a, b)):
        raise ValueError(
            f"features have shapes {a.shape} and {b.shape}; give (M, D) and (N, D), M and N ≥ 2."
        )
    return a, b


def cubic(a: Points, b: Points) -> Iterator[tuple[slice, np.ndarray]]:
    """Blocks of rows of (a_i·b_j/D + 1)³."""
    D = a.features.shape[1]
    lengths_a, lengths_b = ((points.features**2).sum(1) for points in (a, b))
    for rows, squares in a.squares_to(b):
        k = (lengths_a[rows, None] + lengths_b - squares) / (2 * D) + 1
        yield rows, k * k * k


def _squared_distances(
    a: np.ndarray, b: np.ndarray, blocks: Sequence[slice]
) -> Iterator[tuple[slice, np.ndarray]]:
    a, b = a - a.mean(0), b - a.mean(0)  # else features far from 0 lose digits
    squares_a, squares_b = (a**2).sum(1), (b**2).sum(1)
    times_b = _product_with(b)
    for rows in blocks:
        scale = squares_a[rows, None] + squares_b
        squares = scale - 2 * times_b(a[rows])
        yield rows, np.where(squares < 1e-12 * scale, 0, squares)  # equal points are at exactly 0


def _product_with(b: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """The function a ↦ a @ b.T in float64, on a GPU if there is one."""
    if jax.default_backend() != "gpu":
        return lambda a: a @ b.T
    with jax.enable_x64(True):
        there = jnp.asarray(b)

    def product(a: np.ndarray) -> np.ndarray:
        with jax.enable_x64(True):
            return np.asarray(jnp.matmul(jnp.asarray(a), there.T, precision="highest"))

    return product


def _blocks(rows: int, columns: int) -> Iterator[slice]:
    """Slices of 8 MiB of float64, so that 50,000 × 50,000 numbers are never in memory at once."""
    step = max(1, 2**20 // columns)
    return (slice(start, min(start + step, rows)) for start in range(0, rows, step))
