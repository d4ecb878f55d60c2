"""Image files as uint8 arrays of one shape, decoded once and then kept in the user's cache."""

import contextlib
import os
import shutil
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps
from rich.console import Console
from rich.progress import track

from ..files import CannotWrite, digest, whole
from .dataset import Shape, some

_PART = 1_000  # images that are decoded between two writes; fewer are not worth a cache
_NAMED = 5


class ImageFile(NamedTuple):
    """A file, the folders between it and the root, and what changes with its content."""

    path: str
    name: tuple[str, ...]
    size: int
    modified: int  # ns


def decode_files(
    files: list[ImageFile], image_shape: Shape, place: str
) -> tuple[np.ndarray, tuple[str, ...]]:
    """The images (N, H, W, C), and notes on them; a ValueError names the unreadable files.

    To decode 50,000 files takes 20 s of a core for 32×32 pixels and two minutes for 256×256, to
    look for changes 1 s. So the result is kept, one per `place` and shape, until a file changes.
    """
    notes: list[str] = []
    parts = _decode(files, image_shape, notes)
    if len(files) <= _PART:
        return np.concatenate(list(parts)), tuple(notes)
    key = digest(place, image_shape)[:16]
    folder = Path(os.path.expanduser(os.environ.get("XDG_CACHE_HOME") or "~/.cache"), "ddim_jax")
    path = folder / "images" / f"{key}-{digest(files)[:16]}.npy"
    with contextlib.suppress(OSError, ValueError):  # not there, or damaged
        return np.asarray(np.load(path, mmap_mode="r")), ()
    shape = (len(files), *image_shape)
    try:
        with whole(path) as partial:
            if shutil.disk_usage(partial.parent).free < 2 * np.prod(shape, dtype=float):
                raise OSError("too little space")
            with open(partial, "wb") as file:
                header = {"descr": "|u1", "fortran_order": False, "shape": shape}
                np.lib.format.write_array_header_1_0(file, header)
                for part in parts:
                    file.write(part.tobytes())
    except (CannotWrite, OSError):
        return np.concatenate(list(_decode(files, image_shape, notes))), tuple(notes)
    for old in path.parent.glob(f"{key}-*.npy"):
        with contextlib.suppress(OSError):  # Windows keeps what is open elsewhere
            if old != path:
                old.unlink()
    return np.asarray(np.load(path, mmap_mode="r")), tuple(notes)


def _decode(files: list[ImageFile], image_shape: Shape, notes: list[str]) -> Iterator[np.ndarray]:
    """The images in parts; all broken files are named at the end."""
    broken: list[str] = []
    animated: list[str] = []

    def load(file: ImageFile) -> np.ndarray:
        try:
            if file.modified < 0:
                raise OSError("it is not a regular file, or a link to nothing")
            with Image.open(file.path) as image:
                if getattr(image, "is_animated", False):
                    animated.append("/".join(file.name))
                return fit(image, image_shape)
        except Exception as error:  # on damaged files Pillow raises anything
            reason = (str(error) or type(error).__name__).splitlines()[0]
            broken.append(f"{readable(file.path)} is not a readable image ({reason})")
            return np.zeros(image_shape, np.uint8)

    starts = range(0, len(files), _PART)
    progress = Console(stderr=True)
    hidden = len(starts) == 1 or not progress.is_terminal
    with ThreadPoolExecutor() as pool, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, on damaged metadata and on large images
        for start in track(starts, "images", console=progress, transient=True, disable=hidden):
            yield np.stack(list(pool.map(load, files[start : start + _PART])))
    if broken:
        broken.sort()
        more = f"; and {len(broken) - _NAMED} more" if len(broken) > _NAMED else ""
        them = "it" if len(broken) == 1 else f"these {len(broken)} of {len(files)}"
        raise ValueError(f"{'; '.join(broken[:_NAMED])}{more}; repair {them} or remove {them}.")
    if animated:
        notes.append(f"of animated images the first frame is taken: {some(sorted(animated))}")


def fit(image: Image.Image, image_shape: Shape) -> np.ndarray:
    """The centre square, upright and resized, as grey or as RGB on white."""
    size, channels = image_shape[0], image_shape[2]
    image = _eight_bits(ImageOps.exif_transpose(image))
    if image.has_transparency_data:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    image = image.convert("L" if channels == 1 else "RGB")
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    # Cropped first: the filter would otherwise reach beyond the square.
    square = image.crop((left, top, left + side, top + side))
    return np.asarray(square.resize((size, size), Image.Resampling.LANCZOS)).reshape(image_shape)


def _eight_bits(image: Image.Image) -> Image.Image:
    """65,536 levels of grey as 256; Pillow's own conversion clips them."""
    if image.mode[0] not in "IF":
        return image
    levels = np.asarray(image)
    if image.mode == "F" or levels.min() < 0 or levels.max() > 65535:
        raise ValueError("its numbers have no known range; save it with 8 or 16 bits")
    return Image.fromarray(np.rint(levels / 257).astype(np.uint8))


def readable(path: str) -> str:
    """A path that can be printed, whatever its bytes are."""
    return path.encode(errors="surrogateescape").decode(errors="replace")
