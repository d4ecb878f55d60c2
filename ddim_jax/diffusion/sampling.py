"""The sampler: one `lax.scan` over the rows of a StepTable.

    x_T ~ N(0, I)
    for (t, s) in the rows:
        x_s = √ᾱ_s x̂_0(x_t, t) + √(1−ᾱ_s−sigma²) ε̂(x_t, t) + noise · z_t      DDIM paper (arXiv:2010.02502), Eq. 12

Image i of a seed has a key of its own. x_T is drawn from fold_in(key_i, 0) and its noise at time t ≥ 1 from fold_in(key_i, t),
so an image does not depend on the batch that it is drawn in, and two σ schedules share their random numbers.

Nothing here is jitted: jit `lambda params, x_T, table, keys: sample(denoiser(apply, params, alpha_bar), x_T, table, keys)` once
and every η, σ and τ of one length is another argument to it.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from .prediction import Denoiser, Prediction, check_kind
from .randomness import Purpose, purpose_key
from .reverse import StepTable, ddim_step
from .types import Images, Integer, Numbers

Keys = Key[Array, " keys"]


class Path(NamedTuple):
    """What the sampler saw at every step, in sampling order: x_t (S, B, …) and its x̂_0 (S, B, …)."""

    x: Float[Array, "S B *dims"]
    x_0: Float[Array, "S B *dims"]


def image_keys(seed: Integer, indices: Numbers) -> Keys:
    """The key of each image of a seed.

    Equation: key_i = fold_in(fold_in(key(seed), SAMPLING), i).

    Args:
        seed: integer in 0 … 2³²−1.
        indices: image indices ≥ 0, shape (B,).

    Returns:
        Typed threefry keys, shape (B,).

    Raises:
        ValueError: a seed or an index out of range, or indices that are not (B,).

    >>> bool((image_keys(0, [7, 8])[1] == image_keys(0, [8])[0]))
    True
    """
    if not isinstance(indices, jax.core.Tracer):  # inside a jit the values are not known
        indices = np.asarray(indices)
        if indices.ndim != 1 or (
            indices.size and not (indices.min() >= 0 and indices.max() < 2**32)
        ):
            raise ValueError(
                f"indices are {indices}; give a one-dimensional array of integers from 0 to {2**32 - 1}."
            )
    indices = jnp.asarray(indices, jnp.uint32)
    return jax.vmap(jax.random.fold_in, (None, 0))(purpose_key(seed, Purpose.SAMPLING), indices)


def initial_noise(keys: Keys, shape: tuple[int, ...]) -> Float[Array, "B *dims"]:
    """The noise x_T that each image starts from.

    Equation: x_T = z_0 ~ N(0, I) from fold_in(key_i, 0).

    Args:
        keys: one key an image (B,), from `image_keys`.
        shape: shape of one image, (H, W, C).

    Returns:
        x_T, shape (B, *shape).

    >>> initial_noise(image_keys(0, [0, 1]), (8, 8, 1)).shape
    (2, 8, 8, 1)

    Source: arXiv:2010.02502, section 4.1.
    """
    return _noise_rows(keys, 0, math.prod(shape)).reshape(len(keys), *shape)


def sample(denoise: Denoiser, x_T: Images, table: StepTable, keys: Keys) -> Float[Array, "B *dims"]:
    """Run the reverse process from noise to images.

    Equation: Eq. 12 for every row of the table. Memory: one batch, whatever S.

    Args:
        denoise: a Denoiser, (x_t (B, …), t (B,) int32) → Prediction.
        x_T: noise to start from (B, H, W, C), usually `initial_noise`.
        table: the steps, leaves (S,), from `step_table`.
        keys: one key an image (B,), from `image_keys`.

    Returns:
        x_0, shape (B, H, W, C); images of [−1, 1], not clipped.

    Raises:
        ValueError: another number of keys than of images, a table that is not (S,), or ε-prediction and a step that visits
            ᾱ_t = 0. Inside a jit the table's values are not known: ask `check_kind` before.

    >>> from ddim_jax import alpha_bars, eta, linear_betas, step_table, uniform_timesteps
    >>> denoise = lambda x, t: Prediction(jnp.zeros_like(x), x)
    >>> table = step_table(alpha_bars(linear_betas(1000)), uniform_timesteps(1000, 4), eta(0.0))
    >>> sample(denoise, jnp.ones((1, 8, 8, 1)), table, image_keys(0, [0])).shape
    (1, 8, 8, 1)

    Source: arXiv:2010.02502, Eq. 12.
    """
    _check(denoise, x_T, table, keys)
    return _scan(denoise, x_T, table, keys, lambda x_t, x_hat_0: None)[0]


def sample_path(
    denoise: Denoiser,
    x_T: Images,
    table: StepTable,
    keys: Keys,
    observe: Callable[[Any, Any], Any] = Path,
) -> tuple[Float[Array, "B *dims"], Any]:
    """`sample`, and what it saw on the way.

    Equation: path.x[i] = x_t and path.x_0[i] = x̂_0(x_t, t) of row i, so path.x[0] is x_T. Memory: 2 S batches, or S times
    what `observe` keeps.

    Args:
        denoise: a Denoiser.
        x_T: noise to start from (B, H, W, C).
        table: the steps, leaves (S,).
        keys: one key an image (B,).
        observe: what to keep of a step, a function (x_t, x̂_0) → pytree of arrays; Path keeps all.

    Returns:
        x_0 (B, H, W, C), the result of `sample`, and Path(x, x_0), leaves (S, B, H, W, C), or what `observe` gave, with S in
        front. An inactive row repeats x and has x̂_0 = x.

    Raises:
        ValueError: as `sample`.

    >>> from ddim_jax import alpha_bars, eta, linear_betas, step_table, uniform_timesteps
    >>> denoise = lambda x, t: Prediction(jnp.zeros_like(x), x)
    >>> table = step_table(alpha_bars(linear_betas(1000)), uniform_timesteps(1000, 4), eta(0.0))
    >>> sample_path(denoise, jnp.ones((1, 8, 8, 1)), table, image_keys(0, [0]))[1].x.shape
    (4, 1, 8, 8, 1)

    Source: arXiv:2010.02502, Eq. 12.
    """
    _check(denoise, x_T, table, keys)

    return _scan(denoise, x_T, table, keys, observe)


def sample_many(
    denoise: Denoiser, x_T: Images, tables: StepTable, keys: Keys
) -> Float[Array, "E B *dims"]:
    """`sample` for many tables from the same noise: a whole grid of η × σ family × S in one compiled program.

    Equation: Eq. 12 for every row of every table, one table after the other (`lax.map`). Memory: E batches of results.

    Args:
        denoise: a Denoiser.
        x_T: noise to start from (B, H, W, C), shared by all tables.
        tables: leaves (E, S_max), from `stack_tables`; inactive rows cost next to nothing.
        keys: one key an image (B,), shared too: the noise at time t is the same in every table.

    Returns:
        x_0 of every table, shape (E, B, H, W, C).

    Raises:
        ValueError: as `sample`, or tables that are not (E, S).

    >>> from ddim_jax import alpha_bars, eta, linear_betas, stack_tables, step_table, uniform_timesteps
    >>> denoise = lambda x, t: Prediction(jnp.zeros_like(x), x)
    >>> tables = [step_table(alpha_bars(linear_betas(1000)), uniform_timesteps(1000, S), eta(0.0)) for S in (2, 3)]
    >>> sample_many(denoise, jnp.ones((1, 8, 8, 1)), stack_tables(tables), image_keys(0, [0])).shape
    (2, 1, 8, 8, 1)

    Source: arXiv:2010.02502, Eq. 12.
    """
    _check(denoise, x_T, tables, keys, ndim=2)
    return jax.lax.map(lambda table: sample(denoise, x_T, table, keys), tables)


def _scan(
    denoise: Denoiser, x_T: Images, table: StepTable, keys: Keys, observe: Callable[[Any, Any], Any]
):
    """x_0, and what `observe` keeps of (x_t, x̂_0) at every step; an inactive row skips the network.

    From step to step an image is one long row: on a CPU a step around nothing takes half as long as with its short ones.
    """
    shape = x_T.shape

    def step(rows, row: StepTable):
        active_row = row._replace(
            active=np.array(True)
        )  # the choice is made here, once for all pixels
        x_s, x_hat_0 = jax.lax.cond(
            row.active,
            lambda: _step(denoise, rows.reshape(shape), active_row, keys),
            lambda: (rows, rows.reshape(shape)),
        )
        return x_s, observe(rows.reshape(shape), x_hat_0)

    rows, seen = jax.lax.scan(step, _as_rows(jnp.asarray(x_T)), table)
    return rows.reshape(shape), seen


def _step(denoise: Denoiser, x_t, row: StepTable, keys: Keys):
    """x_s as rows, and x̂_0, of one active row."""
    # The network's prediction of x_0 and of the noise in x_t.
    prediction: Prediction = denoise(x_t, jnp.broadcast_to(row.t, x_t.shape[:1]))
    # Eq. 12 without its last term.
    mean = _as_rows(ddim_step(x_t, prediction, None, row))

    def noisy():  # with its last term, which adds no array of zeros to the rows that have none
        return (mean + row.noise * _noise_rows(keys, row.t, mean.shape[1])).astype(mean.dtype)

    # Fresh noise is drawn only where the row has any: drawing costs more than the rest of a step.
    return jax.lax.cond(row.noise > 0, noisy, lambda: mean), prediction.x_0.astype(x_t.dtype)


def _as_rows(images: Any) -> Float[Array, "B size"]:
    return images.reshape(len(images), -1)


def _noise_rows(keys: Keys, t: Any, size: int) -> Float[Array, "B size"]:
    """z_t of every image, from fold_in(key_i, t), as long rows: the numbers are the same, and CPUs draw them in half the time."""
    return jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, t), (size,)))(keys)


def _check(denoise: Denoiser, x_T: Images, table: StepTable, keys: Keys, ndim: int = 1) -> None:
    if keys.shape != x_T.shape[:1]:
        shapes = f"keys have shape {keys.shape} for x_T of shape {x_T.shape}"
        raise ValueError(f"{shapes}; give one key an image: image_keys(seed, indices).")
    leaves = [jnp.shape(leaf) for leaf in table]
    if len(set(leaves)) != 1 or len(leaves[0]) != ndim:
        raise ValueError(
            f"the table's leaves have shapes {leaves}; all must be {'(S,)' if ndim == 1 else '(E, S)'}."
        )
    check_kind(getattr(denoise, "kind", None), table.alpha_bar_t)
