"""The sampler: one `lax.scan` over the rows of a StepTable.

    x_T ~ N(0, I)
    for (t, s) in the rows:
        x_s = √ᾱ_s x̂_0(x_t, t) + √(1−ᾱ_s−sigma²) ε̂(x_t, t) + noise · z_t                    Eq. 12
        x_s ← x_s + Σ_k (a_k x̂_0^k + e_k ε̂^k)            from the newest K predictions, solvers.py

Nothing here is jitted. Jit this once; it serves every η, σ and τ of one length:

    lambda params, x_T, table, keys: sample(denoiser(apply, params, alpha_bar), x_T, table, keys)
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .keys import Keys, check_keys, noise_rows
from .prediction import Denoise, Prediction, as_denoiser, check_kind
from .reverse import StepTable, check_shapes, correct, equation_12
from .types import Images


class Trajectory(NamedTuple):
    """x_t and x̂_0 at every step of the sampler; if a row is inactive, both are x_t."""

    x: Float[Array, "S B *dims"]
    x_0: Float[Array, "S B *dims"]


def sample(
    denoise: Denoise, x_T: Images, table: StepTable, keys: Keys, noise: Images | None = None
) -> Float[Array, "B *dims"]:
    """Images x_0 from noise x_T: Eq. 12 for every row of the table; not clipped to [−1, 1].

    z_t is drawn from `keys`, or it is row i of `noise` (S, B, …). Memory does not grow with S. A
    solver of order K corrects by predictions as `denoise` gives them: clipped, if it clips. A row
    without noise draws nothing, so its derivative by the noise is 0: differentiate at noise > 0.

    >>> from ddim_jax import eta, gaussian_oracle, image_keys, step_table
    >>> denoise = gaussian_oracle([0.0], [[1.0]], [1.0, 0.64])
    >>> table = step_table([1.0, 0.64], [1], eta(0.0))
    >>> round(sample(denoise, jnp.ones((1, 1)), table, image_keys(0, [0])).item(), 3)
    0.8
    """
    return sample_path(denoise, x_T, table, keys, noise, observe=lambda x_t, x_hat_0: None)[0]


def sample_path(
    denoise: Denoise,
    x_T: Images,
    table: StepTable,
    keys: Keys,
    noise: Images | None = None,
    observe: Callable[[Any, Any], Any] = Trajectory,
) -> tuple[Float[Array, "B *dims"], Any]:
    """`sample`, and the value of `observe`, a function (x_t, x̂_0) → pytree, at every step.

    Trajectory keeps all, 2 S batches; its x[0] is x_T. S is the leading axis of the leaves.

    >>> from ddim_jax import eta, gaussian_oracle, image_keys, step_table
    >>> denoise = gaussian_oracle([0.0], [[1.0]], [1.0, 0.64])
    >>> table = step_table([1.0, 0.64], [1], eta(0.0))
    >>> sample_path(denoise, jnp.ones((1, 1)), table, image_keys(0, [0]))[1].x.tolist()
    [[[1.0]]]
    """
    _check(denoise, x_T, table, keys, noise)
    # Between steps an image is one long row: this halves the sampler's own time on a CPU.
    shape, size = x_T.shape, math.prod(x_T.shape[1:])
    remembered = max(0, *(numbers.shape[-1] - 1 for numbers in table[-2:]))

    def step(carry, inputs):
        (rows, past), (row, z) = carry, inputs

        def draw():
            return noise_rows(keys, row.t, size) if noise is None else z.reshape(rows.shape)

        def down():
            # The network's prediction of x_0 and of the noise in x_t.
            x_t, t = rows.reshape(shape), jnp.broadcast_to(row.t, shape[:1])
            prediction = denoise(x_t, t)
            check_shapes(x_t, prediction)
            # Eq. 12. Fresh noise is drawn only if the row has noise.
            as_rows = Prediction(*(image.reshape(rows.shape) for image in prediction))
            x_s = equation_12(as_rows, draw, row)
            # The solver's correction. First order has none, and remembers no prediction.
            x_s = correct(x_s, predictions := (as_rows, *past), row)
            results = (x_s, predictions[:remembered]), prediction.x_0
            return jax.tree.map(lambda leaf: leaf.astype(rows.dtype), results)

        # Repeats and padding do not call the network.
        carry, x_hat_0 = jax.lax.cond(row.active, down, lambda: (carry, rows.reshape(shape)))
        return carry, observe(rows.reshape(shape), x_hat_0)

    rows = jnp.asarray(x_T).reshape(-1, size)
    none = (Prediction(jnp.zeros_like(rows), jnp.zeros_like(rows)),) * remembered
    (x_0, _), seen = jax.lax.scan(step, (rows, none), (table, noise))
    return x_0.reshape(shape), seen


def sample_many(
    denoise: Denoise, x_T: Images, tables: StepTable, keys: Keys
) -> Float[Array, "E B *dims"]:
    """`sample` for each of the tables (E, S) of `stack_tables`, from the same noise.

    A grid of σ × solver × τ × S is one program. The noise at time t is the same in every table.

    >>> from ddim_jax import eta, gaussian_oracle, image_keys, stack_tables, step_table
    >>> denoise = gaussian_oracle([0.0], [[1.0]], [1.0, 0.64, 0.36])
    >>> tables = [step_table([1.0, 0.64, 0.36], tau, eta(0.0)) for tau in ([1], [1, 2])]
    >>> sample_many(denoise, jnp.ones((1, 1)), stack_tables(tables), image_keys(0, [0])).shape
    (2, 1, 1)
    """
    _check(denoise, x_T, tables, keys, ndim=2)
    return jax.lax.map(lambda table: sample(denoise, x_T, table, keys), tables)


def _check(
    denoise: Denoise,
    x_T: Images,
    table: StepTable,
    keys: Keys,
    noise: Images | None = None,
    ndim: int = 1,
) -> None:
    leaves = [*map(jnp.shape, table[:-2]), *(jnp.shape(numbers)[:-1] for numbers in table[-2:])]
    if len(set(leaves)) != 1 or len(leaves[0]) != ndim:
        raise ValueError(
            f"the table's leaves have shapes {[*map(jnp.shape, table)]}; "
            f"all must be {'(S,)' if ndim == 1 else '(E, S)'}, and corrections have one axis more."
        )
    if noise is not None and noise.shape != (*leaves[0], *x_T.shape):
        raise ValueError(
            f"noise has shape {noise.shape}; it must be {(*leaves[0], *x_T.shape)}, "
            "one draw for each step and image."
        )
    check_keys(keys, x_T, "x_T")
    check_kind(as_denoiser(denoise).kind, table.alpha_bar_t)
