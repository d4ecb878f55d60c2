"""A run directory: one training at a time, and the small files that it begins with.

RUN/.lock      held, by the operating system, as long as the process lives
RUN/.holder    which process that is
"""

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import jax
from filelock import FileLock, Timeout

from ..config import Config, save_config
from ..data import Dataset
from ..data.dataset import save_record
from ..files import make_directory
from .journal import keep_metrics


@contextlib.contextmanager
def only_one(run: Path) -> Iterator[None]:
    """Hold a run directory, which is made; a ValueError names the process that holds it already.

    Among the processes of a job the first one does this. What a killed process leaves behind does
    not count.
    """
    if jax.process_index():
        yield
        return
    make_directory(run, run)
    holder = run / ".holder"
    lock = FileLock(run / ".lock", timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        raise ValueError(
            f"{run} is in use by {_read(holder)}; wait for its end, stop it, or choose another "
            "--out."
        ) from error
    except OSError as error:
        raise ValueError(f"{run} cannot be locked ({error.strerror}); choose another --out.") from (
            error
        )
    try:
        with contextlib.suppress(OSError):  # a full disk: the lock holds without a name
            holder.write_text(f"process {os.getpid()} on {socket.gethostname()}", "utf-8")
        yield
    finally:
        for file in (holder, run / ".lock"):
            with contextlib.suppress(OSError):  # Windows keeps open files
                file.unlink()
        lock.release()


def open_directory(config: Config, dataset: Dataset, start: int) -> None:
    """Make the run directory, write the configuration, and drop what will be logged again."""
    out = Path(config.out)
    if jax.process_index():
        return
    try:
        (out / "checkpoints").mkdir(parents=True, exist_ok=True)
        save_config(config, out / "config.json")
        save_record(out, dataset)
        keep_metrics(out / "metrics.jsonl", start)
    except OSError as error:
        problem = f"{error.filename} cannot be written ({error.strerror})"
        raise ValueError(f"--out is {out}, and {problem}; choose another place.") from error


def _read(holder: Path) -> str:
    try:
        return holder.read_text("utf-8")[:200] or "another process"
    except (OSError, ValueError):
        return "another process"
