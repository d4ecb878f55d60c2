"""A run directory: one training at a time, what may resume there, and its small files.

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

from ..config import Config, DataConfig, save_config
from ..data import Dataset
from ..data.dataset import save_record
from ..files import make_directory
from ..settings import differences
from .checkpoint import latest_step, load_run_config
from .journal import keep_metrics

_AFTER_THE_END = ("train.steps", "train.decay", "train.learning-rate", "train.warmup-steps")


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


def resumable_step(config: Config, out: Path) -> int | None:
    """The step to resume from, or None for a new run."""
    if latest_step(out) is None:
        return None
    saved, step = load_run_config(out)
    goes_on = step == saved.train.steps < config.train.steps
    for flag, (there, here) in differences(saved, config).items():
        if flag == "data.flip" and _flips(saved.data) == _flips(config.data):
            continue
        # A finished run may go on with another learning rate.
        more_steps = (flag in _AFTER_THE_END and goes_on) or (
            flag == "train.steps" and config.train.decay == "constant"
        )
        # At step 0, with imported weights, only the model and the noising process are fixed.
        if not more_steps and (step or flag.startswith(("model.", "diffusion."))):
            raise ValueError(
                f"{out} holds checkpoints of another configuration: --{flag} was {there} there "
                f"and is {here} now; use the old value to continue"
                + ", and more steps once it has ended" * (flag == "train.steps")
                + ", or another --out to start anew."
            )
    if step > config.train.steps:
        raise ValueError(
            f"{out} is already at step {step}; --train.steps is {config.train.steps}: give more "
            "steps, or another --out."
        )
    return step


def _flips(data: DataConfig) -> bool | None:
    """What --data.flip comes to, where the source's own default is known."""
    default = {"digits": False, "emoji": False, "cifar10": True}.get(data.source)
    return default if data.flip is None or default is False else data.flip


def open_directory(config: Config, dataset: Dataset, held_out: Dataset | None, start: int) -> None:
    """Make the run directory, write the configuration, and drop what will be logged again."""
    out = Path(config.out)
    if jax.process_index():
        return
    try:
        (out / "checkpoints").mkdir(parents=True, exist_ok=True)
        save_config(config, out / "config.json")
        save_record(out, dataset, held_out)
        keep_metrics(out / "metrics.jsonl", start)
    except OSError as error:
        problem = f"{error.filename} cannot be written ({error.strerror})"
        raise ValueError(f"--out is {out}, and {problem}; choose another place.") from error


def _read(holder: Path) -> str:
    try:
        return holder.read_text("utf-8")[:200] or "another process"
    except (OSError, ValueError):
        return "another process"
