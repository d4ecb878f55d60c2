"""Progress without a terminal: a line now and then, with the time that is left."""

import io

from rich.console import Console

from ddim_jax import progress


def test_a_log_gets_a_line_every_half_minute(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    console = Console(file=io.StringIO(), width=200)
    with progress.progress(console, 10, "cells") as show:
        for _ in range(10):
            now[0] += 20
            show("[red] measured")
    lines = console.file.getvalue().splitlines()
    # After 40, 80, 120 and 160 s; the end has its own report.
    assert lines == [
        f"[red] measured: {done} of 10 cells, about {progress.duration(200.0 - 20 * done)} left"
        for done in (2, 4, 6, 8)
    ]
