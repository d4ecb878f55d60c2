"""Measurements in turn. Only ratios within one run mean anything on a shared machine."""

import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np

SIZE = 2048  # of the matrix products that a machine is measured by


class Row(NamedTuple):
    """One line of the table; `peer` is what diffusers did, `ratio` how many times better we are."""

    measure: str
    value: float
    unit: str
    peer: float | None = None
    ratio: float | None = None


def seconds(call: Callable[[], object]) -> float:
    """Seconds until the result of a call is there."""
    start = time.perf_counter()
    jax.block_until_ready(call())
    return time.perf_counter() - start


def in_turn(rounds: int, *sides: Callable[[], float]) -> list[list[float]]:
    """What each side measured, round by round; each is called once before, to compile and to fill its caches."""
    for side in sides:
        side()
    found: list[list[float]] = [[] for _ in sides]
    for _ in range(rounds):
        for side, values in zip(sides, found, strict=True):
            time.sleep(0.3)  # until the threads of the other side sleep
            values.append(side())
    return found


def median_ratio(over: list[float], under: list[float]) -> float:
    """The median of the ratios of each round.

    >>> median_ratio([2.0, 9.0, 6.0], [1.0, 3.0, 3.0])
    2.0
    """
    return statistics.median(a / b for a, b in zip(over, under, strict=True))


def matmul_rate() -> float:
    """FLOP/s of float32 matrix products SIZE³, on all devices at once: what this machine can be asked for."""
    size, devices = SIZE, jax.devices()
    a = jax.pmap(lambda key: jax.random.normal(key, (size, size)))(
        jax.random.split(jax.random.key(0), len(devices))
    )
    product = jax.pmap(lambda a: jax.numpy.matmul(a, a, precision="highest"))
    (times,) = in_turn(5, lambda: seconds(lambda: product(a)))
    return 2 * size**3 * len(devices) / float(np.min(times))
