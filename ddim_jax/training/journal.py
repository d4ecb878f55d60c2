"""What a run says while it goes: metrics.jsonl, and a live line on a terminal or a line a report elsewhere."""

import contextlib
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

Metrics = dict[str, Any]
Report = Callable[[int, list[Metrics], float, float | None], None]


@contextlib.contextmanager
def journal(
    path: Path | None, total: int, batch_size: int, start: int, console: Console
) -> Iterator[Report]:
    """report(step, metrics of the steps since the last one, seconds since then that were no training, validation loss or None).

    Args:
        path: metrics.jsonl, a line a report is added; None: nowhere.
        total: steps of the whole run.
        batch_size: images a step.
        start: steps done before.
        console: for the person.
    """
    mark = [time.perf_counter(), float(start)]
    columns = (
        TextColumn("step"),
        MofNCompleteColumn(),
        BarColumn(),
        TextColumn("{task.fields[text]}"),
    )
    quiet = console.quiet or not console.is_terminal
    with (
        Progress(*columns, console=console, disable=quiet) as bar,
        contextlib.nullcontext() if path is None else open(path, "a") as file,
    ):
        task = bar.add_task("train", total=total, completed=start, text="compiling …")

        def report(done: int, window: list[Metrics], pause: float, judged: float | None) -> None:
            now = time.perf_counter()
            seconds_a_step = (now - mark[0] - pause) / (done - mark[1])
            mark[:] = [now, done]
            means = {
                name: float(np.mean([metrics[name] for metrics in window])) for name in window[0]
            }
            if judged is not None:
                means["validation_loss"] = judged
            rate = batch_size / seconds_a_step
            if file is not None:
                file.write(
                    json.dumps({"step": done, **means, "images_per_second": round(rate, 1)}) + "\n"
                )
                file.flush()
            minutes, seconds = divmod(round(seconds_a_step * (total - done)), 60)
            text = f"loss {means['loss']:.4f}  {rate:,.0f} images/s  {minutes // 60}:{minutes % 60:02d}:{seconds:02d} left"
            bar.update(task, completed=done, text=text)
            if not console.is_terminal:
                console.print(f"step {done}/{total}  {text}")

        yield report


def keep_metrics(path: Path, start: int) -> None:
    """Drop what a killed run logged after its last checkpoint: it will be logged again."""
    if not path.exists():
        return
    lines = []
    for line in path.read_text().splitlines():
        with contextlib.suppress(json.JSONDecodeError):  # the line that a kill cut off
            if json.loads(line)["step"] <= start:
                lines.append(line)
    partial = path.with_suffix(".partial")
    partial.write_text("".join(line + "\n" for line in lines))
    partial.replace(path)
