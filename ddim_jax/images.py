"""Images between uint8 and [−1, 1], and as a grid in a PNG."""

from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

_TILE = 48  # pixels that a tile of a grid has at least, so that a person can read an 8×8 digit
_GAP = 2


def to_unit_range(images: UInt8[np.ndarray, "B H W C"]) -> Float[np.ndarray, "B H W C"]:
    """uint8 images as float32 in [−1, 1].

    Equation: x = u/127.5 − 1.

    >>> to_unit_range(np.array([[[[0], [255]]]], np.uint8)).ravel().tolist()
    [-1.0, 1.0]
    """
    return images.astype(np.float32) / np.float32(127.5) - np.float32(1)


def to_uint8(x: Float[np.ndarray, "B H W C"]) -> UInt8[np.ndarray, "B H W C"]:
    """Images of [−1, 1] as uint8: clipped, then rounded.

    Equation: u = round(127.5 (clip(x, −1, 1) + 1)); inverse of `to_unit_range` on all 256 values.

    Raises:
        ValueError: a value that is not finite.

    >>> to_uint8(np.array([[[[-2.0], [0.999], [1.0]]]])).ravel().tolist()
    [0, 255, 255]
    """
    x = np.asarray(x)
    if not np.isfinite(x).all():
        raise ValueError(
            f"{np.sum(~np.isfinite(x))} of {x.size} values of the images are not finite; the weights are damaged or diverged."
        )
    return np.rint((np.clip(x, -1, 1) + 1) * 127.5).astype(np.uint8)


def save_grid(images: UInt8[np.ndarray, "B H W C"], path: Path) -> None:
    """Write images as one PNG, in rows from left to right, as close to a square as their number allows.

    Args:
        images: uint8 (B, H, W, C), C = 1 or 3; small ones are magnified by a whole factor.
        path: where to; its directory is made.
    """
    count, height, width, channels = images.shape
    scale = -(-_TILE // max(height, width))
    columns = int(np.ceil(np.sqrt(count)))
    rows = -(-count // columns)
    canvas = np.full(
        (rows * (height * scale + _GAP) + _GAP, columns * (width * scale + _GAP) + _GAP, channels),
        255,
        np.uint8,
    )
    for i, image in enumerate(images.repeat(scale, 1).repeat(scale, 2)):
        top, left = (
            _GAP + (i // columns) * (height * scale + _GAP),
            _GAP + (i % columns) * (width * scale + _GAP),
        )
        canvas[top : top + height * scale, left : left + width * scale] = image
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(canvas[..., 0] if channels == 1 else canvas).save(path)
