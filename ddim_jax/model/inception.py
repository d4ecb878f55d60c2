"""The Inception network of FID, from uint8 images to 2048 features, in the two families in use.

    (1)  y = relu(γ (w ∗ x − m)/√(v + 10⁻³) + β)     a layer, as one kernel and one bias
    (2)  x_j = the image at (j + h)·size/299 − h     bilinear, j = 0 … 298, in both directions
    (3)  (x − c)/c                                   of grey levels 0 … 255

The families have the same weights and different (h, c). Features of one must not be compared with
features of the other. The network differs from torchvision's InceptionV3: average pools ignore what
is outside the image, and the last block has a maximum pool where the one before has an average.

Source: arXiv:1512.00567 for the blocks; pytorch-fid and torch-fidelity for everything else.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, UInt8

FAMILIES = {"tf1": (0.0, 128.0), "pytorch-fid": (0.5, 127.5)}  # (h, c) of (2) and (3)
_SIZE = 299


class Conv(NamedTuple):
    """(1), under its name in the weights file."""

    name: str
    channels: int
    kernel: tuple[int, int] = (1, 1)
    stride: int = 1
    padding: str = "SAME"


def _mixed_5(at: str, pooled: int) -> Any:
    return (
        Conv(at + "branch1x1", 64),
        [Conv(at + "branch5x5_1", 48), Conv(at + "branch5x5_2", 64, (5, 5))],
        [Conv(at + "branch3x3dbl_1", 64), Conv(at + "branch3x3dbl_2", 96, (3, 3)),
         Conv(at + "branch3x3dbl_3", 96, (3, 3))],
        ["average", Conv(at + "branch_pool", pooled)],
    )  # fmt: skip


def _mixed_6(at: str, width: int) -> Any:
    return (
        Conv(at + "branch1x1", 192),
        [Conv(at + "branch7x7_1", width), Conv(at + "branch7x7_2", width, (1, 7)),
         Conv(at + "branch7x7_3", 192, (7, 1))],
        [Conv(at + "branch7x7dbl_1", width), Conv(at + "branch7x7dbl_2", width, (7, 1)),
         Conv(at + "branch7x7dbl_3", width, (1, 7)), Conv(at + "branch7x7dbl_4", width, (7, 1)),
         Conv(at + "branch7x7dbl_5", 192, (1, 7))],
        ["average", Conv(at + "branch_pool", 192)],
    )  # fmt: skip


def _mixed_7(at: str, pool: str) -> Any:
    return (
        Conv(at + "branch1x1", 320),
        [Conv(at + "branch3x3_1", 384),
         (Conv(at + "branch3x3_2a", 384, (1, 3)), Conv(at + "branch3x3_2b", 384, (3, 1)))],
        [Conv(at + "branch3x3dbl_1", 448), Conv(at + "branch3x3dbl_2", 384, (3, 3)),
         (Conv(at + "branch3x3dbl_3a", 384, (1, 3)), Conv(at + "branch3x3dbl_3b", 384, (3, 1)))],
        [pool, Conv(at + "branch_pool", 192)],
    )  # fmt: skip


# A list is a sequence, a tuple is branches whose outputs are concatenated, a string is a pool.
NETWORK = [
    Conv("Conv2d_1a_3x3", 32, (3, 3), 2, "VALID"),
    Conv("Conv2d_2a_3x3", 32, (3, 3), 1, "VALID"),
    Conv("Conv2d_2b_3x3", 64, (3, 3)),
    "maximum/2",
    Conv("Conv2d_3b_1x1", 80),
    Conv("Conv2d_4a_3x3", 192, (3, 3), 1, "VALID"),
    "maximum/2",
    _mixed_5("Mixed_5b.", 32),
    _mixed_5("Mixed_5c.", 64),
    _mixed_5("Mixed_5d.", 64),
    (
        Conv("Mixed_6a.branch3x3", 384, (3, 3), 2, "VALID"),
        [Conv("Mixed_6a.branch3x3dbl_1", 64), Conv("Mixed_6a.branch3x3dbl_2", 96, (3, 3)),
         Conv("Mixed_6a.branch3x3dbl_3", 96, (3, 3), 2, "VALID")],
        "maximum/2",
    ),
    _mixed_6("Mixed_6b.", 128),
    _mixed_6("Mixed_6c.", 160),
    _mixed_6("Mixed_6d.", 160),
    _mixed_6("Mixed_6e.", 192),
    (
        [Conv("Mixed_7a.branch3x3_1", 192),
         Conv("Mixed_7a.branch3x3_2", 320, (3, 3), 2, "VALID")],
        [Conv("Mixed_7a.branch7x7x3_1", 192), Conv("Mixed_7a.branch7x7x3_2", 192, (1, 7)),
         Conv("Mixed_7a.branch7x7x3_3", 192, (7, 1)),
         Conv("Mixed_7a.branch7x7x3_4", 192, (3, 3), 2, "VALID")],
        "maximum/2",
    ),
    _mixed_7("Mixed_7b.", "average"),
    _mixed_7("Mixed_7c.", "maximum"),
]  # fmt: skip


def inception_features(
    params: Any,
    images: UInt8[Array | np.ndarray, "B H W C"] | Float[Array, "B H W C"],
    family: str = "tf1",
) -> Float[Array, "B 2048"]:
    """(3) of (2), then the network, then the mean over positions, in float32 on every device.

    Images are 0 … 255, may have any size, and one channel in place of three. Not jitted itself.
    """
    if family not in FAMILIES:
        raise ValueError(f"the family is {family!r}; choose one of {', '.join(FAMILIES)}.")
    half, centre = FAMILIES[family]
    x = jnp.broadcast_to(images, (*images.shape[:3], 3)).astype(jnp.float32)
    rows, columns = (_bilinear(size, half) for size in images.shape[1:3])
    x = jnp.einsum("ph,bhwc,qw->bpqc", rows, x, columns, precision="highest")
    return _apply(NETWORK, params, (x - centre) / centre).mean(axis=(1, 2))


def inception_logits(
    params: Any, features: Float[Array | np.ndarray, "B 2048"]
) -> Float[Array, "B 1008"]:
    """The scores of the classes without their bias, as the Inception Score takes them."""
    return jnp.dot(features, params["fc"]["kernel"], precision="highest")


def kernel_shapes(layer: Any, inputs: int) -> tuple[dict[str, tuple[int, ...]], int]:
    """(out, in, height, width) of each convolution in a layer, and its number of output channels.

    >>> shapes, channels = kernel_shapes(NETWORK, 3)
    >>> len(shapes), shapes["Mixed_7c.branch3x3_2a"], channels
    (94, (384, 384, 1, 3), 2048)
    """
    match layer:
        case Conv():
            shape = (layer.channels, inputs, *layer.kernel)
            return {layer.name: shape}, layer.channels
        case str():
            return {}, inputs
    shapes: dict[str, tuple[int, ...]] = {}
    outputs = []
    for each in layer:
        more, channels = kernel_shapes(each, inputs)
        shapes |= more
        outputs.append(channels)
        if isinstance(layer, list):
            inputs = channels
    return shapes, sum(outputs) if isinstance(layer, tuple) else inputs


def _bilinear(size: int, half: float) -> Float[np.ndarray, "299 size"]:
    """(2) as a matrix."""
    source = (np.arange(_SIZE) + half) * (size / _SIZE) - half
    distance = np.abs(np.clip(source, 0, size - 1)[:, None] - np.arange(size))
    return np.maximum(1 - distance, 0).astype(np.float32)


def _apply(layer: Any, params: Any, x: Array) -> Array:
    match layer:
        case Conv():
            strides, weights = (layer.stride, layer.stride), params[layer.name]
            y = lax.conv_general_dilated(
                x, weights["kernel"], strides, layer.padding,
                dimension_numbers=("NHWC", "HWIO", "NHWC"), precision=lax.Precision.HIGHEST,
            )  # fmt: skip
            return jax.nn.relu(y + weights["bias"].reshape(1, 1, 1, -1))
        case str():
            return _POOLS[layer](x)
        case tuple():
            return jnp.concatenate([_apply(branch, params, x) for branch in layer], axis=3)
    for part in layer:
        x = _apply(part, params, x)
    return x


def _window(x: Array, start: float, join: Any, stride: int = 1) -> Array:
    padding = "SAME" if stride == 1 else "VALID"
    return lax.reduce_window(x, start, join, (1, 3, 3, 1), (1, stride, stride, 1), padding)


def _average(x: Array) -> Array:
    """The mean of the pixels of the window that are inside the image."""
    inside = jnp.ones((1, *x.shape[1:3], 1))
    return _window(x, 0.0, lax.add) / _window(inside, 0.0, lax.add)


_POOLS = {
    "average": _average,
    "maximum": lambda x: _window(x, -jnp.inf, lax.max),
    "maximum/2": lambda x: _window(x, -jnp.inf, lax.max, stride=2),
}
