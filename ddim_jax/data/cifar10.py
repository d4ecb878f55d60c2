"""CIFAR-10 through tensorflow-datasets, prepared from the official archive without TensorFlow.

The stock builder extracts and encodes with TensorFlow. Here its description of the data set and its
file layout are kept, so `tfds.load("cifar10")` can read the result; the records are made with
`tarfile` and Pillow.
"""

import contextlib
import http.client
import shutil
import sys
import tarfile
import tempfile
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rich.console import Console
from rich.progress import Progress

from ..files import file_sha256, whole
from .prepared import is_prepared

URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_NAME = "cifar-10-binary.tar.gz"
_RECORD = 1 + 32 * 32 * 3  # label, then the image, channels first
_FILES = {"train": [f"data_batch_{i}.bin" for i in range(1, 6)], "test": ["test_batch.bin"]}
_ANSWER = 10.0  # seconds for the server to answer
_SILENCE = 30.0  # seconds without a byte that end a download
_OLD = 24 * 3600.0  # seconds after which an unfinished file was left by a process that was killed
_Split = tuple[np.ndarray, np.ndarray]  # labels (N,), images (N, 32, 32, 3)


def find_archive(data_dir: Path, archive: str) -> Path | None:
    """The archive that --data.archive names, or the one in data_dir; None if it is not there."""
    path = Path(archive or data_dir / _NAME).expanduser()
    if path.is_file():
        return path
    if archive:
        raise ValueError(
            f"--data.archive {path} does not exist; "
            f"give the path of cifar-10-binary.tar.gz from {URL}."
        )
    return None


def prepare_cifar10(data_dir: Path, archive: str, sha256: str) -> None:
    """Make CIFAR-10 as array_record in tensorflow-datasets' data_dir.

    A missing or damaged archive raises a ValueError, and no partial files stay. Several processes
    may do this at once: each works in a folder of its own, and the first to end wins.
    """
    path = find_archive(data_dir, archive)
    try:
        _remove_left_overs(data_dir)
        if path is None:
            path = data_dir / _NAME
            _download(path, sha256)
        _write(read_archive(path, sha256), data_dir)
    except OSError as error:
        raise ValueError(
            f"CIFAR-10 cannot be prepared in {data_dir} ({error}); choose another --data.data-dir."
        ) from error


def read_archive(path: Path, sha256: str) -> dict[str, _Split]:
    """The labels and images of each split; a ValueError says what is wrong with the archive."""
    digest = file_sha256(path)
    if digest != sha256:
        raise ValueError(
            f"{path} has the SHA-256 {digest} and should have {sha256}: if it is an archive of "
            f"your own, give --data.archive-sha256 {digest}; if not, it is damaged: remove it and "
            f"fetch it again from {URL}."
        )
    splits = {}
    try:
        with tarfile.open(path) as archive:
            for split, names in _FILES.items():
                files = [archive.extractfile(f"cifar-10-batches-bin/{name}") for name in names]
                parts = [np.frombuffer(file.read() if file else b"", np.uint8) for file in files]
                rows = np.concatenate([part.reshape(-1, _RECORD) for part in parts])
                images = rows[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
                splits[split] = (rows[:, 0], images)
    except (tarfile.TarError, OSError, EOFError, KeyError, ValueError) as error:
        raise ValueError(
            f"{path} is not the CIFAR-10 binary archive ({error}); fetch it again from {URL}."
        ) from error
    for split, (labels, _) in splits.items():
        largest = labels.max(initial=0)
        if not len(labels) or largest > 9:
            raise ValueError(
                f"{path} has {len(labels)} {split} records with labels up to {largest}; "
                "CIFAR-10 has labels 0 to 9."
            )
    return splits


def _download(path: Path, sha256: str) -> None:
    """Fetch the archive to `path`, whole or not at all."""
    response = _ask(path)
    print(f"downloading {URL} to {path}", file=sys.stderr)
    problem = f"the download of {URL} was interrupted ({{}}); run the command again, or put the "
    problem += f"file at {path}."
    with whole(path) as partial:
        progress = Progress(console=Console(stderr=True), transient=True)
        with response, progress, open(partial, "wb") as file:
            task = progress.add_task("CIFAR-10", total=response.length)
            while chunk := _next(response, problem):
                file.write(chunk)
                progress.advance(task, len(chunk))
        if response.length:  # of a connection that was closed early
            raise ValueError(problem.format(f"{response.length:,} bytes are missing"))
        if (digest := file_sha256(partial)) != sha256:
            raise ValueError(
                f"{URL} sent a file with the SHA-256 {digest}, which should be {sha256}; it is "
                f"damaged or another one: put the right file at {path}."
            )


def _next(response: Any, problem: str) -> bytes:
    try:
        return response.read(1 << 16)
    except (OSError, http.client.HTTPException) as error:
        raise ValueError(problem.format(error)) from error


def _ask(path: Path) -> Any:
    """The server's answer, with the content still to be read."""
    answer: list[Any] = []

    def ask() -> None:
        try:
            answer.append(urllib.request.urlopen(URL, timeout=_SILENCE))
        except (OSError, http.client.HTTPException) as error:
            answer.append(error)

    # In a thread, since a socket's time limit does not cover a DNS server that does not answer.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(_ANSWER)
    response: Any = answer[0] if answer else TimeoutError(f"no answer in {_ANSWER:g} s")
    if isinstance(response, urllib.error.HTTPError):
        response.close()
    if isinstance(response, Exception):
        raise ValueError(
            f"CIFAR-10 is not prepared in {path.parent} and cannot be downloaded "
            f"({getattr(response, 'reason', response)}); "
            f"put cifar-10-binary.tar.gz from {URL} at {path}."
        )
    return response


def _write(splits: dict[str, _Split], data_dir: Path) -> None:
    """Write the records to the place and in the format of the stock builder."""
    import tensorflow_datasets as tfds
    from tensorflow_datasets.image_classification import cifar

    with tfds.core.registered.skip_registration():

        class Cifar10(cifar.Cifar10):
            """The stock data set, with records that need no TensorFlow."""

            def _split_generators(self, dl_manager: Any) -> Any:
                self.info.features["label"].names = list(CLASSES)
                return {split: self._generate_examples(split, *splits[split]) for split in splits}

            def _generate_examples(self, split: str, labels: Any, images: Any) -> Any:
                for i, (label, image) in enumerate(zip(labels, images, strict=True)):
                    pixels = Image.fromarray(np.ascontiguousarray(image))
                    yield i, {"id": f"{split}_{i:05d}", "image": pixels, "label": int(label)}

            def _log_download_bytes(self) -> None:
                """It says "Downloading", which is not so."""

            _log_download_done = _log_download_bytes

    data_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".cifar10-", dir=data_dir) as private:
        builder = Cifar10(data_dir=private, file_format="array_record")
        if not sys.stderr.isatty():
            tfds.disable_progress_bar()
        builder.download_and_prepare()
        made = Path(builder.data_dir)
        place = data_dir / made.relative_to(private)
        place.parent.mkdir(exist_ok=True)
        try:
            made.rename(place)
        except OSError:
            if not is_prepared("cifar10", data_dir):  # another process was not faster
                raise


def _remove_left_overs(data_dir: Path) -> None:
    """Remove what killed processes left, but not what others are writing."""
    for path in [*data_dir.glob(".cifar10-*"), *data_dir.glob(f".partial-*-{_NAME}")]:
        with contextlib.suppress(OSError):
            if path.stat().st_mtime < time.time() - _OLD:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
