"""Checkpoints of a run directory, through Orbax (the only file that imports it).

    RUN/checkpoints/STEP/{config, ema, train, SHA256SUMS}

`ema` is apart from the rest, so that sampling reads a quarter of the bytes. Everything is restored into a template of
the expected structure: without one, Orbax turns the numbers of a list of layers into strings, and merging them orders
layer 10 before layer 2.
"""

import contextlib
import dataclasses
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from ..config import Config, config_from_dict
from ..model import build_unet
from .state import TrainState

_SUMS = "SHA256SUMS"


@contextlib.contextmanager
def checkpoints(directory: Path, keep: int) -> Iterator[ocp.CheckpointManager]:
    """The checkpoints of a run, for writing: saved in the background, the oldest beyond `keep` removed.

    A checkpoint appears under its final name only when it is whole; what a killed process left half-written is cleared.
    """
    options = ocp.CheckpointManagerOptions(max_to_keep=keep, cleanup_tmp_directories=True)
    with ocp.CheckpointManager(_folder(directory), options=options) as manager:
        try:
            yield manager
        finally:
            seal(manager)


def save_checkpoint(manager: ocp.CheckpointManager, state: TrainState, config: Config) -> None:
    """Save a state under its step number; the writing goes on in the background."""
    seal(manager)
    # A copy: the next step reuses the memory of this one. From the host, Orbax need not divide the replicas' work.
    host = jax.tree.map(np.array, state)
    items = {"config": ocp.args.JsonSave(dataclasses.asdict(config)), "ema": ocp.args.StandardSave(host.ema),
             "train": ocp.args.StandardSave(host._replace(ema=None))}  # fmt: skip
    manager.save(int(host.step), args=ocp.args.Composite(**items))


def seal(manager: ocp.CheckpointManager) -> None:
    """Wait for the newest checkpoint to be whole, and write the checksums of its files, as `sha256sum` does.

    Orbax reads a damaged array as if it were whole, or fails with a page of tracebacks; the checksums find it before.
    """
    manager.wait_until_finished()
    step = manager.latest_step()
    sums = Path(manager.directory) / str(step) / _SUMS
    if step is None or sums.exists():
        return
    files = sorted(path for path in sums.parent.rglob("*") if path.is_file())
    partial = sums.with_suffix(".partial")
    partial.write_text("".join(f"{_sha256(path)}  {path.relative_to(sums.parent)}\n" for path in files))
    partial.replace(sums)


def restore_state(directory: Path, step: int, template: TrainState) -> TrainState:
    """The state of a checkpoint, with the structure, shapes and shardings of the template.

    Raises:
        ValueError: a checkpoint that cannot be read.
    """
    abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, template)
    items = {"ema": ocp.args.StandardRestore(abstract.ema), "train": ocp.args.StandardRestore(abstract._replace(ema=None))}
    restored = _restore(directory, step, items)
    return restored["train"]._replace(ema=restored["ema"])


def latest_step(directory: Path) -> int | None:
    """The step of the newest whole checkpoint of a run, None if there is none."""
    folder = _folder(directory)
    steps = [int(path.name) for path in folder.iterdir() if path.name.isdigit()] if folder.is_dir() else []
    return max(steps, default=None)


def load_run_config(directory: Path) -> tuple[Config, int]:
    """The configuration in a run's newest checkpoint, and its step.

    Raises:
        ValueError: no such directory, no checkpoint in it, or one that cannot be read.
    """
    step = latest_step(directory)
    if step is None:
        problem = "holds no checkpoint" if directory.is_dir() else "does not exist"
        raise ValueError(f"the run directory {directory} {problem}; `python train.py --out {directory}` makes one.")
    return config_from_dict(_restore(directory, step, {"config": ocp.args.JsonRestore()})["config"]), step


def load_run(directory: str | Path) -> tuple[Config, Any]:
    """The configuration and the averaged (EMA) weights of a run's newest checkpoint.

    Args:
        directory: a run directory, as train.py leaves it.

    Returns:
        (Config, params), params as `build_unet` makes them.

    Raises:
        ValueError: no such directory, no checkpoint in it, or one that cannot be read.
    """
    config, step = load_run_config(Path(directory))
    # Only shapes: nothing is initialised or computed.
    template = jax.eval_shape(lambda: build_unet(config.model, config.seed)[1])
    return config, _restore(Path(directory), step, {"ema": ocp.args.StandardRestore(template)})["ema"]


def _restore(directory: Path, step: int, items: dict[str, Any]) -> Any:
    checkpoint = _folder(directory) / str(step)
    _verify(checkpoint, set(items))
    try:
        with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as reader:
            return reader.restore(checkpoint, args=ocp.args.Composite(**items))
    except Exception as error:  # Orbax and TensorStore raise whatever their layers raise, Exception itself included
        raise _damaged(checkpoint, str(error).splitlines()[0][:200]) from error


def _verify(checkpoint: Path, items: set[str]) -> None:
    """Compare the files of some items with their checksums, where a kill did not prevent that these were written."""
    sums = checkpoint / _SUMS
    for line in sums.read_text().splitlines() if sums.exists() else []:
        expected, name = line.split("  ", 1)
        if name.split("/")[0] in items:
            path = checkpoint / name
            if not path.is_file():
                raise _damaged(checkpoint, f"{name} is missing")
            if _sha256(path) != expected:
                raise _damaged(checkpoint, f"{name} is not what was written")


def _damaged(checkpoint: Path, reason: str) -> ValueError:
    return ValueError(f"the checkpoint {checkpoint} is damaged ({reason}); remove it to go on from the one before it.")


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _folder(directory: Path) -> Path:
    return (directory / "checkpoints").absolute()  # Orbax takes absolute paths only
