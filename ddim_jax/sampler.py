"""The batched, jitted sampler that previews, commands and ablations share.

Everything that decides what is drawn is an argument of the program, so new values do not recompile:
weights, steps, seed, indices and labels of the images, clipping, guidance. Keys are made inside.
All batches have one size: the last one is filled up with the images that would follow. So image i
comes from the same program, at the same place in a batch, however many images are drawn.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Int, UInt32

from .devices import batch_sharding, replicated
from .diffusion.keys import image_keys, initial_noise
from .diffusion.prediction import Denoiser, Prediction, clip_x0, denoiser, guided
from .diffusion.reverse import StepTable
from .diffusion.sampling import sample, sample_path

CLIPS = ("none", "x0", "rederive")


class Batch(NamedTuple):
    """The images of a batch by their index, and their labels, if any; leaves (B,)."""

    indices: UInt32[Array | np.ndarray, " B"]
    label: Int[Array | np.ndarray, " B"] | None = None


class Plan(NamedTuple):
    """How to draw; whatever is None is left out of the program."""

    table: StepTable
    seed: Any
    clip: Any = None  # an index into CLIPS
    guidance: Any = None  # the scale


def make_sampler(
    denoise: Callable[[Any, Any], Denoiser],
    image_shape: tuple[int, ...],
    mesh: Mesh,
    observe: Callable[[Any, Any], Any] | None = None,
) -> Callable[..., Any]:
    """The jitted sampler(params, Batch, Plan) → x_0, its batch split over the mesh.

    `denoise(params, label)` gives the Denoiser of a batch. With `observe`, the sampler returns
    (x_0, the values of `observe` at every step), as `sample_path` does but with the batch first.
    """

    def draw(params: Any, batch: Batch, plan: Plan) -> Any:
        model, keys = (
            planned(denoise, params, batch.label, plan),
            image_keys(plan.seed, batch.indices),
        )
        x_T = initial_noise(keys, image_shape)
        if observe is None:
            return sample(model, x_T, plan.table, keys)
        x_0, seen = sample_path(model, x_T, plan.table, keys, observe=observe)
        return x_0, jax.tree.map(lambda leaf: leaf.swapaxes(0, 1), seen)

    return batch_program(draw, mesh)


def conditional(
    apply: Callable[..., Any], alpha_bar: np.ndarray, kind: str = "epsilon"
) -> Callable[[Any, Any], Denoiser]:
    """denoise(params, label) of apply(params, x, t, *, label); a label None is not passed on."""

    def denoise(params: Any, label: Any) -> Denoiser:
        network = apply if label is None else partial(apply, label=label)
        return denoiser(network, params, alpha_bar, kind)

    return denoise


def planned(
    denoise: Callable[[Any, Any], Denoiser], params: Any, label: Any, plan: Plan
) -> Denoiser:
    """The Denoiser of a batch with the guidance and the clipping of a plan."""
    model = denoise(params, label)
    if plan.guidance is not None:
        model = guided(model, denoise(params, None), plan.guidance)
    return model if plan.clip is None else clipped(model, plan.clip)


def clipped(denoise: Denoiser, clip: Any) -> Denoiser:
    """A Denoiser with a traced choice among CLIPS, at the cost of one network call."""

    def choose(x_t: Any, t: Any) -> Prediction:
        plain = denoise(x_t, t)
        kept, followed = (
            clip_x0(lambda *_: plain, rederive, denoise.alpha_bar)(x_t, t)
            for rederive in (False, True)
        )
        return Prediction(*(
            jnp.where(clip == 2, two, jnp.where(clip == 1, one, none))
            for none, one, two in zip(plain, kept, followed, strict=True)
        ))  # fmt: skip

    return Denoiser(choose, denoise.alpha_bar, denoise.kind)


def batch_program(function: Callable[..., Any], mesh: Mesh) -> Callable[..., Any]:
    """The jitted function(params, batch, *rest), in full float32, its batch split over the mesh.

    Every process passes the whole batch and gets the whole result.
    """
    split, whole = batch_sharding(mesh), replicated(mesh)

    def run(params: Any, batch: Any, *rest: Any) -> Any:
        # Accelerators would multiply in TF32 or bfloat16.
        with jax.default_matmul_precision("highest"):
            return function(params, jax.lax.with_sharding_constraint(batch, split), *rest)

    return jax.jit(run, in_shardings=whole, out_shardings=whole)


def on_mesh(params: Any, mesh: Mesh) -> Any:
    """A copy of the weights on every device, from any process's own or from all devices' parts."""

    def whole(leaf: Any) -> Any:
        return np.asarray(leaf) if getattr(leaf, "is_fully_addressable", True) else leaf

    return jax.device_put(jax.tree.map(whole, params), replicated(mesh))


def in_batches(
    call: Callable[[UInt32[np.ndarray, " B"]], Any], count: int, size: int
) -> Iterator[Any]:
    """call(indices) for the indices 0 … count−1, `size` at a time; results in NumPy, batch first.

    >>> [part.tolist() for part in in_batches(lambda indices: indices, 5, 2)]
    [[0, 1], [2, 3], [4]]
    """
    for first in range(0, count, size):
        results = call(np.arange(first, first + size, dtype=np.uint32))
        yield jax.tree.map(lambda leaf, left=count - first: np.asarray(leaf)[:left], results)


def labelled(indices: UInt32[np.ndarray, " B"], labels: tuple[int, ...]) -> Batch:
    """The batch in which image i has label i modulo the number of labels, or no label.

    >>> labelled(np.arange(3, dtype=np.uint32), (7, 8)).label.tolist()
    [7, 8, 7]
    """
    return Batch(indices, np.array(labels, np.int32)[indices % len(labels)] if labels else None)
