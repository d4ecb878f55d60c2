"""Run an entry point: one sentence for a user's mistake, a traceback for a bug."""

import contextlib
import ctypes
import gc
import logging
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import jax


def run(command: Callable[[], None], *folders: Path) -> int:
    """Call a command and return its exit status.

    A ValueError raised in this package, or in one of the folders, is about the user's input, and
    its message is printed. One raised in a library is a bug of ours and keeps its traceback, like
    any other exception.
    """
    _keep_freed_memory()
    # With Python's default thresholds, garbage collection adds half a second to each start.
    gc.set_threshold(20_000, 20, 100)
    # JAX hides its own frames in tracebacks, so a library's bug would look as if raised here.
    jax.config.update("jax_traceback_filtering", "off")
    # TFDS and Orbax log advice about choices that this package makes on purpose.
    logging.getLogger("absl").setLevel(logging.ERROR)
    try:
        command()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except ValueError as error:
        if not _raised_in((Path(__file__).parent, *folders), error):
            raise
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def program(name: str) -> str:
    """How to call `train` or `sample`: by the file of a clone if this process was, or as installed.

    >>> program("train")
    'ddim-train'
    """
    called = Path(sys.argv[0]).name
    return f"python {name}.py" if called in ("train.py", "sample.py") else f"ddim-{name}"


def _raised_in(folders: tuple[Path, ...], error: BaseException) -> bool:
    frames = traceback.extract_tb(error.__traceback__)
    return any(Path(frames[-1].filename).is_relative_to(folder) for folder in folders)


def _keep_freed_memory() -> None:
    """Let glibc keep freed memory, which saves a sixth of a training step on CPUs."""
    trim_threshold, mmap_max, arena_max = -1, -4, -8  # malloc.h
    with contextlib.suppress(OSError, AttributeError):  # another C library
        mallopt = ctypes.CDLL(None).mallopt
        for option, value in ((arena_max, 1), (mmap_max, 0), (trim_threshold, -1)):
            mallopt(option, value)
