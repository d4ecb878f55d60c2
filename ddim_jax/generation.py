"""Samples in batches of one size, so that an image depends on its seed and index alone."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Float

from .diffusion.prediction import Denoiser, check_kind, denoiser
from .diffusion.reverse import StepTable
from .diffusion.sampling import image_keys, initial_noise, sample

Sampler = Callable[[Any, StepTable, Any], Any]


def make_sampler(
    apply: Callable[..., Any],
    alpha_bar: np.ndarray,
    image_shape: tuple[int, int, int],
    mesh: Mesh,
    wrap: Callable[[Denoiser], Denoiser] = lambda denoise: denoise,
) -> Sampler:
    """The jitted sampler of a network: (params, table, keys) → x_0, with the batch split over the mesh.

    Args:
        apply: the network, apply(params, x, t).
        alpha_bar: ᾱ_0 … ᾱ_T, shape (T+1,).
        image_shape: (H, W, C).
        mesh: devices, axis `data`.
        wrap: changes the Denoiser, `clip_x0` say.

    Returns:
        A function that compiles once for each batch size and S; other params, σ, τ of that length, or keys do not compile.
    """

    def run(params, table, keys):
        return sample(wrap(denoiser(apply, params, alpha_bar)), initial_noise(keys, image_shape), table, keys)

    split, whole = NamedSharding(mesh, PartitionSpec("data")), NamedSharding(mesh, PartitionSpec())
    return jax.jit(run, in_shardings=(whole, whole, split), out_shardings=split)


def generate(
    sampler: Sampler, params: Any, table: StepTable, *, seed: int, count: int, batch_size: int
) -> Iterator[Float[np.ndarray, "B H W C"]]:
    """The images 0 … count−1 of a seed, a batch at a time.

    Every batch is of one size: the last is filled up with the images that would follow, which are not returned. So
    image i comes out of the same program at the same place, however many were asked for.

    Args:
        sampler: from `make_sampler`.
        params: the network's parameters.
        table: the steps.
        seed: integer in 0 … 2³²−1.
        count: how many images, ≥ 1.
        batch_size: images a batch, ≥ 1.

    Yields:
        float32 (b, H, W, C), b ≤ batch_size, in about [−1, 1].

    Raises:
        ValueError: count or batch_size below 1, or a step that visits ᾱ_t = 0.
    """
    check_kind("epsilon", table.alpha_bar_t)
    for name, value in (("count", count), ("batch_size", batch_size)):
        if value < 1:
            raise ValueError(f"{name} is {value}; it must be 1 or more.")
    for first in range(0, count, batch_size):
        keys = image_keys(seed, range(first, first + batch_size))
        # Sampling promises float32: accelerators would multiply in TF32 or bfloat16.
        with jax.default_matmul_precision("highest"):
            images = sampler(params, table, keys)
        yield np.asarray(images)[: count - first]
