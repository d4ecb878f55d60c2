"""The generalised reverse process: a table of steps, and the one update that every σ shares.

    (1)  x_s = √ᾱ_s x̂_0 + √(1 − ᾱ_s − sigma²) ε̂ + noise · z,   z ~ N(0, I)             DDIM paper (arXiv:2010.02502), Eq. 12
               "predicted x_0"   "direction to x_t"   "random noise"

A step goes from time t to time s < t, its neighbours in τ; s = 0 is data. `StepTable` holds one row a step, so that
another η, σ or τ is other numbers in the same compiled program.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from .forward import direction_scale
from .prediction import Prediction
from .sigmas import SigmaSchedule, Steps
from .types import Images, Numbers


class StepTable(NamedTuple):
    """The steps of a reverse process in sampling order, row 0 the noisiest; leaves (S,).

    `step_table` makes it of NumPy arrays in float64, which a compiled program casts to its own precision on entry.
    """

    t: Int[Array | np.ndarray, "*S"]
    alpha_bar_t: Float[Array | np.ndarray, "*S"]
    alpha_bar_s: Float[Array | np.ndarray, "*S"]
    sigma: Float[Array | np.ndarray, "*S"]
    noise: Float[Array | np.ndarray, "*S"]
    active: Bool[Array | np.ndarray, "*S"]


def step_table(
    alpha_bar: Numbers,
    timesteps: Numbers,
    sigma_schedule: SigmaSchedule,
    *,
    allow_repeats: bool = False,
) -> StepTable:
    """The reverse process that visits τ with a σ schedule, checked.

    Equation: rows (t, s) = (τ_S, τ_{S−1}), …, (τ_2, τ_1), (τ_1, 0), each with 0 ≤ sigma² ≤ 1 − ᾱ_s and noise ≥ 0.

    Args:
        alpha_bar: ᾱ_0 … ᾱ_T, shape (T+1,), ᾱ_0 = 1, strictly decreasing, ᾱ_T ≥ 0.
        timesteps: τ, shape (S,), integers, strictly increasing within 1 … T.
        sigma_schedule: `eta`, `ddpm`, `sigma_hat`, `custom`, or a function Steps → Sigmas of your own.
        allow_repeats: take a τ that repeats times, as the official code's do; a repeat (t = s) leaves x unchanged.

    Returns:
        StepTable, leaves (S,), sampling order.

    Raises:
        ValueError: ᾱ, τ, sigma or noise out of range; the message names the row and the value.

    >>> from ddim_jax import alpha_bars, eta, linear_betas, uniform_timesteps
    >>> table = step_table(alpha_bars(linear_betas(1000)), uniform_timesteps(1000, 4), eta(1.0))
    >>> table.t.tolist(), table.noise.round(3).tolist()
    ([751, 501, 251, 1], [0.941, 0.664, 0.01, 0.0])

    Source: arXiv:2010.02502, sections 4.1 and 4.2.
    """
    alpha_bar, tau = _checked_alpha_bar(alpha_bar), np.asarray(timesteps)
    _check_timesteps(tau, len(alpha_bar) - 1, allow_repeats)
    t, s = tau[::-1].astype(np.int64), np.concatenate([[0], tau[:-1]])[::-1].astype(np.int64)
    steps = Steps(t, s, alpha_bar[t], alpha_bar[s])
    sigma, noise = (np.asarray(values, np.float64) for values in sigma_schedule(steps))
    if sigma.shape != t.shape or noise.shape != t.shape:
        raise ValueError(
            f"the σ schedule gave sigma of shape {sigma.shape} and noise of shape {noise.shape}; both need one value for "
            f"each of the {len(t)} steps."
        )
    # The product and the difference round in float64: at σ² = 1 − ᾱ_s the two sides may differ in the last bits.
    limit = 1 - steps.alpha_bar_s
    _check_rows(
        steps,
        "sigma",
        sigma,
        (sigma >= 0) & (sigma**2 <= limit + 1e-12),
        "0 ≤ sigma² ≤ 1 − ᾱ_s",
        limit,
    )
    _check_rows(
        steps, "noise", noise, (noise >= 0) & np.isfinite(noise), "a finite noise ≥ 0", None
    )
    return StepTable(t.astype(np.int32), steps.alpha_bar_t, steps.alpha_bar_s, sigma, noise, t > s)


def stack_tables(tables: Sequence[StepTable]) -> StepTable:
    """Several tables as one, so that one program runs them all.

    Equation: row e is table e, filled up at its end with inactive rows (t = 0, ᾱ = 1, no noise).

    Args:
        tables: at least one StepTable with leaves (S_e,).

    Returns:
        StepTable with leaves (E, S_max), for `sample_many`.

    Raises:
        ValueError: no table.

    >>> from ddim_jax import alpha_bars, eta, linear_betas, uniform_timesteps
    >>> tables = [step_table(alpha_bars(linear_betas(1000)), uniform_timesteps(1000, S), eta(0.0)) for S in (2, 3)]
    >>> stack_tables(tables).active.tolist()
    [[True, True, False], [True, True, True]]
    """
    if not tables:
        raise ValueError("tables is empty; give at least one StepTable.")
    longest = max(len(table.t) for table in tables)
    fill = (0, 1.0, 1.0, 0.0, 0.0, False)

    def padded(table: StepTable) -> StepTable:
        width = (0, longest - len(table.t))
        leaves = zip(table, fill, strict=True)
        return StepTable(
            *(np.pad(np.asarray(leaf), width, constant_values=value) for leaf, value in leaves)
        )

    return StepTable(*(np.stack(leaves) for leaves in zip(*map(padded, tables), strict=True)))


def ddim_step(
    x_t: Images,
    prediction: Prediction,
    z: Images | None,
    row: StepTable,
) -> Float[Array, "..."]:
    """One step of the generalised reverse process.

    Equation: x_s = √ᾱ_s x̂_0 + √(1 − ᾱ_s − sigma²) ε̂ + noise · z; x_t itself where the row is not active.

    Args:
        x_t: images at time t (B, H, W, C), or any shape.
        prediction: x̂_0 and ε̂ at (x_t, t), the shape of x_t.
        z: standard normal noise, the shape of x_t; None: the mean of x_s, without the last term.
        row: one row of a StepTable, scalar leaves.

    Returns:
        x_s, the shape and dtype of x_t.

    Raises:
        ValueError: shapes that differ.

    >>> row = StepTable(2, 0.36, 0.64, 0.0, 0.0, True)
    >>> ddim_step(jnp.ones(1), Prediction(jnp.ones(1), jnp.ones(1)), jnp.zeros(1), row).round(6).tolist()
    [1.399999976158142]

    Source: arXiv:2010.02502, Eq. 12.
    """
    x_hat_0, epsilon_hat = prediction
    shapes = [jnp.shape(value) for value in (x_t, x_hat_0, epsilon_hat, x_t if z is None else z)]
    if len(set(shapes)) > 1:
        raise ValueError(
            "x_t, x̂_0, ε̂ and z have shapes {}, {}, {} and {}; they must be equal.".format(*shapes)
        )
    predicted_x_0 = jnp.sqrt(row.alpha_bar_s) * x_hat_0
    direction_to_x_t = direction_scale(row.alpha_bar_s, row.sigma) * epsilon_hat
    x_s = predicted_x_0 + direction_to_x_t
    if z is not None:
        x_s = x_s + row.noise * z
    return jnp.where(row.active, x_s, x_t).astype(jnp.result_type(x_t))


def _checked_alpha_bar(alpha_bar: Numbers) -> Float[np.ndarray, " times"]:
    values = np.asarray(alpha_bar, np.float64)
    if values.ndim != 1 or values.size < 2:
        raise ValueError(
            f"alpha_bar has shape {values.shape}; it must be (T+1,): use alpha_bars(betas)."
        )
    if values[0] != 1:
        raise ValueError(
            f"alpha_bar[0] is {values[0]:.6g}; time 0 is data, where ᾱ is 1: use alpha_bars(betas)."
        )
    bad = np.flatnonzero(~((np.diff(values) < 0) & (values[1:] >= 0)))
    if bad.size:
        raise ValueError(
            f"alpha_bar[{bad[0] + 1}] is {values[bad[0] + 1]:.6g} after {values[bad[0]]:.6g}; ᾱ must fall strictly and stay ≥ 0."
        )
    return values


def _check_timesteps(tau: np.ndarray, T: int, allow_repeats: bool) -> None:
    if tau.ndim != 1 or not tau.size or not np.issubdtype(tau.dtype, np.integer):
        raise ValueError(
            f"timesteps have shape {tau.shape} and dtype {tau.dtype}; give integers of shape (S,), S ≥ 1."
        )
    if len(tau) > T and not allow_repeats:
        raise ValueError(f"timesteps hold {len(tau)} times; there are only T = {T} noisy ones.")
    outside = np.flatnonzero((tau < 1) | (tau > T))
    if outside.size:
        raise ValueError(
            f"timesteps[{outside[0]}] is {tau[outside[0]]}; noisy times are 1 to T = {T}."
        )
    falling = np.flatnonzero(np.diff(tau) < (0 if allow_repeats else 1))
    if falling.size:
        i = falling[0] + 1
        raise ValueError(
            f"timesteps[{i}] is {tau[i]} after {tau[i - 1]}; times must be strictly increasing"
            f"{' or repeated' if allow_repeats else ' (allow_repeats=True takes repeats, as in the official code)'}."
        )


def _check_rows(
    steps: Steps,
    name: str,
    values: np.ndarray,
    good: np.ndarray,
    rule: str,
    limit: np.ndarray | None,
) -> None:
    for row in np.flatnonzero(~good)[:1]:
        bound = "" if limit is None else f" = {limit[row]:.6g} (sigma ≤ {np.sqrt(limit[row]):.6g})"
        raise ValueError(
            f"row {row} (t={steps.t[row]} to s={steps.s[row]}): {name} is {values[row]:.6g}; needs {rule}{bound}."
        )
