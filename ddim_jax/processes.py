"""Several processes of one job: the same settings in all, and an end for all if one fails.

They exchange short texts through the key-value store of JAX's coordination service, which works
whatever the devices and the main threads are waiting for.
"""

import contextlib
import dataclasses
import itertools
import json
import os
import sys
import threading
import time
from typing import Any, NoReturn

from jax._src import distributed  # the store has no public name

from .files import to_json
from .settings import flag

_FAILED = "ddim_jax/failed"
_POLL = 1.0  # seconds between two looks at it
_PATIENCE = 600_000  # milliseconds for the first process to say its settings
_LOCAL = ("data.data-dir", "data.archive")  # flags that may differ: disks of a machine

_calls = itertools.count()
_ending = threading.Event()


def watch() -> None:
    """End this process, with a sentence, as soon as another one has failed."""

    def look() -> None:
        while not _ending.wait(_POLL):
            try:
                reason = _client().key_value_try_get(_FAILED)
            except Exception as error:  # as the service raises it
                if "NOT_FOUND" in str(error):
                    continue
                return  # the service has ended, in an orderly way
            if not _ending.is_set():
                _ending.set()
                print(f"error: {reason}", file=sys.stderr)
                if _index() == 0:  # the store ends with it
                    _let_all_look()
                _end(1)

    threading.Thread(target=look, daemon=True).start()


def fail(reason: str, status: int) -> None:
    """If there are other processes, let them end, and end this one without a barrier."""
    if not several():
        return
    _ending.set()
    with contextlib.suppress(Exception):  # another one has failed before, or all are gone
        _client().key_value_set(_FAILED, f"process {_index()} {reason}")
        _let_all_look()  # else some would report a lost connection
    _end(status)


def stand_aside() -> None:
    """If this process is ending since another one failed, say nothing of what follows from that."""
    if _ending.is_set():
        threading.Event().wait()


def agree(settings: Any) -> None:
    """Raise a ValueError unless all processes were started with the same settings."""
    if not several():
        return
    key = f"ddim_jax/settings/{next(_calls)}"
    command = {"command": type(settings).__module__.split(".")[-1]}
    own = command | _by_flag(dataclasses.asdict(settings))
    if _index() == 0:
        _client().key_value_set(key, json.dumps(own))
        return
    first = json.loads(_client().blocking_key_value_get(key, _PATIENCE))
    for name in {**first, **own}:
        there, here = first.get(name), own.get(name)
        if there != here and name not in _LOCAL:
            raise ValueError(
                f"{name if name in command else '--' + name} is {here} in process {_index()} and "
                f"{there} in process 0; start all with the same command line."
            )


def several() -> bool:
    """Whether this process is connected to others."""
    return _client() is not None


def _end(status: int) -> NoReturn:
    """End without the barrier at which JAX waits for the others."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _let_all_look() -> None:
    time.sleep(3 * _POLL)


def _index() -> int:
    return distributed.global_state.process_id


def _client() -> Any:
    return distributed.global_state.client


def _by_flag(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            found |= _by_flag(value, f"{prefix}{flag(name)}.")
        else:
            found[prefix + flag(name)] = json.loads(to_json(value))
    return found
