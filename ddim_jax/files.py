"""Atomic file writes, digests of files and values, and JSON."""

import contextlib
import hashlib
import json
import os
import secrets
import zipfile
from collections.abc import Iterator
from math import isfinite
from pathlib import Path
from typing import Any

import jax
import numpy as np
import safetensors

_LONGEST_NAME, _LONGEST_PATH = 255, 3_800  # bytes; checkpoints add up to 200 to a path


class CannotWrite(ValueError):
    """A file cannot be written, and why."""


@contextlib.contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A temporary path to write to, which is renamed to `path` if the block succeeds.

    A failed write raises CannotWrite, and what was at `path` before stays.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "made" / "a.txt"
    >>> with whole(path) as partial:
    ...     _ = partial.write_text("all of it")
    >>> path.read_text(), len(list(path.parent.iterdir()))
    ('all of it', 1)
    """
    # A name of its own in each process, on each host; the ending says what NumPy writes.
    partial = path.with_name(f".partial-{secrets.token_hex(6)}-{path.name[-40:]}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield partial
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
    except (OSError, safetensors.SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise CannotWrite(
            f"{path} cannot be written ({reason}); free some space, or choose another place."
        ) from error


def write(path: Path, content: str | bytes) -> None:
    """Write a file whole or not at all; missing directories are created."""
    with whole(path) as partial:
        partial.write_bytes(content.encode() if isinstance(content, str) else content)


def check_path(path: str | Path, flag: str) -> None:
    """Refuse a path that cannot be one of a file, before anything is written.

    >>> check_path("a" * 300, "--out")
    Traceback (most recent call last):
    ValueError: --out has a name of 300 bytes, 'aaaaaaaaaa…'; a file system takes up to 255.
    """
    text = str(path)
    if "\0" in text or text != text.encode(errors="ignore").decode():
        raise ValueError(f"{flag} is {text[:100]!a}; it must be text that UTF-8 can encode.")
    longest = max(text.split(os.sep), key=lambda name: len(name.encode()))
    if (length := len(longest.encode())) > _LONGEST_NAME:
        raise ValueError(
            f"{flag} has a name of {length} bytes, '{longest[:10]}…'; a file system takes up to "
            f"{_LONGEST_NAME}."
        )
    if (length := len(os.path.abspath(text).encode())) > _LONGEST_PATH:
        raise ValueError(
            f"{flag} is a path of {length:,} bytes; it may have up to {_LONGEST_PATH:,}."
        )


def check_output(path: Path, flag: str = "--out") -> None:
    """Refuse a file that could not be written, before the work; its directory is made."""
    check_path(path, flag)
    if path.is_dir():
        raise ValueError(f"{flag} is {path}, which is a directory; give the name of a file.")
    make_directory(path.parent, path, flag)


def make_directory(directory: Path, given: Path, flag: str = "--out") -> None:
    """Make a directory that can be written to, or raise a ValueError that says why it failed.

    `given` is the path that the flag names. Among several processes the first one does this.
    """
    check_path(given, flag)
    if jax.process_index():
        return
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CannotWrite(
            f"{flag} is {given}, and {error.filename} cannot be made ({error.strerror}); choose "
            "another place."
        ) from error
    probe = directory / f".partial-{secrets.token_hex(6)}"
    try:
        probe.write_bytes(b" ")
        probe.unlink()
    except OSError as error:
        with contextlib.suppress(OSError):  # of a full disk
            probe.unlink()
        raise CannotWrite(
            f"{flag} is {given}, and {directory} cannot be written to ({error.strerror}); choose "
            "another place."
        ) from error


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file, as `sha256sum` prints it."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest(*parts: Any) -> str:
    """A SHA-256 of strings, numbers, settings and arrays.

    >>> digest("a", 1) == digest("a", 1), digest(np.zeros(2)) == digest(np.zeros((2, 1)))
    (True, False)
    """
    total = hashlib.sha256()
    for part in parts:
        array = isinstance(part, np.ndarray | jax.Array)
        total.update(f"{part.shape}{part.dtype}".encode() if array else repr(part).encode())
        total.update(np.ascontiguousarray(part).tobytes() if array else b"")
    return total.hexdigest()


def read_arrays(path: Path) -> dict[str, np.ndarray] | None:
    """The arrays of an .npz file; None where it is missing or damaged."""
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as arrays:
            return dict(arrays)
    except (OSError, EOFError, KeyError, ValueError, TypeError, zipfile.BadZipFile):
        return None


def to_json(value: Any, indent: int | None = None) -> str:
    """JSON of values that may hold NumPy's numbers and paths; non-finite numbers become null.

    >>> to_json({"a": np.float32(2), "b": float("nan"), "c": Path("x")})
    '{"a": 2.0, "b": null, "c": "x"}'
    """
    return json.dumps(_plain(value), indent=indent, allow_nan=False, ensure_ascii=False)


def read_json(path: Path, wanted: str) -> dict[str, Any]:
    """The object in a JSON file; if it fails, a ValueError says what to give instead."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror}); give {wanted}.") from error
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}); give {wanted}.") from error
    except RecursionError as error:
        raise ValueError(f"{path} is nested too deeply; give {wanted}.") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} holds a {type(values).__name__}, not an object; give {wanted}.")
    return values


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [_plain(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float):
        return value if isfinite(value) else None
    return value if value is None or isinstance(value, bool | int | str) else str(value)
