"""Checkpoints of a run directory, through Orbax (the only file that imports it).

    RUN/checkpoints/STEP/{config, ema, train}

`ema` is apart from the rest, so that sampling reads a quarter of the bytes. Everything is restored into a template of
the expected structure: without one, Orbax turns the numbers of a list of layers into strings, and merging them orders
layer 10 before layer 2.
"""

import contextlib
import dataclasses
import gc
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from ..config import Config, config_from_dict
from ..model import build_unet
from .state import TrainState


@contextlib.contextmanager
def checkpoints(directory: Path, keep: int) -> Iterator[ocp.CheckpointManager]:
    """The checkpoints of a run, for writing: saved in the background, the oldest beyond `keep` removed.

    A checkpoint appears under its final name only when it is whole; what a killed process left half-written is cleared.
    """
    options = ocp.CheckpointManagerOptions(max_to_keep=keep, cleanup_tmp_directories=True)
    with ocp.CheckpointManager(_folder(directory), options=options) as manager:
        yield manager


def save_checkpoint(manager: ocp.CheckpointManager, state: TrainState, config: Config) -> None:
    """Save a state under its step number."""
    train = state._replace(ema=None)
    items = {"config": ocp.args.JsonSave(dataclasses.asdict(config)), "ema": ocp.args.StandardSave(state.ema),
             "train": ocp.args.StandardSave(train)}  # fmt: skip
    manager.save(int(state.step), args=ocp.args.Composite(**items))


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
    folder = _folder(directory)
    try:
        with _quiet(), ocp.CheckpointManager(folder, options=ocp.CheckpointManagerOptions(read_only=True)) as manager:
            return manager.restore(step, args=ocp.args.Composite(**items))
    except Exception as error:  # Orbax and TensorStore raise whatever their layers raise, Exception itself included
        raise ValueError(
            f"the checkpoint {folder / str(step)} cannot be read ({str(error).splitlines()[0][:200]}); it is damaged: remove it "
            "to go on from the one before it."
        ) from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the tracebacks of Orbax's abandoned reads off the screen; the error itself is raised."""
    hook, logger = sys.unraisablehook, logging.getLogger("asyncio")
    disabled, logger.disabled = logger.disabled, True
    sys.unraisablehook = lambda _: None
    try:
        yield
    finally:
        gc.collect()  # the reads complain when they are collected
        sys.unraisablehook, logger.disabled = hook, disabled


def _folder(directory: Path) -> Path:
    return (directory / "checkpoints").absolute()  # Orbax takes absolute paths only
