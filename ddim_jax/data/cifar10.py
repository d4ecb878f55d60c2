"""CIFAR-10 through tensorflow-datasets, prepared from the official archive without TensorFlow.

The stock builder extracts and encodes with TensorFlow. Here its description of the data set and its
file layout are kept, so `tfds.load("cifar10")` can read the result; the records are made with
`tarfile` and Pillow.
"""

import hashlib
import http.client
import shutil
import sys
import tarfile
import threading
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rich.progress import Progress

URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
_RECORD = 1 + 32 * 32 * 3  # label, then the image, channels first
_FILES = {"train": [f"data_batch_{i}.bin" for i in range(1, 6)], "test": ["test_batch.bin"]}
_TIMEOUT = 3.0  # seconds for the server to answer


def is_prepared(data_dir: Path) -> bool:
    """Whether data_dir holds CIFAR-10, without importing tensorflow-datasets."""
    return any(data_dir.glob("cifar10/*/dataset_info.json"))


def prepare_cifar10(data_dir: Path, archive: str, sha256: str) -> None:
    """Prepare CIFAR-10 as array_record in tensorflow-datasets' data_dir, unless it is there.

    `archive` is the path of cifar-10-binary.tar.gz; if empty, the one in data_dir, downloaded if
    absent. A missing or damaged archive raises a ValueError, and no partial files stay.
    """
    if is_prepared(data_dir):
        return
    path = Path(archive).expanduser() if archive else data_dir / "cifar-10-binary.tar.gz"
    if not path.is_file():
        if archive:
            raise ValueError(
                f"--data.archive {path} does not exist; "
                f"give the path of cifar-10-binary.tar.gz from {URL}."
            )
        _download(path, sha256)
    _verify(path, sha256)
    _write(_read_archive(path), data_dir)


def _download(path: Path, sha256: str) -> None:
    """Fetch the archive to `path`, whole or not at all."""
    answer: list[Any] = []

    def ask() -> None:
        try:
            answer.append(urllib.request.urlopen(URL, timeout=_TIMEOUT))
        except (OSError, http.client.HTTPException) as error:
            answer.append(error)

    # In a thread, since a socket's time limit does not cover a DNS server that does not answer.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(_TIMEOUT + 0.5)
    response: Any = answer[0] if answer else TimeoutError("no answer")
    if isinstance(response, urllib.error.HTTPError):
        response.close()
    if isinstance(response, Exception):
        raise ValueError(
            f"CIFAR-10 is not prepared in {path.parent} and cannot be downloaded "
            f"({getattr(response, 'reason', response)}); "
            f"put cifar-10-binary.tar.gz from {URL} at {path}."
        )
    partial = path.with_name(path.name + ".partial")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with response, Progress(transient=True) as progress, open(partial, "wb") as file:
            task = progress.add_task("CIFAR-10", total=response.length)
            while chunk := response.read(1 << 20):
                file.write(chunk)
                progress.advance(task, len(chunk))
        _verify(partial, sha256)
        partial.replace(path)
    except (OSError, http.client.HTTPException) as error:
        raise ValueError(
            f"the download of {URL} was interrupted ({error}); "
            f"run the command again, or put the file at {path}."
        ) from error
    finally:
        partial.unlink(missing_ok=True)


def _verify(path: Path, sha256: str) -> None:
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != sha256:
        raise ValueError(
            f"{path} has the SHA-256 {digest} and should have {sha256}; it is damaged: "
            f"remove it and fetch it again from {URL}."
        )


def _read_archive(path: Path) -> dict[str, np.ndarray]:
    """The records of each split, (N, 3073) uint8, checked before anything is written."""
    records = {}
    try:
        with tarfile.open(path) as archive:
            for split, names in _FILES.items():
                files = [archive.extractfile(f"cifar-10-batches-bin/{name}") for name in names]
                parts = [np.frombuffer(file.read() if file else b"", np.uint8) for file in files]
                records[split] = np.concatenate([part.reshape(-1, _RECORD) for part in parts])
    except (tarfile.TarError, OSError, EOFError, KeyError, ValueError) as error:
        raise ValueError(
            f"{path} is not the CIFAR-10 binary archive ({error}); fetch it again from {URL}."
        ) from error
    for split, rows in records.items():
        largest = rows[:, 0].max(initial=0)
        if not len(rows) or largest > 9:
            raise ValueError(
                f"{path} has {len(rows)} {split} records with labels up to {largest}; "
                "CIFAR-10 has labels 0 to 9."
            )
    return records


def _write(records: dict[str, np.ndarray], data_dir: Path) -> None:
    """Write the records to the place and in the format of the stock builder."""
    import tensorflow_datasets as tfds
    from tensorflow_datasets.image_classification import cifar

    with tfds.core.registered.skip_registration():

        class Cifar10(cifar.Cifar10):
            """The stock data set, with records that need no TensorFlow."""

            def _split_generators(self, dl_manager: Any) -> Any:
                self.info.features["label"].names = [
                    "airplane", "automobile", "bird", "cat", "deer",
                    "dog", "frog", "horse", "ship", "truck",
                ]  # fmt: skip
                return {
                    split: self._generate_examples(split, rows) for split, rows in records.items()
                }

            def _generate_examples(self, split: str, rows: np.ndarray) -> Any:
                for i, row in enumerate(rows):
                    image = Image.fromarray(row[1:].reshape(3, 32, 32).transpose(1, 2, 0))
                    yield i, {"id": f"{split}_{i:05d}", "image": image, "label": int(row[0])}

    builder = Cifar10(data_dir=str(data_dir), file_format="array_record")
    parent = Path(builder.data_dir).parent
    for left_over in parent.glob("*incomplete*"):  # from an interrupted preparation
        shutil.rmtree(left_over)
    if not sys.stderr.isatty():
        tfds.disable_progress_bar()
    builder.download_and_prepare()
