"""Fetch a file once: resumed after a break, verified, and under its name only when complete."""

import http.client
import os
import urllib.error
import urllib.request
from pathlib import Path
from typing import NamedTuple

from filelock import FileLock
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TransferSpeedColumn

from .files import file_sha256

_TIMEOUT = 10.0  # seconds without a byte


class Remote(NamedTuple):
    """A published file that never changes."""

    url: str
    size: int
    sha256: str


def fetch(remote: Remote, path: Path) -> None:
    """Download a file to `path` unless it is there; a ValueError says what went wrong.

    After a break, the next call continues from `path`.partial. If several processes call it, one
    downloads and the others wait.
    """
    if path.is_file():
        return
    partial = path.with_name(f"{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_name(f".{path.name}.lock")):
            if path.is_file():  # another process was faster
                return
            _download(remote, partial)
            found = file_sha256(partial)
            if found == remote.sha256:
                partial.replace(path)
                return
            partial.unlink()
    except (OSError, http.client.HTTPException) as error:
        if isinstance(error, urllib.error.HTTPError):
            error.close()
        kept = _size(partial)
        resume = f"try again to continue after {kept} of {remote.size} bytes, or " if kept else ""
        raise ValueError(
            f"{remote.url} cannot be downloaded ({getattr(error, 'reason', error)}); "
            f"{resume}put the file at {path}."
        ) from error
    raise ValueError(
        f"{remote.url} gave a damaged file (SHA-256 {found} instead of {remote.sha256}), which was "
        f"removed; try again, or put the file at {path}."
    )


def _download(remote: Remote, partial: Path) -> None:
    """Append to `partial` what it lacks."""
    start = _size(partial)
    if start >= remote.size:  # a process was killed between the last byte and the check
        return
    request = urllib.request.Request(remote.url, headers={"Range": f"bytes={start}-"})
    with urllib.request.urlopen(request, timeout=_TIMEOUT) as response:
        if response.status != http.HTTPStatus.PARTIAL_CONTENT:  # the whole file again
            start = 0
        if response.length not in (None, remote.size - start):
            raise ConnectionError(f"it has {start + response.length} bytes, not {remote.size}")
        console = Console(stderr=True)
        console.print(f"downloading {remote.url}", soft_wrap=True)
        columns = BarColumn(), DownloadColumn(), TransferSpeedColumn()
        progress = Progress(
            *columns, console=console, transient=True, disable=not console.is_terminal
        )
        with progress, open(partial, "ab") as file:
            file.truncate(start)
            task = progress.add_task("", total=remote.size, completed=start)
            while chunk := response.read1(min(1 << 16, remote.size - start)):
                start += file.write(chunk)
                progress.update(task, completed=start)
    if start < remote.size:
        raise ConnectionError("the connection was closed early")


def _size(path: Path) -> int:
    return os.path.getsize(path) if os.path.isfile(path) else 0
