"""Named sources of images: embedded, tensorflow-datasets, or a folder, all without TensorFlow."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Int, UInt8
from PIL import Image

from ..config import DataConfig
from .cifar10 import prepare_cifar10

Split = Literal["train", "test"]
Images = UInt8[np.ndarray, "B H W C"]
Indices = Int[np.ndarray, " B"]
_EMBEDDED = {"digits": "digits8.npz", "emoji": "emoji32.npz"}
_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"}


class Dataset(NamedTuple):
    """Images with random access; a label is the index of the image's class in `classes`."""

    name: str
    size: int
    shape: tuple[int, int, int]
    flippable: bool
    read: Callable[[Indices], Images]
    classes: tuple[str, ...] = ()
    label: Callable[[Indices], Int[np.ndarray, " B"]] | None = None


def load_dataset(
    config: DataConfig, image_shape: tuple[int, int, int], split: Split = "train"
) -> Dataset:
    """Open a data set; missing, broken or wrongly shaped data raise a ValueError with the remedy.

    CIFAR-10 is prepared if necessary. Images of `tfds:` and `folder:` are cropped and resized to
    image_shape (H, W, C), H = W. A folder has only the split "train".

    >>> load_dataset(DataConfig("digits"), (8, 8, 1)).size
    1437
    """
    source, _, name = config.source.partition(":")
    if source == "folder":
        return _folder(Path(name).expanduser(), image_shape, split)
    if source == "tfds":
        return _tfds(name, config.directory(), image_shape, split)
    if source == "cifar10":
        prepare_cifar10(config.directory(), config.archive, config.archive_sha256)
        # 32×32 images fit in memory, where indexing is far faster than decoding a PNG per record.
        records, classes = _records("cifar10", config.directory(), split)
        whole = records.__getitems__(list(range(len(records))))
        images, labels = (np.stack([record[key] for record in whole]) for key in ("image", "label"))
        return _in_memory("cifar10", images, image_shape, True, labels, classes)
    with (files(__package__) / "embedded" / _EMBEDDED[source]).open("rb") as file:
        arrays = np.load(file)
        images, labels = arrays[f"{split}_image"], arrays[f"{split}_label"]
        classes = tuple(map(str, arrays["label_names"]))
    # Not flippable: a mirrored digit or letter has another meaning.
    return _in_memory(source, images, image_shape, False, labels, classes)


def _in_memory(
    name: str,
    images: Images,
    image_shape: tuple[int, int, int],
    flippable: bool,
    labels: Any,
    classes: tuple[str, ...],
) -> Dataset:
    if images.shape[1:] != image_shape:
        height, _, channels = images.shape[1:]
        raise ValueError(
            f"{name} has images of shape {images.shape[1:]}, the model takes {image_shape}: "
            f"use --model.image-size {height} --model.image-channels {channels}."
        )
    label = np.asarray(labels, np.int32).__getitem__ if classes else None
    return Dataset(name, len(images), image_shape, flippable, images.__getitem__, classes, label)


def _tfds(name: str, data_dir: Path, image_shape: tuple[int, int, int], split: Split) -> Dataset:
    records, classes = _records(name, data_dir, split)
    bare, _ = _records(name, data_dir, split, images=False)

    def fit(image: np.ndarray) -> np.ndarray:
        return _fit(Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image), image_shape)

    def read(indices: np.ndarray) -> Images:
        # One read of many records is far faster than many reads of one record.
        return np.stack([fit(record["image"]) for record in records.__getitems__(indices.tolist())])

    def label(indices: np.ndarray) -> np.ndarray:
        return np.array(
            [record["label"] for record in bare.__getitems__(indices.tolist())], np.int32
        )

    return Dataset(name, len(records), image_shape, True, read, classes, label if classes else None)


def _records(
    name: str, data_dir: Path, split: Split, images: bool = True
) -> tuple[Any, tuple[str, ...]]:
    """The records of a prepared data set, dicts with an `image`, and the names of its classes."""
    import tensorflow_datasets as tfds

    fix = (
        f"`tfds build {name} --data_dir {data_dir} --file_format array_record` prepares it "
        "(that may need TensorFlow)"
    )
    try:
        builder = tfds.builder(name, data_dir=str(data_dir), try_gcs=False)
    except (tfds.core.registered.DatasetNotFoundError, AssertionError) as error:
        raise ValueError(
            f"tensorflow-datasets knows no data set {name!r}, and {data_dir} has none of that name."
        ) from error
    if not builder.is_prepared():
        raise ValueError(f"the data set {name!r} is not prepared in {data_dir}: {fix}.")
    splits, features = sorted(builder.info.splits), sorted(builder.info.features)
    label = builder.info.features["label"] if "label" in features else None
    classes = tuple(label.names) if isinstance(label, tfds.features.ClassLabel) else ()
    if split not in splits or "image" not in features:
        raise ValueError(
            f"the data set {name!r} has splits {splits} and features {features}; "
            f"it needs {split!r} and 'image'."
        )
    try:
        decoders = None if images else {"image": tfds.decode.SkipDecoding()}
        return builder.as_data_source(split, decoders=decoders), classes
    except NotImplementedError as error:
        raise ValueError(
            f"the data set {name!r} in {data_dir} is not stored as array_record: {fix}; "
            "or use another --data.data-dir."
        ) from error


def _folder(directory: Path, image_shape: tuple[int, int, int], split: Split) -> Dataset:
    if split != "train":
        raise ValueError(
            f"a folder has no {split} split; only 'train' can be read from {directory}."
        )
    if not directory.is_dir():
        raise ValueError(
            f"{directory} is not a directory; give folder:PATH, the path of a directory of images."
        )
    paths = sorted(path for path in directory.rglob("*") if path.suffix.lower() in _SUFFIXES)
    if not paths:
        raise ValueError(
            f"{directory} holds no images ({', '.join(sorted(_SUFFIXES))}); "
            "give the directory that has them."
        )

    def load(path: Path) -> np.ndarray:
        try:
            with Image.open(path) as image:
                return _fit(image, image_shape)
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise ValueError(
                f"{path} is not a readable image ({error}); repair it or remove it."
            ) from error

    # All are decoded at once: broken images are found before training, and a step only indexes.
    with ThreadPoolExecutor() as pool:
        images = np.stack(list(pool.map(load, paths)))
    # Subdirectories are classes if every image is in one.
    parents = [path.relative_to(directory).parts[0] for path in paths if path.parent != directory]
    classes = tuple(sorted(set(parents))) if len(parents) == len(paths) else ()
    labels = [classes.index(name) for name in parents if classes]
    return _in_memory(str(directory), images, image_shape, True, labels, classes)


def _fit(image: Image.Image, image_shape: tuple[int, int, int]) -> np.ndarray:
    """The centre square, resized, as grey or as RGB on white."""
    size, channels = image_shape[0], image_shape[2]
    if image.has_transparency_data:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    image = image.convert("L" if channels == 1 else "RGB")
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    # Cropped first: the filter would otherwise reach beyond the square.
    square = image.crop((left, top, left + side, top + side))
    return np.asarray(square.resize((size, size), Image.Resampling.LANCZOS)).reshape(image_shape)
