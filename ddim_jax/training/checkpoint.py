"""Checkpoints of a run directory, through Orbax (the only file that imports it).

    RUN/checkpoints/STEP/{config, ema, train, metrics, SHA256SUMS}

`ema` is stored separately, so that sampling reads a quarter of the bytes. Everything is restored
into a template of the expected structure: without one, Orbax turns the numbers of a list of layers
into strings, and merging them puts layer 10 before layer 2. The template also sets the arrays'
devices, so a run may continue on another mesh, or with another number of processes.
"""

import contextlib
import dataclasses
import json
import math
import os
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, BestN, LatestN

from ..config import Config, config_from_dict
from ..files import file_sha256, make_directory, write
from ..model import unet_shapes
from ..runtime import program
from ..settings import is_number
from .state import TrainState

_SUMS = "SHA256SUMS"
_REMOVAL = 2.0  # seconds that removing a checkpoint may take
_SMALL_FILES = 200_000  # bytes of a checkpoint's configuration, indices and checksums


@contextlib.contextmanager
def checkpoints(
    directory: Path, keep: int, best_by: str = "validation_loss"
) -> Iterator[ocp.CheckpointManager]:
    """The checkpoints of a run, for writing: the newest `keep` stay, and the lowest in `best_by`.

    One process writes them in the background, several do not. A checkpoint gets its name only when
    it is complete; incomplete ones of a killed process are removed. A failed write raises a
    ValueError that names the newest complete checkpoint.
    """

    def judge(metrics: dict[str, float]) -> float:
        return metrics.get(best_by, math.inf)

    # Orbax puts the best last: in descending order it is the lowest loss.
    best = BestN(get_metric_fn=judge, reverse=True, n=1, keep_checkpoints_without_metrics=False)
    options = ocp.CheckpointManagerOptions(
        preservation_policy=AnyPreservationPolicy([LatestN(keep), best]),
        best_fn=judge,  # without it the metrics are not written
        cleanup_tmp_directories=True,
        # In the background, a process whose disk is full waits for the others before it says so,
        # and they wait for it.
        enable_async_checkpointing=jax.process_count() == 1,
    )
    make_directory(_folder(directory), directory)  # else Orbax's threads would wait for ever
    manager = ocp.CheckpointManager(_folder(directory), options=options)
    failed = True
    try:
        yield manager
        seal(manager)
        failed = False
    finally:
        # After a failure, closing would wait for other processes, which do not know of it.
        if not failed or jax.process_count() == 1:
            with contextlib.suppress(Exception):  # seal has reported the failure
                manager.close()


def save_checkpoint(
    manager: ocp.CheckpointManager,
    state: TrainState,
    config: Config,
    metrics: dict[str, float] | None = None,
) -> None:
    """Save a state under its step number, with what it was judged by, in the background."""
    seal(manager)
    # A copy, since the next step reuses the memory. From the host, Orbax need not divide the work
    # of replicas among devices, which takes seconds; several processes each save their own part.
    saved = jax.tree.map(np.array, state) if jax.process_count() == 1 else state
    items = {
        "config": ocp.args.JsonSave(dataclasses.asdict(config)),
        "ema": ocp.args.StandardSave(saved.ema),
        "train": ocp.args.StandardSave(saved._replace(ema=None)),
    }
    with _writing(manager, int(state.step)):
        # On a full disk, Orbax would print hundreds of lines of tracebacks.
        size = 1.1 * sum(leaf.nbytes for leaf in jax.tree.leaves(state)) + _SMALL_FILES
        free = shutil.disk_usage(manager.directory).free
        if size > free:
            raise OSError(f"it takes {size / 1e6:,.1f} MB and {free / 1e6:,.1f} MB are free")
        manager.save(int(state.step), args=ocp.args.Composite(**items), metrics=metrics or None)


def seal(manager: ocp.CheckpointManager) -> None:
    """Wait until the newest checkpoint is complete; write checksums in the format of `sha256sum`.

    Orbax reads a damaged array without an error, or fails with a page of tracebacks. The
    checksums detect the damage first.
    """
    step = manager.latest_step()
    with _writing(manager, step):
        manager.wait_until_finished()
        folder = Path(manager.directory) / str(step)
        if step is None or (folder / _SUMS).exists() or jax.process_index():
            return
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        sums = (f"{file_sha256(path)}  {path.relative_to(folder).as_posix()}\n" for path in files)
        write(folder / _SUMS, "".join(sums))


@contextlib.contextmanager
def _writing(manager: ocp.CheckpointManager, step: int | None) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # as with reading, the libraries may raise anything
        folder = Path(manager.directory)
        good = latest_step(folder.parent)
        kept = "none was saved before" if good is None else f"that of step {good} is intact"
        kept = "only its checksums are missing" if good is not None and good == step else kept
        said = re.search(r": ([^:]+?) \[os_error_code", str(error))
        text = getattr(error, "strerror", None) or str(error)
        reason = said[1] if said else text.splitlines()[0][:200]
        raise ValueError(
            f"the checkpoint of step {step} cannot be written to {folder} ({reason}); {kept}."
        ) from error


def restore_state(directory: Path, step: int, template: TrainState) -> TrainState:
    """The state of a checkpoint, with the structure, shapes and shardings of the template."""
    abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, template)
    items = {
        "ema": ocp.args.StandardRestore(abstract.ema),
        "train": ocp.args.StandardRestore(abstract._replace(ema=None)),
    }
    restored = _restore(directory, step, items)
    return restored["train"]._replace(ema=restored["ema"])


def latest_step(directory: Path) -> int | None:
    """The step of the newest complete checkpoint of a run, or None."""
    return max(_steps(directory), default=None)


def _steps(directory: Path) -> list[int]:
    folder = _folder(directory)
    paths = folder.iterdir() if folder.is_dir() else ()
    return sorted(int(path.name) for path in paths if is_number(path.name))


def load_run_config(directory: Path, checkpoint: str | int = "latest") -> tuple[Config, int]:
    """The configuration in one of a run's checkpoints, and its step."""
    step = _choose(directory, str(checkpoint))
    values = _restore(directory, step, {"config": ocp.args.JsonRestore()})["config"]
    config = config_from_dict(values)
    config.model.check()
    config.diffusion.check()
    return config, step


def _choose(directory: Path, checkpoint: str) -> int:
    """The step of a checkpoint: "latest", "best", or a number."""
    latest = latest_step(directory)
    if latest is None:
        problem = "holds no checkpoint" if directory.is_dir() else "does not exist"
        raise ValueError(
            f"the run directory {directory} {problem}; `{program('train')} --out {directory}` "
            "makes one."
        )
    if checkpoint == "latest":
        return latest
    steps = _steps(directory)
    if checkpoint == "best":
        name = load_run_config(directory)[0].train.best_by()
        found = {step: _metric(directory, step, name) for step in steps}
        losses = {step: loss for step, loss in found.items() if loss is not None}
        if not losses:
            raise ValueError(
                f"no checkpoint of {directory} has a {name.replace('_', ' ')}; ask for the latest, "
                f"or one of {steps}."
            )
        return min(losses, key=losses.__getitem__)
    if not is_number(checkpoint) or int(checkpoint) not in steps:
        raise ValueError(
            f"the checkpoint asked for is {checkpoint[:40]}; {directory} has latest, best and "
            f"{steps}."
        )
    return int(checkpoint)


def _metric(directory: Path, step: int, name: str) -> float | None:
    """A metric of a checkpoint; None without it, or if the file is damaged."""
    path = _folder(directory) / str(step) / "metrics" / "metrics"
    try:
        loss = float(json.loads(path.read_text("utf-8"))[name])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return loss if np.isfinite(loss) else None


def load_run(directory: str | Path, checkpoint: str | int = "latest") -> tuple[Config, Any]:
    """The configuration and the averaged (EMA) weights of a run: (Config, params).

    `checkpoint` is "latest", "best" (see --train.keep-best; of those kept), or a step. Params
    have the structure that `build_unet` returns.
    """
    return open_run(Path(directory), checkpoint)[:2]


def open_run(directory: Path, checkpoint: str | int = "latest") -> tuple[Config, Any, int]:
    """What `load_run` returns, and the step; also while a training removes old checkpoints."""
    step = _choose(directory, str(checkpoint))
    try:
        config, _ = load_run_config(directory, step)
        # Only shapes: nothing is computed. NumPy arrays, since each process reads all of them.
        shapes = unet_shapes(config.model)
        template = jax.tree.map(lambda leaf: np.empty(leaf.shape, leaf.dtype), shapes)
        ema = _restore(directory, step, {"ema": ocp.args.StandardRestore(template)})["ema"]
    except ValueError:
        if not _removed(directory, step):
            raise
        return open_run(directory, checkpoint)
    return config, jax.device_put(ema), step


def _removed(directory: Path, step: int) -> bool:
    """Whether a training has removed a checkpoint, as it does with all but the newest."""
    deadline = time.monotonic() + _REMOVAL
    while latest_step(directory) != step and (_folder(directory) / str(step)).exists():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return not (_folder(directory) / str(step)).exists()


def _restore(directory: Path, step: int, items: dict[str, Any]) -> Any:
    checkpoint = _folder(directory) / str(step)
    _verify(checkpoint, set(items))
    try:
        with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as reader:
            return reader.restore(checkpoint, args=ocp.args.Composite(**items))
    except Exception as error:  # Orbax and TensorStore raise anything, Exception itself included
        raise _damaged(checkpoint, str(error).splitlines()[0][:200]) from error


def _verify(checkpoint: Path, items: set[str]) -> None:
    """Compare the files of some items with their checksums, if there are checksums."""
    sums = checkpoint / _SUMS
    for line in sums.read_text("utf-8", "replace").splitlines() if sums.exists() else []:
        expected, _, name = line.partition("  ")
        if not name:
            raise ValueError(
                f"{sums} is damaged; remove it to read the checkpoint without its checksums."
            )
        if name.split("/")[0] in items:
            path = checkpoint / name
            if not path.is_file():
                raise _damaged(checkpoint, f"{name} is missing")
            if file_sha256(path) != expected:
                raise _damaged(checkpoint, f"{name} differs from what was written")


def _damaged(checkpoint: Path, reason: str) -> ValueError:
    return ValueError(
        f"the checkpoint {checkpoint} is damaged ({reason}); remove it to resume from the one "
        "before it."
    )


def _folder(directory: Path) -> Path:
    folder = (directory / "checkpoints").absolute()  # Orbax takes absolute paths only
    if os.sep == "/" and "\\" in str(folder):
        raise ValueError(
            f"{directory} is {folder.parent} with a backslash in its path, where arrays of a "
            "checkpoint would be written elsewhere; choose another name."
        )
    return folder
