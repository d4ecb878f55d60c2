"""The UNet's convolutions, in forms that are fast on CPUs; other devices use XLA's own.

    (1)  y[h, w] = Σ_ab x[h + a, w + b] k[a, b]                  a convolution
    (2)  ∂L/∂k[a, b] = Σ_hw x[h + a, w + b]ᵀ ∂L/∂y[h, w]         the gradient of its kernel
    (3)  Repeating each pixel 2×2 times and convolving with 3×3 equals four convolutions of the
         small image with 2×2, one for each position in the 2×2 pixels. Of three taps in a row or
         column, two meet the same pixel, so their weights add up:
             even:  k_0 x[h − 1] + (k_1 + k_2) x[h]       odd:  (k_0 + k_1) x[h] + k_2 x[h + 1]
    (4)  Two adjacent outputs of three taps take 4 products, not 6 (Winograd; Lavin and Gray,
         arXiv:1509.09308, section 4):
             k_0 x_0 + k_1 x_1 + k_2 x_2 = m_0 + m_1 + m_2      m_0 = k_0 (x_0 − x_2)
             k_0 x_1 + k_1 x_2 + k_2 x_3 = m_1 − m_2 − m_3      m_1 = ½(k_0 + k_1 + k_2) (x_1 + x_2)
                                m_3 = k_2 (x_1 − x_3)           m_2 = ½(k_0 − k_1 + k_2) (x_2 − x_1)

(3), and (4) in both directions, take 4/9 of the multiplications. For a 1×1 kernel (1) and (2) are
matrix products. XLA computes (2) of larger kernels as a convolution whose window is the image and
whose features are the images of the batch, too few for a fast inner loop. `_kernel_gradient` makes
it a convolution over rows, whose features are the pixels of a row in all images.

All functions have the signature of `jax.lax.conv_general_dilated`, for `nnx.Conv`.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

Maps = Float[Array, "B _ _ _"]  # height, width and channels change
Kernel = Float[Array, "_ _ _ _"]


def convolution(x: Maps, kernel: Kernel, strides: Any, padding: Any, **options: Any) -> Maps:
    """(1)."""
    if not _on_cpu() or tuple(strides) != (1, 1):
        return lax.conv_general_dilated(x, kernel, strides, padding, **options)
    if kernel.shape[:2] == (1, 1):
        return lax.dot_general(
            x, kernel[0, 0], (((3,), (0,)), ((), ())), precision=options["precision"]
        )
    pads = _pads(x, kernel, padding)
    # With fewer channels (4) gains nothing; below 32 bits it would lose precision.
    wide = min(kernel.shape[2:]) >= 64 and x.dtype.itemsize >= 4
    even = min(x.shape[1:3]) >= 4 and x.shape[1] % 2 == x.shape[2] % 2 == 0
    if wide and even and kernel.shape[:2] == (3, 3) and pads == [(1, 1), (1, 1)]:
        return _winograd(x, kernel, options["precision"])
    return lax.conv_general_dilated(x, kernel, strides, pads, **options)


def convolution_to_train(
    x: Maps, kernel: Kernel, strides: Any, padding: Any, **options: Any
) -> Maps:
    """(1) with (2) as described above, reverse mode only; without (4), which is slow to compile."""
    if kernel.shape[:2] == (1, 1) or tuple(strides) != (1, 1) or not _on_cpu():
        return convolution(x, kernel, strides, padding, **options)
    pads = _pads(x, kernel, padding)

    @jax.custom_vjp
    def convolve(x: Maps, kernel: Kernel) -> Maps:
        return lax.conv_general_dilated(x, kernel, strides, pads, **options)

    def forward(x: Maps, kernel: Kernel) -> tuple[Maps, Any]:
        return convolve(x, kernel), (x, kernel)

    def backward(kept: Any, g: Maps) -> tuple[Maps, Kernel]:
        x, kernel = kept
        # The gradient of x is a convolution with the kernel mirrored, inputs and outputs exchanged.
        mirrored = kernel[::-1, ::-1].swapaxes(2, 3)
        opposite = [
            (size - 1 - low, size - 1 - high)
            for size, (low, high) in zip(kernel.shape, pads, strict=False)
        ]
        x_gradient = lax.conv_general_dilated(g, mirrored, strides, opposite, **options)
        return x_gradient, _kernel_gradient(x, g, kernel.shape, pads, options["precision"])

    convolve.defvjp(forward, backward)
    return convolve(x, kernel)


def _kernel_gradient(x: Maps, g: Maps, shape: tuple[int, ...], pads: Any, precision: Any) -> Kernel:
    """(2) as a convolution over rows, its features the columns of x, and of g shifted by each b."""
    rows, columns, inputs, outputs = shape
    _, height, width, _ = x.shape
    (left, _) = pads[1]

    def moved(array: Maps, by: int, to: int) -> Maps:
        pads = [(0, 0, 0), (0, 0, 0), (by, to - array.shape[2] - by, 0), (0, 0, 0)]
        return lax.pad(array, jnp.zeros((), array.dtype), pads)

    if inputs < outputs:  # shift the one with fewer channels
        x = jnp.concatenate([moved(x, left - b, g.shape[2]) for b in range(columns)], axis=3)
    else:
        g = jnp.concatenate([moved(g, b - left, width) for b in range(columns)], axis=3)
    images = x.transpose(3, 1, 0, 2).reshape(x.shape[3], height, -1)
    window = g.transpose(1, 0, 2, 3).reshape(g.shape[1], -1, g.shape[3])
    gradient = lax.conv_general_dilated(
        images, window, (1,), pads[:1], dimension_numbers=("NHC", "HIO", "NHC"), precision=precision
    )
    if inputs < outputs:
        return gradient.reshape(columns, inputs, rows, outputs).transpose(2, 0, 1, 3)
    return gradient.reshape(inputs, rows, columns, outputs).transpose(1, 2, 0, 3)


def _winograd(x: Maps, kernel: Kernel, precision: Any) -> Maps:
    """(1) of a 3×3 kernel by (4) in both directions."""
    batch, height, width, inputs = x.shape
    outputs = kernel.shape[3]

    def of_kernel(k: Any) -> list[Any]:
        return [k[0], (k[0] + k[1] + k[2]) / 2, (k[0] - k[1] + k[2]) / 2, k[2]]

    def of_image(x: Maps, axis: int) -> list[Maps]:
        count = x.shape[axis] // 2 - 1
        x_0, x_1, x_2, x_3 = (lax.slice_in_dim(x, i, i + 2 * count - 1, 2, axis) for i in range(4))
        return [x_0 - x_2, x_1 + x_2, x_2 - x_1, x_1 - x_3]

    def outputs_of(m: Any) -> list[Any]:
        return [m[0] + m[1] + m[2], m[1] - m[2] - m[3]]

    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    products = []
    for tiles, row in zip(of_image(padded, 1), of_kernel(kernel), strict=True):
        pixels = [
            lax.dot_general(
                tile.reshape(-1, inputs), k, (((1,), (0,)), ((), ())), precision=precision
            )
            for tile, k in zip(of_image(tiles, 2), of_kernel(row), strict=True)
        ]
        products.append(
            outputs_of([pixel.reshape(batch, height // 2, width // 2, outputs) for pixel in pixels])
        )
    # The even columns, then the odd ones.
    columns = [jnp.stack(outputs_of(m), axis=2) for m in zip(*products, strict=True)]
    return jnp.stack(columns, axis=4).reshape(*x.shape[:3], outputs)


def after_upsampling(convolve: Any) -> Any:
    """(1) of the image with each pixel repeated in both directions, by (3)."""

    def upsampled(x: Maps, kernel: Kernel, strides: Any, padding: Any, **options: Any) -> Maps:
        if not _on_cpu():
            return convolve(
                x.repeat(2, axis=1).repeat(2, axis=2), kernel, strides, padding, **options
            )
        batch, height, width, _ = x.shape
        rows = []
        for p, by_row in enumerate(_phases(kernel, 0)):
            pixels = [
                convolve(x, phase, strides, [(1 - p, p), (1 - q, q)], **options)
                for q, phase in enumerate(_phases(by_row, 1))
            ]
            rows.append(jnp.stack(pixels, axis=3))
        return jnp.stack(rows, axis=2).reshape(batch, 2 * height, 2 * width, kernel.shape[3])

    return upsampled


def _phases(kernel: Kernel, axis: int) -> list[Kernel]:
    """The two taps for even pixels, and for odd ones."""
    k_0, k_1, k_2 = jnp.split(kernel, 3, axis)
    return [jnp.concatenate(taps, axis) for taps in ([k_0, k_1 + k_2], [k_0 + k_1, k_2])]


def _pads(x: Maps, kernel: Kernel, padding: Any) -> list[tuple[int, int]]:
    return list(
        lax.padtype_to_pads(x.shape[1:3], kernel.shape[:2], (1, 1), padding)
        if isinstance(padding, str)
        else padding
    )


def _on_cpu() -> bool:
    return jax.default_backend() == "cpu"
