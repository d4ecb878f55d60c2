"""Sets of images by name: a data set, a folder, an .npz file, or only their statistics."""

import contextlib
import zipfile
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from ..config import DataConfig, presets
from ..data import load_dataset
from ..metrics import Statistics, load_recipe, load_statistics
from ..settings import check_ranges

_LOOKED_AT = 100  # images of a folder, for their shape
_IMAGE_KEYS = ("images", "arr_0")


class ImageSet(NamedTuple):
    """uint8 images (N, H, W, C), or None and their statistics, with the recipe of these."""

    name: str
    images: np.ndarray | None
    statistics: Statistics | None = None
    recipe: Mapping[str, Any] = MappingProxyType({})


def open_images(text: str, flag: str, shape: tuple[int, int, int] | None = None) -> ImageSet:
    """The images that `text` names; a folder's and tfds:NAME's are cropped and resized to `shape`.

    >>> open_images("digits@test", "--against").images.shape
    (360, 8, 8, 1)
    """
    if text.endswith(".npz"):
        return _from_file(Path(text).expanduser())
    name, _, split = text.partition("@")
    if split not in ("", "train", "test"):
        raise ValueError(f"{flag} is {text}; after @ comes train or test.")
    if Path(name).expanduser().is_dir():
        name = f"folder:{name}"
    data = DataConfig(name)
    try:
        check_ranges(data)
    except ValueError as error:
        raise ValueError(
            f"{flag} is {text}; give FILE.npz, a folder of images, or a data set: digits, emoji, "
            "cifar10 or tfds:NAME, with @test for its test split."
        ) from error
    if shape is None or name in presets():
        shape = _own_shape(name)
    dataset = load_dataset(data, shape, "test" if split == "test" else "train")
    return ImageSet(f"{dataset.name} {split or 'train'}", dataset.read(np.arange(dataset.size)))


def check_shapes(one: ImageSet, other: ImageSet) -> None:
    """Refuse images of different sizes, whose pixels cannot be compared."""
    if one.images is not None and other.images is not None:
        shapes = one.images.shape[1:], other.images.shape[1:]
        if shapes[0] != shapes[1]:
            raise ValueError(
                f"{one.name} has images of shape {shapes[0]} and {other.name} of {shapes[1]}; only "
                "--features inception compares images of different shapes."
            )


def check_recipe(reference: ImageSet, recipe: Mapping[str, str]) -> None:
    """Refuse statistics that say that they are of other features."""
    for key, value in recipe.items() if reference.recipe else ():
        if reference.recipe.get(key) != value:
            raise ValueError(
                f"{reference.name} has statistics of {key} {reference.recipe.get(key)}, and the "
                f"images would have {key} {value}; both must be made alike (--features, --family)."
            )


def _from_file(path: Path) -> ImageSet:
    """Images as `generate` and ADM write them, or statistics."""
    try:
        with np.load(path, allow_pickle=False) as file:
            found = next((file[key] for key in _IMAGE_KEYS if key in file.files), None)
    except OSError as error:
        raise ValueError(
            f"{path} cannot be read ({error.strerror or error}); give an .npz file."
        ) from error
    except (EOFError, ValueError, zipfile.BadZipFile):  # `load_statistics` says what is wrong
        found = None
    if found is None:
        return ImageSet(str(path), None, load_statistics(path), load_recipe(path))
    if found.dtype != np.uint8 or found.ndim != 4 or found.shape[3] not in (1, 3) or len(found) < 2:
        raise ValueError(
            f"{path} has images of shape {found.shape} and dtype {found.dtype}; give uint8 "
            "(N, H, W, C), C = 1 or 3, N ≥ 2."
        )
    return ImageSet(str(path), found)


def _own_shape(source: str) -> tuple[int, int, int]:
    """The shape of a data set's images, or of its first ones; grey only if these all are."""
    if source in presets():
        return presets()[source].model.image_shape()
    if source.startswith("folder:"):
        files = sorted(Path(source.removeprefix("folder:")).expanduser().rglob("*"))
        seen: list[tuple[int, bool]] = []
        for file in files:
            with contextlib.suppress(OSError), Image.open(file) as image:
                seen.append((min(image.size), image.mode in ("1", "L", "I;16")))
            if len(seen) == _LOOKED_AT:
                break
        if seen:  # else `load_dataset` says what is wrong
            return seen[0][0], seen[0][0], 1 if all(grey for _, grey in seen) else 3
        return 32, 32, 3
    raise ValueError(
        f"{source} has images of a size that is not known here; write them to a folder or an "
        ".npz file, or compare them with a run: ablate --against."
    )
