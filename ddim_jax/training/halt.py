"""Stopping a run early: on a signal, or when its loss has exploded."""

import contextlib
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from ..config import TrainConfig

Stop = threading.Event


class Stopped(Exception):
    """Work was left undone because the run is to stop."""


@contextlib.contextmanager
def stop_signals() -> Iterator[threading.Event]:
    """An event that Ctrl-C or SIGTERM sets; a second signal has its usual effect."""
    stop = threading.Event()
    before: dict[int, Any] = {}

    def handle(number: int, _: Any) -> None:
        stop.set()
        signal.signal(number, before[number])

    try:
        # Python delivers signals to no other thread.
        if threading.current_thread() is threading.main_thread():
            for asked in (signal.SIGINT, signal.SIGTERM):
                before[asked] = signal.signal(asked, handle)
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def any_process(stop: threading.Event, now: bool) -> bool:
    """Whether to stop after this step; all processes agree on the step.

    Several processes communicate only if `now`, when they wait for the devices anyway.
    """
    if jax.process_count() == 1:
        return stop.is_set()
    return now and bool(multihost_utils.process_allgather(np.array(stop.is_set())).any())


def awaited(result: Any, stop: Stop | None) -> Any:
    """A result that the devices are computing, once it is there; or Stopped, as soon as possible.

    Several processes look for a signal only when it is there: they must all ask at the same time.
    """
    while stop is not None and jax.process_count() == 1 and not stop.is_set():
        if all(leaf.is_ready() for leaf in jax.tree.leaves(result)):
            break
        time.sleep(0.005)
    refuse_to_go_on(stop)
    return result


def refuse_to_go_on(stop: Stop | None) -> None:
    """Raise Stopped if any process is to stop; None is never set, and no other process is asked."""
    if stop is not None and any_process(stop, True):
        raise Stopped


def exploded(window: Sequence[dict[str, Any]], last: int, settings: TrainConfig) -> str | None:
    """What is wrong at the first step with a non-finite value or too large a loss, or None.

    >>> exploded([{"loss": 1.0}, {"loss": 200.0}], 8, TrainConfig())
    'the loss is 200 at step 8, above --train.max-loss (100)'
    """
    for step, metrics in enumerate(window, last - len(window) + 1):
        for name, value in metrics.items():
            if not np.isfinite(value) or (name == "loss" and value > settings.max_loss):
                limit = f", above --train.max-loss ({settings.max_loss:g})" * bool(
                    np.isfinite(value)
                )
                return f"the {name.replace('_', ' ')} is {value:g} at step {step}{limit}"
    return None
