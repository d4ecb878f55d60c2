"""Named sources of images: embedded, through tensorflow-datasets, or a folder. None of them needs TensorFlow."""

import importlib.resources
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Int, UInt8
from PIL import Image

from ..config import DataConfig
from .cifar10 import prepare_cifar10

Split = Literal["train", "test"]
Images = UInt8[np.ndarray, "B H W C"]


class Dataset(NamedTuple):
    """Images with random access: `read(indices (B,)) → uint8 (B, H, W, C)` for indices below `size`."""

    name: str
    size: int
    shape: tuple[int, int, int]
    flippable: bool
    read: Callable[[Int[np.ndarray, " B"]], Images]


def load_dataset(config: DataConfig, image_shape: tuple[int, int, int], split: Split = "train") -> Dataset:
    """Open a data set.

    Args:
        config: its source and where its files are.
        image_shape: (H, W, C) that is wanted, H = W; `tfds:` and `folder:` images are resized and cropped to it.
        split: "train" or "test"; a folder has "train" only.

    Returns:
        The data set. CIFAR-10 is prepared first if it is not.

    Raises:
        ValueError: data that are missing, broken or of another shape; the message says what to put where.

    >>> load_dataset(DataConfig("digits"), (8, 8, 1)).size
    1437
    """
    kind, _, name = config.source.partition(":")
    if kind == "folder":
        return _folder(Path(name).expanduser(), image_shape, split)
    if kind == "tfds":
        return _tfds(name, config.directory(), image_shape, split)
    if kind == "cifar10":
        prepare_cifar10(config.directory(), config.archive, config.archive_sha256)
        # 32×32 images fit in memory, where a gather is far faster than decoding a PNG for every record.
        records = _records("cifar10", config.directory(), split)
        images = np.stack([record["image"] for record in records.__getitems__(list(range(len(records))))])
        return _in_memory("cifar10", images, image_shape, flippable=True)
    with importlib.resources.files(__package__).joinpath("embedded", _EMBEDDED[kind]).open("rb") as file:
        images = np.load(file)[f"{split}_image"]
    return _in_memory(kind, images, image_shape, flippable=False)  # digits and letters are not what they were when mirrored


_EMBEDDED = {"digits": "digits8.npz", "emoji": "emoji32.npz"}
_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"}


def _in_memory(name: str, images: Images, image_shape: tuple[int, int, int], flippable: bool) -> Dataset:
    if images.shape[1:] != image_shape:
        height, _, channels = images.shape[1:]
        raise ValueError(
            f"{name} has images of shape {images.shape[1:]}, the model takes {image_shape}: "
            f"use --model.image-size {height} --model.image-channels {channels}."
        )
    return Dataset(name, len(images), image_shape, flippable, images.__getitem__)


def _tfds(name: str, data_dir: Path, image_shape: tuple[int, int, int], split: Split) -> Dataset:
    records = _records(name, data_dir, split)

    def fit(image: np.ndarray) -> np.ndarray:
        return _fit(Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image), image_shape)

    def read(indices: np.ndarray) -> Images:
        # One read of many records is far faster than many reads of one.
        return np.stack([fit(record["image"]) for record in records.__getitems__(indices.tolist())])

    return Dataset(name, len(records), image_shape, True, read)


def _records(name: str, data_dir: Path, split: Split) -> Any:
    """The records of a prepared data set with random access, each a dict with an `image`."""
    import tensorflow_datasets as tfds

    fix = f"`tfds build {name} --data_dir {data_dir} --file_format array_record` prepares it (that may need TensorFlow)"
    try:
        builder = tfds.builder(name, data_dir=str(data_dir), try_gcs=False)
    except (tfds.core.registered.DatasetNotFoundError, AssertionError) as error:
        raise ValueError(f"tensorflow-datasets knows no data set {name!r}, and {data_dir} holds none of that name.") from error
    if not builder.is_prepared():
        raise ValueError(f"the data set {name!r} is not prepared in {data_dir}: {fix}.")
    splits, features = sorted(builder.info.splits), sorted(builder.info.features)
    if split not in splits or "image" not in features:
        raise ValueError(f"the data set {name!r} has splits {splits} and features {features}; it needs {split!r} and 'image'.")
    try:
        return builder.as_data_source(split)
    except NotImplementedError as error:
        raise ValueError(
            f"the data set {name!r} in {data_dir} is not stored as array_record: {fix}; or use another --data.data-dir."
        ) from error


def _folder(directory: Path, image_shape: tuple[int, int, int], split: Split) -> Dataset:
    if split != "train":
        raise ValueError(f"a folder has no {split} split; only 'train' can be read from {directory}.")
    if not directory.is_dir():
        raise ValueError(f"{directory} is not a directory; give folder:PATH with the path of a directory of images.")
    paths = sorted(path for path in directory.rglob("*") if path.suffix.lower() in _SUFFIXES)
    if not paths:
        raise ValueError(f"{directory} holds no images ({', '.join(sorted(_SUFFIXES))}); give the directory that has them.")

    def load(path: Path) -> np.ndarray:
        try:
            with Image.open(path) as image:
                return _fit(image, image_shape)
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise ValueError(f"{path} is not a readable image ({error}); repair it or remove it.") from error

    # All are decoded at once: a broken one is found before training starts, and a step then costs a gather.
    with ThreadPoolExecutor() as pool:
        images = np.stack(list(pool.map(load, paths)))
    return _in_memory(str(directory), images, image_shape, flippable=True)


def _fit(image: Image.Image, image_shape: tuple[int, int, int]) -> np.ndarray:
    """The centre square in the wanted size, as grey or as RGB on white."""
    size, channels = image_shape[0], image_shape[2]
    if image.has_transparency_data:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    image = image.convert("L" if channels == 1 else "RGB")
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    # Cropped first: the filter would otherwise reach beyond the square.
    image = image.crop((left, top, left + side, top + side)).resize((size, size), Image.Resampling.LANCZOS)
    return np.asarray(image).reshape(image_shape)
