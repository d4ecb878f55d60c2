"""Run an entry point: one sentence for a user's mistake, a traceback for a bug."""

import contextlib
import ctypes
import errno
import gc
import logging
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import jax

from .processes import fail, several, stand_aside

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EPIPE, errno.EIO}


def run(command: Callable[[], None], *folders: Path) -> int:
    """Call a command and return its exit status.

    A ValueError raised in this package, or in one of the folders, is about the user's input, and
    its message is printed. One raised in a library is a bug of ours and keeps its traceback, like
    any other exception. If one of several processes fails, all end.
    """
    _keep_freed_memory()
    # With Python's default thresholds, garbage collection adds half a second to each start.
    gc.set_threshold(20_000, 20, 100)
    # JAX hides its own frames in tracebacks, so a library's bug would look as if raised here.
    jax.config.update("jax_traceback_filtering", "off")
    # Orbax logs tracebacks of what it then raises, and TFDS advice about choices made on purpose.
    for name in ("absl", "asyncio"):
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)
    if sys.unraisablehook is sys.__unraisablehook__:
        sys.unraisablehook = _unraisable
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a terminal that lacks σ gets ?
            stream.reconfigure(errors="replace")
    with _ctrl_c():
        try:
            command()
            sys.stdout.flush()
            return 0
        except KeyboardInterrupt:
            return _failed("interrupted", 130)
        except ValueError as error:
            if not _raised_in((Path(__file__).parent, *folders), error):
                _unexpected(error)
                raise
            return _failed(f"error: {error}", 1)
        except OSError as error:
            if error.errno not in _FULL:
                _unexpected(error)
                raise
            if sys.stdout is sys.__stdout__:  # what is left to be written would fail at the exit
                os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            what = error.filename or "the output"
            return _failed(f"error: {what} cannot be written ({error.strerror}).", 1)
        except SystemExit as error:
            if error.code:
                fail(f"ended with status {error.code}", int(error.code))
            raise
        except BaseException as error:
            _unexpected(error)
            raise


def leave(status: int) -> NoReturn:
    """End the process; after Ctrl-C without Python's tidying up, which a half import can crash."""
    if status == 130:
        sys.stdout.flush()
        os._exit(status)
    sys.exit(status)


def _at_once(*_: Any) -> NoReturn:
    os.write(2, b"interrupted\n")
    os._exit(130)


def _failed(text: str, status: int) -> int:
    stand_aside()
    print(text, file=sys.stderr)
    fail(f"ended: {text.removeprefix('error: ')}", status)
    return status


def _unexpected(error: BaseException) -> None:
    """Show a bug here if `fail` will end the process."""
    if several():
        stand_aside()
        traceback.print_exception(error)
        fail(f"ended with {type(error).__name__}", 1)


@contextlib.contextmanager
def _ctrl_c() -> Iterator[None]:
    """Ctrl-C interrupts once; the second one ends the process at once, whatever it is doing."""

    def interrupt(*_: Any) -> None:
        signal.signal(signal.SIGINT, lambda *_: os._exit(130))
        raise KeyboardInterrupt

    ignored = signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    if ignored or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        # After an interruption the second one may still come.
        if signal.getsignal(signal.SIGINT) is interrupt:
            signal.signal(signal.SIGINT, before)


def _unraisable(found: Any) -> None:
    """Python's own hook, but for Ctrl-C, and what TensorStore says after a write that failed."""
    if found.exc_type is KeyboardInterrupt:  # in a callback, from where it would go no further
        _at_once()
    if str(found.exc_value) != "Event loop is closed":
        sys.__unraisablehook__(found)


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
    """Let glibc keep the blocks that a step frees and the next one needs, up to its 64 MiB.

    With one heap for all threads (M_ARENA_MAX) it would keep larger ones, too, but the buffers of a
    step would then lie among what the compiler left, which costs more than that saves.
    """
    trim_threshold, mmap_threshold = -1, -3  # malloc.h
    # Another C library, or Windows, where a library needs a name.
    with contextlib.suppress(OSError, AttributeError, TypeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(trim_threshold, -1)
        if not mallopt(mmap_threshold, 2**30):
            mallopt(mmap_threshold, 2**25)  # the most that glibc before 2.35 takes
