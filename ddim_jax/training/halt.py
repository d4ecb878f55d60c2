"""Stopping a run early: on a signal, or when its loss has exploded."""

import contextlib
import signal
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from ..config import TrainConfig


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
