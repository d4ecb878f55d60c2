"""What σ = analytic and τ = optimal need of a model, estimated once and kept under its hash.

DIR/estimates/HASH.npz    at every time, means over images of ‖ε̂‖²/d and of ‖x_0 − x̂_0‖²
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console

from ..devices import local_mesh, surroundings
from ..diffusion.forward import add_noise
from ..diffusion.keys import Purpose, image_keys, noise_rows
from ..files import digest, read_arrays, whole
from ..progress import progress
from ..sampler import batch_program
from .source import Source

_IMAGES = 64  # Analytic-DPM's results need 10 (arXiv:2201.06503, appendix)


class Estimates(NamedTuple):
    """Values at 0 … T, where that at 0 is NaN, and the number of elements of an image, d."""

    epsilon_power: np.ndarray  # E‖ε̂‖²/d, for `analytic`
    x_0_error: np.ndarray  # E‖x_0 − x̂_0‖², for `elbo_costs`
    dimension: int


def kept_estimates(source: Source, console: Console) -> Estimates:
    """The estimates of a source, from 64 of its training images; every process makes its own."""
    dimension = int(np.prod(source.image_shape))
    hash_of = digest(*source.identity, source.alpha_bar, _IMAGES, surroundings())
    file = source.directory / "estimates" / f"{hash_of[:32]}.npz"
    kept = read_arrays(file) or {}
    if {"epsilon_power", "x_0_error"} <= set(kept):
        return Estimates(kept["epsilon_power"], kept["x_0_error"], dimension)
    made = _means(source, console)
    if jax.process_index() == 0:
        with whole(file) as partial:
            np.savez(partial, epsilon_power=made[0], x_0_error=made[1])
    return Estimates(made[0], made[1], dimension)


def _means(source: Source, console: Console) -> np.ndarray:
    reference, mesh = source.reference(), local_mesh()
    count = min(_IMAGES, len(reference.images)) // mesh.size * mesh.size or mesh.size
    order = np.random.default_rng(0).permutation(len(reference.images))
    chosen = order[np.arange(count) % len(order)]
    label = None if source.has_no_label else np.asarray(reference.labels)[chosen]
    batch = (reference.images[chosen], np.arange(count, dtype=np.uint32), label)

    def squares(params: Any, batch: Any, t: Any) -> Any:
        x_0, indices, label = batch
        keys = image_keys(0, indices, Purpose.ESTIMATION)
        epsilon = noise_rows(keys, t, x_0[0].size).reshape(x_0.shape)
        x_t = add_noise(x_0, epsilon, jnp.asarray(source.alpha_bar, jnp.float32)[t])
        predicted = source.denoise(params, label)(x_t, jnp.broadcast_to(t, x_0.shape[:1]))
        return (
            jnp.mean(predicted.epsilon**2, (1, 2, 3)),
            jnp.sum((x_0 - predicted.x_0) ** 2, (1, 2, 3)),
        )

    program, T = batch_program(squares, mesh), len(source.alpha_bar) - 1
    means = np.full((2, T + 1), np.nan)
    with progress(console, T, "times") as show:
        for t in range(1, T + 1):
            parts = program(source.params, batch, np.int32(t))
            means[:, t] = [np.mean(np.asarray(part, np.float64)) for part in parts]
            show("estimating the model's errors")
    return means
