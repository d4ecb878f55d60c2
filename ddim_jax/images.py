"""Images between uint8 and [−1, 1], and as tiles in a PNG or a GIF."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from .files import whole, write

_TILE = 48  # smallest size of a tile in pixels, so that an 8×8 digit is readable
_GAP = 2


def to_unit_range(images: UInt8[np.ndarray, "B H W C"]) -> Float[np.ndarray, "B H W C"]:
    """uint8 images as float32 in [−1, 1]: x = u/127.5 − 1.

    >>> to_unit_range(np.array([[[[0], [255]]]], np.uint8)).ravel().tolist()
    [-1.0, 1.0]
    """
    return images.astype(np.float32) / np.float32(127.5) - np.float32(1)


def to_uint8(x: Float[np.ndarray, "B H W C"]) -> UInt8[np.ndarray, "B H W C"]:
    """Images in [−1, 1] as uint8, clipped, then rounded: u = round(127.5 (clip(x, −1, 1) + 1)).

    It inverts `to_unit_range` on all 256 values, and rejects values that are not finite.

    >>> to_uint8(np.array([[[[-2.0], [0.999], [1.0]]]])).ravel().tolist()
    [0, 255, 255]
    """
    x = np.asarray(x)
    if not np.isfinite(x).all():
        raise ValueError(
            f"{np.sum(~np.isfinite(x))} of {x.size} values of the images are not finite; "
            "the weights are damaged, or training diverged."
        )
    return np.rint((np.clip(x, -1, 1) + 1) * 127.5).astype(np.uint8)


def tile(rows: UInt8[np.ndarray, "R K H W C"]) -> tuple[UInt8[np.ndarray, "..."], tuple[int, int]]:
    """Rows of images on white, (H', W') or (H', W', 3), and the height and width of a tile.

    Small images are magnified by an integer factor.

    >>> canvas, size = tile(np.zeros((2, 3, 8, 8, 1), np.uint8))
    >>> canvas.shape, size  # 2 · 48 and 3 · 48, with gaps of 2
    ((102, 152), (48, 48))
    """
    scale = -(-_TILE // max(rows.shape[2:4]))
    border = [(0, 0), (0, 0), (_GAP, 0), (_GAP, 0), (0, 0)]
    tiles = np.pad(rows.repeat(scale, 2).repeat(scale, 3), border, constant_values=255)
    R, K, height, width, channels = tiles.shape
    canvas = tiles.transpose(0, 2, 1, 3, 4).reshape(R * height, K * width, channels)
    canvas = np.pad(canvas, [(0, _GAP), (0, _GAP), (0, 0)], constant_values=255)
    return (canvas[..., 0] if channels == 1 else canvas), (height - _GAP, width - _GAP)


def save_image(image: UInt8[np.ndarray, "H W C"], path: Path) -> None:
    """Write one image as a PNG of its own size."""
    with whole(path) as partial:
        Image.fromarray(image[..., 0] if image.shape[2] == 1 else image).save(partial, "PNG")


def save_grid(images: UInt8[np.ndarray, "B H W C"], path: Path) -> None:
    """Write images as one PNG, row by row, as close to a square as possible."""
    columns = int(np.ceil(np.sqrt(len(images))))
    missing = [(0, -len(images) % columns), (0, 0), (0, 0), (0, 0)]
    filled = np.pad(images, missing, constant_values=255)
    canvas, _ = tile(filled.reshape(-1, columns, *images.shape[1:]))
    with whole(path) as partial:
        Image.fromarray(canvas).save(partial, "PNG")


def save_figure(figure: Any, path: Path) -> None:
    """Write a figure of matplotlib as PNG."""
    write(path, figure_png(figure))


def figure_png(figure: Any) -> bytes:
    """A figure of matplotlib as PNG, the same bytes for the same figure."""
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=144, metadata={"Software": None})
    return out.getvalue()


def save_rows(
    rows: UInt8[np.ndarray, "R K H W C"],
    path: Path,
    row_labels: Sequence[str],
    column_labels: Sequence[str] = (),
) -> None:
    """Write rows of images as one PNG with a label per row and, where given, per column.

    Matplotlib draws the labels, including formulas between dollar signs.
    """
    from matplotlib.figure import Figure  # half a second to import; other commands need not wait

    canvas, (tile_height, tile_width) = tile(rows)
    height, width = canvas.shape[:2]
    left, top, dpi = 12 + 7 * max(map(len, row_labels)), 20 * bool(column_labels), 100
    size = (left + width, top + height)
    figure = Figure((size[0] / dpi, size[1] / dpi), dpi=dpi)
    # One pixel of the canvas is one of the file.
    axes = figure.add_axes((left / size[0], 0, width / size[0], height / size[1]))
    # As RGB, since a colour map would round the greys.
    axes.imshow(np.asarray(Image.fromarray(canvas).convert("RGB")), interpolation="nearest")
    row_places = [_GAP + tile_height / 2 + r * (tile_height + _GAP) for r in range(len(row_labels))]
    columns = [_GAP + tile_width / 2 + k * (tile_width + _GAP) for k in range(len(column_labels))]
    axes.set_yticks(row_places, row_labels, fontsize=8)
    axes.set_xticks(columns, column_labels, fontsize=7)
    axes.tick_params(length=0, top=True, labeltop=True, bottom=False, labelbottom=False)
    axes.spines[:].set_visible(False)
    with whole(path) as partial:
        figure.savefig(partial, format="png")


def save_animation(frames: UInt8[np.ndarray, "K R N H W C"], path: Path) -> None:
    """Write tiled frames as a GIF of about four seconds that pauses on the last one."""
    first, *others = (Image.fromarray(tile(frame)[0]) for frame in frames)
    durations = [max(40, 4000 // len(frames))] * len(others) + [2000]
    with whole(path) as partial:
        first.save(partial, "GIF", save_all=True, append_images=others, duration=durations, loop=0)
