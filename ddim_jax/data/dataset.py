"""What a data set is: images by index, their classes, and what a run remembers of them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Int, UInt8

from ..files import digest, read_json, to_json, write

Split = Literal["train", "test"]
Shape = tuple[int, int, int]
Images = UInt8[np.ndarray, "B H W C"]
Indices = Int[np.ndarray, " B"]
_SHOWN = 10


class Dataset(NamedTuple):
    """Images with random access; a label is the index of the image's class in `classes`.

    `flippable` says whether a mirrored image is as good as the image: yes, no, or unknown (None).
    `fingerprint` changes with the data. `notes` are sentences about what was left out.
    """

    name: str
    size: int
    shape: Shape
    flippable: bool | None
    read: Callable[[Indices], Images]
    classes: tuple[str, ...] = ()
    label: Callable[[Indices], Int[np.ndarray, " B"]] | None = None
    fingerprint: str = ""
    notes: tuple[str, ...] = ()


class MissingSplit(ValueError):
    """The data have no such split."""


def in_memory(
    name: str,
    images: np.ndarray,
    image_shape: Shape,
    flippable: bool | None,
    labels: Any,
    classes: tuple[str, ...],
    fingerprint: str | None = None,
    notes: tuple[str, ...] = (),
) -> Dataset:
    """A data set of arrays; a ValueError says which shape the model must take."""
    if images.shape[1:] != image_shape:
        height, _, channels = images.shape[1:]
        raise ValueError(
            f"{name} has images of shape {images.shape[1:]}, the model takes {image_shape}: "
            f"use --model.image-size {height} --model.image-channels {channels}."
        )
    label = np.asarray(labels, np.int32).__getitem__ if classes else None
    if fingerprint is None:
        fingerprint = digest(images, np.asarray(labels, np.int32), classes)
    return Dataset(
        name, len(images), image_shape, flippable, images.__getitem__, classes, label, fingerprint,
        notes,
    )  # fmt: skip


def mirrors(asked: bool | None, dataset: Dataset) -> bool:
    """Whether training mirrors images: as asked, or else where it is known to do no harm.

    >>> photos = Dataset("photos", 1, (8, 8, 3), None, lambda indices: ...)
    >>> digits = photos._replace(flippable=False)
    >>> mirrors(None, photos), mirrors(True, photos), mirrors(True, digits)
    (False, True, False)
    """
    if dataset.flippable is None:
        return bool(asked)
    return dataset.flippable and asked is not False


def about(dataset: Dataset, mirrored: bool) -> list[str]:
    """What to say of the data at the start of a run, one sentence per line."""
    if mirrored:
        mirroring = "images are mirrored with probability ½ (--data.flip False: never)"
    elif dataset.flippable is False:
        mirroring = "images are not mirrored, since they show digits or letters"
    else:
        mirroring = "images are not mirrored (--data.flip True mirrors them)"
    lines = [mirroring, *dataset.notes]
    if dataset.classes:
        lines.insert(0, f"{len(dataset.classes)} classes: {some(dataset.classes)}")
    return lines


def some(names: Any) -> str:
    """The first few of many names.

    >>> some("abcdefghijklm")
    'a, b, c, d, e, f, g, h, i, j and 3 more'
    """
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def class_index(label: str, classes: tuple[str, ...], num_classes: int) -> int:
    """The index of a class that is given by its name, or by the index itself; names come first.

    >>> class_index("dog", ("cat", "dog"), 2), class_index("0", (), 2)
    (1, 0)
    >>> class_index("2", ("1", "10", "2"), 3)  # a folder's names in the order of letters
    2
    """
    if label in classes:
        return classes.index(label)
    if label.isascii() and label.isdecimal() and len(label) < 10 and int(label) < num_classes:
        return int(label)
    names = f", or a name: {some(classes)}" if classes else ""
    raise ValueError(
        f"--label is {label[:40]}; it must be an index from 0 to {num_classes - 1}{names}."
    )


def save_record(run: Path, dataset: Dataset, held_out: Dataset | None = None) -> None:
    """Write what a run remembers of its data, RUN/data.json."""
    record = _facts(dataset) | {"classes": dataset.classes}
    if held_out:
        record["held out"] = _facts(held_out)
    write(run / "data.json", to_json(record, indent=2) + "\n")


def check_record(run: Path, dataset: Dataset, held_out: Dataset | None = None) -> None:
    """Raise a ValueError if the data, or those held out, are not those that a run began with."""
    record = _record(run)
    kept = record.get("held out")
    _compare(run, "data", record, dataset)
    if held_out and isinstance(kept, dict):
        _compare(run, "data held out for the validation loss", kept, held_out)


def _facts(dataset: Dataset) -> dict[str, Any]:
    return {"name": dataset.name, "images": dataset.size, "fingerprint": dataset.fingerprint}


def _compare(run: Path, what: str, record: dict[str, Any], dataset: Dataset) -> None:
    before, now = record.get("fingerprint"), dataset.fingerprint
    if before and now and before != now:
        raise ValueError(
            f"the {what} changed since {run} began: {record.get('images')} images then, "
            f"{dataset.size} in {dataset.name} now, and the names, sizes or contents differ; "
            f"restore them, use another --out, or remove {run / 'data.json'} to go on with these."
        )


def run_classes(run: Path) -> tuple[str, ...]:
    """The names of the classes that a run was trained on; none if it did not save them."""
    names = _record(run).get("classes")
    return tuple(map(str, names)) if isinstance(names, list) else ()


def _record(run: Path) -> dict[str, Any]:
    path = run / "data.json"
    return read_json(path, "it back, or remove it") if path.exists() else {}
