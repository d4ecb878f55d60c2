"""Measurements in turn. On a shared machine only ratios within one run are meaningful."""

import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np

SIZE = 2048  # of the matrices whose product is the yardstick; on accelerators four times as much
LEAST = 0.5  # seconds that a measurement lasts at least


class Row(NamedTuple):
    """One line of a table; `peer` is diffusers' value, `ratio` how many times better ours is."""

    measure: str
    value: float
    unit: str
    peer: float | None = None
    ratio: float | None = None


def seconds(call: Callable[[], object]) -> float:
    """Seconds until the result of a call is ready."""
    start = time.perf_counter()
    jax.block_until_ready(call())
    return time.perf_counter() - start


def in_turn(rounds: int, *sides: Callable[[], float]) -> list[list[float]]:
    """The measurements of each side, round by round, after one call that compiles and warms up."""
    for side in sides:
        side()
    measured: list[list[float]] = [[] for _ in sides]
    for _ in range(rounds):
        for side, values in zip(sides, measured, strict=True):
            time.sleep(0.3)  # until the threads of the other side sleep
            values.append(_warm(side))
    return measured


def _warm(side: Callable[[], float]) -> float:
    """The mean of calls that last LEAST together, after one that is not counted.

    That one finds caches and threads cold, and in a virtual machine its new pages cost several
    times as much after the other side gave its own back.
    """
    side()
    start, values = time.perf_counter(), list[float]()
    while not values or time.perf_counter() - start < LEAST:
        values.append(side())
    return statistics.fmean(values)


def median_ratio(over: list[float], under: list[float]) -> float:
    """The median over the rounds of over ÷ under.

    >>> median_ratio([2.0, 9.0, 6.0], [1.0, 3.0, 3.0])
    2.0
    """
    return statistics.median(a / b for a, b in zip(over, under, strict=True))


def matmul_rate(dtype: str = "float32") -> float:
    """FLOP/s of products of large square matrices on all devices at once: the peak within reach."""
    devices = jax.devices()
    size = SIZE * (1 if devices[0].platform == "cpu" else 4)
    keys = jax.random.split(jax.random.key(0), len(devices))
    a = jax.pmap(lambda key: jax.random.normal(key, (size, size), dtype))(keys)
    precision = "highest" if dtype == "float32" else "default"
    product = jax.pmap(lambda a: jax.numpy.matmul(a, a, precision=precision))
    (times,) = in_turn(5, lambda: seconds(lambda: product(a)))
    return 2 * size**3 * len(devices) / float(np.min(times))
