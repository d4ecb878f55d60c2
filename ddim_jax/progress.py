"""Progress of long work: a bar on a terminal, and elsewhere a line every half minute."""

import contextlib
import time
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

_EVERY = 30.0  # seconds between two lines


@contextlib.contextmanager
def progress(console: Console, total: int, unit: str) -> Iterator[Callable[..., None]]:
    """Yield a function (what was done, how many units) to call after each part of the work."""
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(),
               TextColumn(unit), TimeRemainingColumn())  # fmt: skip
    start = said = time.monotonic()
    done, terminal = 0, console.is_terminal
    with Progress(*columns, console=console, transient=True, disable=not terminal) as bar:
        task = bar.add_task("", total=total)

        def show(doing: str, count: int = 1) -> None:
            nonlocal said, done
            done += count
            bar.update(task, description=doing, advance=count)
            now = time.monotonic()
            if not terminal and now - said > _EVERY and done < total:
                left = (now - start) * (total - done) / done
                about = f"{done:,} of {total:,} {unit}, about {duration(left)} left"
                console.print(f"{doing}: {about}", markup=False)
                said = now

        yield show


def duration(seconds: float) -> str:
    """A time in words.

    >>> duration(42.3), duration(600.0), duration(9000.0)
    ('42 s', '10 min', '2 h 30 min')
    """
    minutes = round(seconds / 60)
    if minutes < 2:
        return f"{seconds:.0f} s"
    hours, rest = divmod(minutes, 60)
    return f"{hours} h {rest} min" if hours else f"{minutes} min"
