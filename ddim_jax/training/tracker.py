"""What metrics.jsonl says, the sample grids and the configuration, in TensorBoard or W&B.

The packages of the trackers do the work. A tracker never ends a training: its first failure is one
line, and the run goes on without it. Only the first process of a job has one.
"""

import contextlib
import dataclasses
import importlib.util
import os
import secrets
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
from rich.console import Console

from ..config import Config
from ..files import to_json, write


class Tracker(NamedTuple):
    """log(line of metrics.jsonl), show(step, path of a PNG) and close(the run is complete)."""

    log: Callable[[dict[str, Any]], None]
    show: Callable[[int, Path], None]
    close: Callable[[bool], None]


def require_tracker(config: Config) -> None:
    """Raise a ValueError if the package of --train.tracker is missing."""
    name = config.train.tracker
    if name != "none" and importlib.util.find_spec(name) is None:
        raise ValueError(
            f"--train.tracker is {name}, and its package is not installed; run "
            f"pip install 'ddim_jax[{name}]', or leave the flag out: metrics.jsonl has the numbers."
        )


@contextlib.contextmanager
def tracking(config: Config, start: int, console: Console) -> Iterator[Tracker]:
    """The tracker of a run that begins or continues after step `start`; it raises nothing."""
    name, opened = config.train.tracker, list[Tracker]()

    def attempt(action: Callable[..., Any], *arguments: Any) -> None:
        try:
            action(*arguments)
        except Exception as error:  # a tracker may raise anything
            reason = (str(error) or type(error).__name__).splitlines()[0]
            console.print(f"warning: {name} failed ({reason}); training goes on without it")
            while opened:
                with contextlib.suppress(Exception):
                    opened.pop().close(False)

    def log(line: dict[str, Any]) -> None:
        for tracker in opened:
            attempt(tracker.log, line)

    def show(step: int, path: Path) -> None:
        for tracker in opened:
            if path.exists():  # a full disk has no previews
                attempt(tracker.show, step, path)

    def close(complete: bool) -> None:
        while opened:
            attempt(opened.pop().close, complete)

    if name != "none" and jax.process_index() == 0:
        attempt(lambda: opened.append(TRACKERS[name](config, start)))
    try:
        yield Tracker(log, show, close)
    finally:
        close(False)


def tensorboard(config: Config, start: int) -> Tracker:
    """Event files in RUN/tensorboard. Of a killed run, TensorBoard drops what will be repeated."""
    from tensorboard.compat.proto.event_pb2 import Event, SessionLog
    from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
    from tensorboard.compat.proto.tensor_pb2 import TensorProto
    from tensorboard.compat.proto.types_pb2 import DT_STRING
    from tensorboard.summary.writer.record_writer import RecordWriter

    folder = Path(config.out) / "tensorboard"
    folder.mkdir(parents=True, exist_ok=True)
    name = f"events.out.tfevents.{time.time_ns() // 1000:016d}.{socket.gethostname()}.{os.getpid()}"
    # Not TensorBoard's EventFileWriter: its thread would print a traceback when the disk is full.
    writer = RecordWriter(open(folder / name, "wb"))  # noqa: SIM115 — until the run ends

    def add(step: int, *values: Any, **content: Any) -> None:
        if values:
            content["summary"] = Summary(value=values)
        event = Event(wall_time=time.time(), step=step, **content)
        writer.write(event.SerializeToString())
        writer.flush()

    def log(line: dict[str, Any]) -> None:
        numbers = _numbers(line).items()
        add(line["step"], *(Summary.Value(tag=tag, simple_value=value) for tag, value in numbers))

    def show(step: int, path: Path) -> None:
        image = Summary.Image(encoded_image_string=path.read_bytes())
        add(step, Summary.Value(tag="samples", image=image))

    add(0, file_version="brain.Event:2")
    add(start + 1, session_log=SessionLog(status=SessionLog.START))
    text = "\n".join(f"    {row}" for row in to_json(dataclasses.asdict(config), 2).splitlines())
    add(start, Summary.Value(
        tag="configuration",
        metadata=SummaryMetadata(plugin_data=SummaryMetadata.PluginData(plugin_name="text")),
        tensor=TensorProto(dtype=DT_STRING, string_val=[text.encode()]),
    ))  # fmt: skip
    return Tracker(log, show, lambda complete: writer.close())


def wandb(config: Config, start: int) -> Tracker:
    """A W&B run whose name is kept in RUN/wandb.id, so that a run that resumes continues it."""
    import wandb

    out = Path(config.out)
    kept = out / "wandb.id"
    if not kept.exists():
        write(kept, secrets.token_hex(8))
    run = wandb.init(
        project="ddim_jax", name=out.resolve().name, id=kept.read_text("utf-8").strip(),
        resume="allow", dir=out, config=dataclasses.asdict(config), allow_val_change=True,
        settings=wandb.Settings(console="off"),
    )  # fmt: skip
    # W&B's own steps never go back; those of a killed run that resumes do.
    run.define_metric("*", step_metric="step")

    def show(step: int, path: Path) -> None:
        run.log({"step": step, "samples": wandb.Image(str(path))})

    def close(complete: bool) -> None:
        run.finish(exit_code=0 if complete else 1)

    return Tracker(lambda line: run.log({"step": line["step"], **_numbers(line)}), show, close)


TRACKERS: dict[str, Callable[[Config, int], Tracker]] = {"tensorboard": tensorboard, "wandb": wandb}


def _numbers(line: dict[str, Any]) -> dict[str, float]:
    """The numbers of a line by their names, but for the step."""
    return {name: value for name, value in line.items()
            if isinstance(value, int | float) and name != "step"}  # fmt: skip
