"""Measurements in turn. On a shared machine only ratios within one run are meaningful."""

import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np

SIZE = 2048  # of the matrices whose product is the yardstick


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
            values.append(side())
    return measured


def median_ratio(over: list[float], under: list[float]) -> float:
    """The median over the rounds of over ÷ under.

    >>> median_ratio([2.0, 9.0, 6.0], [1.0, 3.0, 3.0])
    2.0
    """
    return statistics.median(a / b for a, b in zip(over, under, strict=True))


def matmul_rate() -> float:
    """FLOP/s of float32 products of SIZE × SIZE matrices on all devices at once."""
    devices = jax.devices()
    keys = jax.random.split(jax.random.key(0), len(devices))
    a = jax.pmap(lambda key: jax.random.normal(key, (SIZE, SIZE)))(keys)
    product = jax.pmap(lambda a: jax.numpy.matmul(a, a, precision="highest"))
    (times,) = in_turn(5, lambda: seconds(lambda: product(a)))
    return 2 * SIZE**3 * len(devices) / float(np.min(times))
