"""Named sources of images: embedded, tensorflow-datasets, or a folder, all without TensorFlow."""

from importlib.resources import files

import numpy as np

from ..config import DataConfig
from .cifar10 import CLASSES, find_archive, prepare_cifar10, read_archive
from .dataset import Dataset, Shape, Split, in_memory
from .folder import open_folder
from .prepared import is_prepared, open_prepared, open_records

_EMBEDDED = {"digits": "digits8.npz", "emoji": "emoji32.npz"}


def load_dataset(
    config: DataConfig, image_shape: Shape, split: Split = "train", *, prepare: bool = True
) -> Dataset:
    """Open a data set; missing, broken or wrongly shaped data raise a ValueError with the remedy.

    CIFAR-10 is prepared if necessary; with prepare=False its archive is only checked. Images of
    `tfds:` and `folder:` are cropped and resized to image_shape (H, W, C), H = W. Data without a
    test split raise MissingSplit.

    >>> load_dataset(DataConfig("digits"), (8, 8, 1)).size
    1437
    """
    source, _, name = config.source.partition(":")
    if source == "folder":
        return open_folder(name, image_shape, split)
    if source == "tfds":
        return open_prepared(name, config.directory(), image_shape, split)
    if source == "cifar10":
        return _cifar10(config, image_shape, split, prepare)
    with (files(__package__) / "embedded" / _EMBEDDED[source]).open("rb") as file:
        arrays = np.load(file)
        images, labels = arrays[f"{split}_image"], arrays[f"{split}_label"]
        classes = tuple(map(str, arrays["label_names"]))
    # Not flippable: a mirrored digit or letter has another meaning.
    return in_memory(source, images, image_shape, False, labels, classes)


def _cifar10(config: DataConfig, image_shape: Shape, split: Split, prepare: bool) -> Dataset:
    place, name = config.directory(), "cifar10"
    if not is_prepared(name, place):
        if prepare:
            prepare_cifar10(place, config.archive, config.archive_sha256)
        else:
            archive = find_archive(place, config.archive)
            name = f"cifar10, not yet prepared in {place}"
            if archive is None:  # to be downloaded: 50,000 images, of which only the shape is known
                nothing = np.broadcast_to(np.uint8(0), (50_000, 32, 32, 3))
                return in_memory(name, nothing, image_shape, True, [], CLASSES, "")
            labels, images = read_archive(archive, config.archive_sha256)[split]
            return in_memory(name, images, image_shape, True, labels, CLASSES, "")
    # 32×32 images fit in memory, where indexing is far faster than decoding a PNG per record.
    records = open_records(name, place, split)
    whole = records.read(list(range(records.size)))
    images, labels = (np.stack([record[key] for record in whole]) for key in ("image", "label"))
    return in_memory(name, images, image_shape, True, labels, records.classes)
