"""Checkpoints of a run directory, through Orbax (the only file that imports it).

    RUN/checkpoints/STEP/{config, ema, train, metrics, SHA256SUMS}

`ema` is apart from the rest, so that sampling reads a quarter of the bytes. Everything is restored into a template of
the expected structure: without one, Orbax turns the numbers of a list of layers into strings, and merging them orders
layer 10 before layer 2. The template also says on which devices the arrays shall lie, so a run may continue on another
mesh, or on another number of processes, than it was saved from.
"""

import contextlib
import dataclasses
import hashlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, BestN, LatestN

from ..config import Config, config_from_dict
from ..model import unet_shapes
from .state import TrainState

_SUMS = "SHA256SUMS"
_METRIC = "validation_loss"


@contextlib.contextmanager
def checkpoints(directory: Path, keep: int) -> Iterator[ocp.CheckpointManager]:
    """The checkpoints of a run, for writing: saved in the background; the newest `keep` stay, and the best of those seen.

    A checkpoint appears under its final name only when it is whole; what a killed process left half-written is cleared.

    Raises:
        ValueError: a checkpoint that cannot be written; the message names the newest that is whole.
    """
    # Orbax puts the best last: in descending order it is the lowest loss.
    best = BestN(
        get_metric_fn=lambda found: found[_METRIC],
        reverse=True,
        n=1,
        keep_checkpoints_without_metrics=False,
    )
    options = ocp.CheckpointManagerOptions(
        preservation_policy=AnyPreservationPolicy([LatestN(keep), best]),
        best_fn=lambda found: found[_METRIC],  # without it the metrics are not written
        cleanup_tmp_directories=True,
    )
    manager = ocp.CheckpointManager(_folder(directory), options=options)
    try:
        yield manager
        seal(manager)
    finally:
        with contextlib.suppress(Exception):  # what failed was said by seal
            manager.close()


def save_checkpoint(
    manager: ocp.CheckpointManager,
    state: TrainState,
    config: Config,
    validation_loss: float | None = None,
) -> None:
    """Save a state under its step number, and the loss that it is judged by; the writing goes on in the background."""
    seal(manager)
    # A copy, since the next step reuses the memory. From the host, Orbax need not divide the replicas' work among devices,
    # which takes seconds; of several processes, each must save its own part from the device.
    saved = jax.tree.map(np.array, state) if jax.process_count() == 1 else state
    items = {"config": ocp.args.JsonSave(dataclasses.asdict(config)), "ema": ocp.args.StandardSave(saved.ema),
             "train": ocp.args.StandardSave(saved._replace(ema=None))}  # fmt: skip
    metrics = None if validation_loss is None else {_METRIC: validation_loss}
    with _writing(manager, int(state.step)):
        # Asked before, since Orbax meets a full disk with hundreds of lines of tracebacks.
        size, free = (
            sum(leaf.nbytes for leaf in jax.tree.leaves(state)),
            shutil.disk_usage(manager.directory).free,
        )
        if size > free:
            raise OSError(f"it takes {size / 1e6:,.1f} MB and {free / 1e6:,.1f} MB are free")
        manager.save(int(state.step), args=ocp.args.Composite(**items), metrics=metrics)


def seal(manager: ocp.CheckpointManager) -> None:
    """Wait for the newest checkpoint to be whole, and write the checksums of its files, as `sha256sum` does.

    Orbax reads a damaged array as if it were whole, or fails with a page of tracebacks; the checksums find it before.
    """
    step = manager.latest_step()
    with _writing(manager, step):
        manager.wait_until_finished()
    sums = Path(manager.directory) / str(step) / _SUMS
    if step is None or sums.exists() or jax.process_index():
        return
    files = sorted(path for path in sums.parent.rglob("*") if path.is_file())
    partial = sums.with_suffix(".partial")
    partial.write_text(
        "".join(f"{_sha256(path)}  {path.relative_to(sums.parent)}\n" for path in files)
    )
    partial.replace(sums)


@contextlib.contextmanager
def _writing(manager: ocp.CheckpointManager, step: int | None) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # as with reading: whatever a layer below raised
        folder = Path(manager.directory)
        good = latest_step(folder.parent)
        kept = "none was saved before" if good is None else f"that of step {good} is whole"
        reason = str(error).splitlines()[0][:200]
        raise ValueError(
            f"the checkpoint of step {step} cannot be written to {folder} ({reason}); {kept}."
        ) from error


def restore_state(directory: Path, step: int, template: TrainState) -> TrainState:
    """The state of a checkpoint, with the structure, shapes and shardings of the template.

    Raises:
        ValueError: a checkpoint that cannot be read.
    """
    abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, template)
    items = {
        "ema": ocp.args.StandardRestore(abstract.ema),
        "train": ocp.args.StandardRestore(abstract._replace(ema=None)),
    }
    restored = _restore(directory, step, items)
    return restored["train"]._replace(ema=restored["ema"])


def latest_step(directory: Path) -> int | None:
    """The step of the newest whole checkpoint of a run, None if there is none."""
    return max(_steps(directory), default=None)


def _steps(directory: Path) -> list[int]:
    folder = _folder(directory)
    return (
        sorted(int(path.name) for path in folder.iterdir() if path.name.isdigit())
        if folder.is_dir()
        else []
    )


def load_run_config(directory: Path, checkpoint: str | int = "latest") -> tuple[Config, int]:
    """The configuration in one of a run's checkpoints, and its step.

    Raises:
        ValueError: no such directory, no such checkpoint in it, or one that cannot be read.
    """
    step = _choose(directory, str(checkpoint))
    return config_from_dict(
        _restore(directory, step, {"config": ocp.args.JsonRestore()})["config"]
    ), step


def _choose(directory: Path, checkpoint: str) -> int:
    """The step of a checkpoint: "latest", "best", or a number."""
    latest = latest_step(directory)
    if latest is None:
        problem = "holds no checkpoint" if directory.is_dir() else "does not exist"
        raise ValueError(
            f"the run directory {directory} {problem}; `python train.py --out {directory}` makes one."
        )
    if checkpoint == "latest":
        return latest
    steps = _steps(directory)
    if checkpoint == "best":
        losses = {step: json.loads(path.read_text())[_METRIC] for step in steps
                  if (path := _folder(directory) / str(step) / "metrics" / "metrics").exists()}  # fmt: skip
        if not losses:
            raise ValueError(
                f"no checkpoint of {directory} has a validation loss; ask for the latest, or one of {steps}."
            )
        return min(losses, key=losses.__getitem__)
    if not checkpoint.isdigit() or int(checkpoint) not in steps:
        raise ValueError(
            f"the checkpoint asked for is {checkpoint}; {directory} has latest, best and {steps}."
        )
    return int(checkpoint)


def load_run(directory: str | Path, checkpoint: str | int = "latest") -> tuple[Config, Any]:
    """The configuration and the averaged (EMA) weights of a run's newest checkpoint, or of another.

    Args:
        directory: a run directory, as train.py leaves it.
        checkpoint: "latest", "best" (the lowest validation loss of those kept), or a step.

    Returns:
        (Config, params), params as `build_unet` makes them.

    Raises:
        ValueError: no such directory, no such checkpoint in it, or one that cannot be read.
    """
    config, step = load_run_config(Path(directory), checkpoint)
    # Only shapes: nothing is initialised or computed. NumPy arrays, since each process reads all of them for itself.
    template = jax.tree.map(
        lambda leaf: np.empty(leaf.shape, leaf.dtype), unet_shapes(config.model)
    )
    ema = _restore(Path(directory), step, {"ema": ocp.args.StandardRestore(template)})["ema"]
    return config, jax.device_put(ema)


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
    return ValueError(
        f"the checkpoint {checkpoint} is damaged ({reason}); remove it to go on from the one before it."
    )


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _folder(directory: Path) -> Path:
    return (directory / "checkpoints").absolute()  # Orbax takes absolute paths only
