"""Progress of a run: metrics.jsonl, and a live line on a terminal or lines in a log."""

import contextlib
import json
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from ..config import TrainConfig
from ..files import write

Metrics = dict[str, Any]
Report = Callable[[int, list[Metrics], float, Metrics], None]


@contextlib.contextmanager
def journal(
    path: Path | None,
    settings: TrainConfig,
    start: int,
    place: Callable[[int], Metrics],
    track: Callable[[Metrics], None],
    console: Console,
) -> Iterator[Report]:
    """report(step, metrics of the steps since the last one, seconds of pause, the step's values).

    The pause is the time since the last report not spent on training. `path` is metrics.jsonl, to
    which each report adds a line, or None. `start` is the number of steps already done. A line has
    the Unix time in seconds, and what `place` says of a step's number. `track` gets it, too.
    """
    total, mark = settings.steps, [time.perf_counter(), float(start)]
    text_column = TextColumn("{task.fields[text]}")
    columns = (TextColumn("step"), MofNCompleteColumn(), BarColumn(), text_column)
    quiet = console.quiet or not console.is_terminal
    with (
        Progress(*columns, console=console, disable=quiet) as bar,
        contextlib.nullcontext() if path is None else open(path, "a", encoding="utf-8") as file,
    ):
        task = bar.add_task("train", total=total, completed=start, text="compiling …")

        def report(done: int, window: list[Metrics], pause: float, judged: Metrics) -> None:
            now = time.perf_counter()
            seconds_per_step = (now - mark[0] - pause) / (done - mark[1])
            mark[:] = [now, done]
            line: Metrics = {"step": done, "time": round(time.time(), 3), **place(done)}
            for name in window[0]:
                line[name] = float(np.mean([metrics[name] for metrics in window]))
            line |= judged
            rate = settings.batch_size / seconds_per_step
            line["images_per_second"] = round(rate, 1)
            if file is not None:
                print(json.dumps(line), file=file, flush=True)
            track(line)
            left = timedelta(seconds=round(seconds_per_step * (total - done)))
            losses = "".join(f"  {name.replace('_', ' ')} {judged[name]:.4f}" for name in judged)
            text = f"loss {line['loss']:.4f}{losses}  {rate:,.0f} images/s  {left} left"
            bar.update(task, completed=done, text=text)
            if not console.is_terminal:
                console.print(f"step {done}/{total}  {text}")

        if not console.is_terminal and start < total:
            console.print("compiling the training step …")
        yield report


def keep_metrics(path: Path, start: int) -> None:
    """Drop what a killed run logged after its last checkpoint: it will be logged again."""
    if not path.exists():
        return
    lines = []
    for line in path.read_text("utf-8", errors="replace").splitlines():
        with contextlib.suppress(ValueError, KeyError, TypeError, RecursionError):
            if json.loads(line)["step"] <= start:  # not a line that a kill cut off
                lines.append(line)
    write(path, "".join(line + "\n" for line in lines))
