"""Samples in batches of one size, so that an image depends on its seed and index alone."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float

from .devices import batch_sharding, replicated
from .diffusion.prediction import Denoiser, denoiser, guided
from .diffusion.reverse import StepTable
from .diffusion.sampling import image_keys, initial_noise, sample

Sampler = Callable[[Any, StepTable, Any, Any, Any], Any]


def make_sampler(
    apply: Callable[..., Any],
    alpha_bar: np.ndarray,
    image_shape: tuple[int, int, int],
    mesh: Mesh,
    wrap: Callable[[Denoiser], Denoiser] = lambda denoise: denoise,
    *,
    kind: str = "epsilon",
    guide: bool = False,
) -> Sampler:
    """The jitted sampler of a network: (params, table, key data, label, guidance) → x_0, its batch split over the mesh.

    Args:
        apply: the network, apply(params, x, t, *, label=None).
        alpha_bar: ᾱ_0 … ᾱ_T, shape (T+1,).
        image_shape: (H, W, C).
        mesh: from `make_mesh`, of all processes.
        wrap: changes the Denoiser, `clip_x0` say.
        kind: what the network predicts, "epsilon", "x0" or "v".
        guide: whether guidance is used: each step then calls the network twice, with the label and without.

    Returns:
        A function that compiles once for each batch size and S; other params, σ, τ of that length, keys, labels or guidance do
        not compile. `label` is (B,) int32, or None for no label.
    """

    def run(params, table, key_data, label, guidance):
        key_data, label = jax.lax.with_sharding_constraint((key_data, label), split)
        keys = jax.random.wrap_key_data(key_data, impl="threefry2x32")
        network = apply if label is None else partial(apply, label=label)
        denoise = denoiser(network, params, alpha_bar, kind)
        if guide:
            denoise = guided(denoise, denoiser(apply, params, alpha_bar, kind), guidance)
        return sample(wrap(denoise), initial_noise(keys, image_shape), table, keys)

    split, whole = batch_sharding(mesh), replicated(mesh)
    # Keys and labels come from every process, all of them, and the images go to every process.
    return jax.jit(run, in_shardings=whole, out_shardings=whole)


def generate(
    sampler: Sampler,
    params: Any,
    table: StepTable,
    *,
    seed: int,
    count: int,
    batch_size: int,
    labels: tuple[int, ...] = (),
    guidance: float = 1.0,
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
        labels: classes; image i has label i modulo their number. None of them: no label.
        guidance: scale of the classifier-free guidance of a sampler that guides.

    Yields:
        float32 (b, H, W, C), b ≤ batch_size, in about [−1, 1].

    Raises:
        ValueError: count or batch_size below 1.
    """
    for name, value in (("count", count), ("batch_size", batch_size)):
        if value < 1:
            raise ValueError(f"{name} is {value}; it must be 1 or more.")
    for first in range(0, count, batch_size):
        indices = np.arange(first, first + batch_size)
        key_data = np.asarray(jax.random.key_data(image_keys(seed, indices)))
        label = np.array(labels, np.int32)[indices % len(labels)] if labels else None
        # Sampling promises float32: accelerators would multiply in TF32 or bfloat16.
        with jax.default_matmul_precision("highest"):
            images = sampler(params, table, key_data, label, np.float32(guidance))
        yield np.asarray(images)[: count - first]
