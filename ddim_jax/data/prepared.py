"""Data sets that tensorflow-datasets has prepared, read without TensorFlow."""

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from ..files import digest
from .dataset import Dataset, Images, Indices, MissingSplit, Shape, Split
from .decode import fit

_NAME = re.compile(r"[A-Za-z]\w*(/[\w+.-]+)?(:\d+\.\d+\.\d+)?")
_TESTS = ("test", "validation")


class Records(NamedTuple):
    """Records by index, dicts of features; `labels` decodes no images."""

    size: int
    read: Callable[[list[int]], list[dict[str, Any]]]
    labels: Callable[[Indices], np.ndarray]
    classes: tuple[str, ...]
    fingerprint: str


def open_prepared(name: str, data_dir: Path, image_shape: Shape, split: Split) -> Dataset:
    """A data set by its name; its images are cropped and resized."""
    records = open_records(name, data_dir, split)

    def read(indices: Indices) -> Images:
        # One read of many records is far faster than many reads of one record.
        return np.stack([_fit(record["image"]) for record in records.read(indices.tolist())])

    def _fit(image: np.ndarray) -> np.ndarray:
        if image.dtype == np.uint16:
            image = np.rint(image / 257).astype(np.uint8)
        return fit(Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image), image_shape)

    label = records.labels if records.classes else None
    return Dataset(
        name, records.size, image_shape, None, read, records.classes, label, records.fingerprint
    )


def is_prepared(name: str, data_dir: Path) -> bool:
    """Whether data_dir holds the data set, whole."""
    return data_dir.is_dir() and _builder(name, data_dir).is_prepared()


def open_records(name: str, data_dir: Path, split: Split) -> Records:
    """The records of a split; what is not there or cannot be read raises a ValueError."""
    import tensorflow_datasets as tfds

    builder = _builder(name, data_dir)
    there = _check(builder, name, data_dir, split)
    paths = [os.fspath(path) for path in builder.info.splits[there].filepaths]
    try:
        sizes = [os.path.getsize(path) for path in paths]
        size, read = _source(builder, there, paths, None)
        _, bare = _source(builder, there, paths, {"image": tfds.decode.SkipDecoding()})
    except OSError as error:
        raise ValueError(
            f"the data set {name!r} is incomplete ({error}); remove {builder.data_dir}, and "
            "prepare it again."
        ) from error
    label = dict(builder.info.features).get("label")
    classes = tuple(label.names) if isinstance(label, tfds.features.ClassLabel) else ()
    fingerprint = digest(builder.info.full_name, there, sizes)

    def labels(indices: Indices) -> np.ndarray:
        return np.array([record["label"] for record in bare(indices.tolist())], np.int32)

    return Records(size, read, labels, classes, fingerprint)


def _check(builder: Any, name: str, data_dir: Path, split: Split) -> str:
    """The name of the split in a data set that can be read, or a ValueError."""
    fix = (
        f"`tfds build {name} --data_dir {data_dir} --file_format array_record` prepares it "
        "(that may need TensorFlow)"
    )
    if not builder.is_prepared():
        raise ValueError(f"the data set {name!r} is not prepared in {data_dir}: {fix}.")
    splits, features, stored = builder.info.splits, builder.info.features, builder.info.file_format
    if stored.value not in ("array_record", "tfrecord"):
        raise ValueError(
            f"the data set {name!r} in {data_dir} is stored as {stored.value}, not as array_record "
            f"or tfrecord: {fix}; or use another --data.data-dir."
        )
    if "image" not in features or features["image"].np_dtype not in (np.uint8, np.uint16):
        raise ValueError(
            f"the data set {name!r} has the features {sorted(features)}; "
            "it needs 'image', of 8 or 16 bits."
        )
    there = next((one for one in (_TESTS if split == "test" else (split,)) if one in splits), None)
    if there is None:
        raise MissingSplit(
            f"the data set {name!r} has the splits {sorted(splits)}; it needs {split!r}."
        )
    return there


def _builder(name: str, data_dir: Path) -> Any:
    import tensorflow_datasets as tfds

    if not _NAME.fullmatch(name):
        raise ValueError(
            f"--data.source is {'tfds:' + name!r}; give tfds:NAME, tfds:NAME/CONFIG or "
            "tfds:NAME/CONFIG:1.2.3, with letters, digits and _ in the name."
        )
    try:
        return tfds.builder(name, data_dir=str(data_dir), try_gcs=False)
    except (tfds.core.registered.DatasetNotFoundError, AssertionError) as error:
        raise ValueError(
            f"tensorflow-datasets knows no data set {name!r}, and {data_dir} has none of that name."
        ) from error
    except Exception as error:  # tensorflow-datasets raises anything, for damaged files too
        reason = (str(error) or type(error).__name__).strip().splitlines()[0]
        raise ValueError(
            f"the data set {name!r} cannot be opened in {data_dir} ({reason}); correct its name, "
            "or prepare it again."
        ) from error


def _source(
    builder: Any, split: str, paths: list[str], decoders: Any
) -> tuple[int, Callable[[list[int]], list[Any]]]:
    """The number of records, and records by index."""
    if builder.info.file_format.value == "array_record":
        source = builder.as_data_source(split, decoders=decoders)
        return len(source), source.__getitems__
    places = [place for path in paths for place in _places(path)]
    parse = builder.info.features.deserialize_example_np

    def read(indices: list[int]) -> list[Any]:
        return [parse(_bytes(*places[i]), decoders=decoders) for i in indices]

    return len(places), read


def _places(path: str) -> list[tuple[str, int, int]]:
    """(path, start, length) of each record of a TFRecord file: length, CRC, content, CRC."""
    places, end, position = [], os.path.getsize(path), 0
    with open(path, "rb") as file:
        while position < end:
            length = int.from_bytes(file.read(8), "little")
            places.append((path, position + 12, length))
            position = file.seek(position + length + 16)
    if position != end:
        raise ValueError(f"{path} is cut short; remove its folder, and prepare the data again.")
    return places


def _bytes(path: str, start: int, length: int) -> bytes:
    with open(path, "rb") as file:
        file.seek(start)
        return file.read(length)
