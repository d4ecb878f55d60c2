"""The generalised reverse process, Eq. 10: a table of steps, and one update for every σ.

    (1)  x_s = √ᾱ_s x̂_0 + √(1 − ᾱ_s − sigma²) ε̂ + noise · z,   z ~ N(0, I)                  Eq. 12
               "predicted x_0"   "direction to x_t"   "random noise"
    (2)  x_s ← x_s + Σ_k (a_k x̂_0^k + e_k ε̂^k),   k < K, newest prediction first       solvers.py

A `StepTable` has one row per step. A new η, σ, τ or solver changes its numbers, not the program.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from .forward import direction_scale
from .prediction import Prediction
from .schedules import checked_alpha_bar
from .sigmas import SigmaSchedule, Steps
from .solvers import Solver, first_order
from .types import Images, Integer, Numbers


class _Columns(NamedTuple):
    t: Int[Array | np.ndarray, "*S"]
    s: Int[Array | np.ndarray, "*S"]
    alpha_bar_t: Float[Array | np.ndarray, "*S"]
    alpha_bar_s: Float[Array | np.ndarray, "*S"]
    sigma: Float[Array | np.ndarray, "*S"]
    noise: Float[Array | np.ndarray, "*S"]
    x_0_correction: Float[Array | np.ndarray, "*S K"]
    epsilon_correction: Float[Array | np.ndarray, "*S K"]


class StepTable(_Columns):
    """The steps t → s of a reverse process; leaves (S,), or (E, S) if tables are stacked.

    A row with t = s is inactive: it leaves x as it is. The corrections, a and e in (2), have one
    axis more, of K numbers; K = 0 if they are left out.
    """

    __slots__ = ()

    def __new__(
        cls,
        t: Any,
        s: Any,
        alpha_bar_t: Any,
        alpha_bar_s: Any,
        sigma: Any,
        noise: Any,
        x_0_correction: Any = None,
        epsilon_correction: Any = None,
    ) -> "StepTable":
        """Fill in the corrections that are left out."""
        a, e = (
            np.zeros((*np.shape(t), 0)) if numbers is None else numbers
            for numbers in (x_0_correction, epsilon_correction)
        )
        return super().__new__(cls, t, s, alpha_bar_t, alpha_bar_s, sigma, noise, a, e)

    @property
    def active(self) -> Any:
        """Whether t > s: false for the repeats of official sequences, and for padding."""
        return self.t > self.s


def step_table(
    alpha_bar: Numbers,
    timesteps: Numbers,
    sigma_schedule: SigmaSchedule,
    solver: Solver = first_order(),  # noqa: B008 (a function)
    *,
    allow_repeats: bool = False,
) -> StepTable:
    """The reverse process that visits τ with a σ schedule: (τ_S, τ_{S−1}), …, (τ_2, τ_1), (τ_1, 0).

    `allow_repeats` accepts the τ of the official code: a repeat (t = s) leaves x unchanged.

    >>> from ddim_jax import alpha_bars, eta, linear_betas, uniform_timesteps
    >>> table = step_table(alpha_bars(linear_betas(1000)), uniform_timesteps(1000, 4), eta(1.0))
    >>> table.t.tolist(), table.s.tolist(), table.noise.round(3).tolist()
    ([751, 501, 251, 1], [501, 251, 1, 0], [0.941, 0.664, 0.01, 0.0])
    """
    alpha_bar, tau = checked_alpha_bar(alpha_bar), np.asarray(timesteps)
    _check_timesteps(tau, len(alpha_bar) - 1, allow_repeats)
    t, s = tau[::-1].astype(np.int64), np.concatenate([[0], tau[:-1]])[::-1].astype(np.int64)
    steps = Steps(t, s, alpha_bar[t], alpha_bar[s])
    sigma, noise = (np.asarray(values, np.float64) for values in sigma_schedule(steps))
    _check_sigmas(steps, sigma, noise)
    x_0, epsilon = (np.asarray(numbers, np.float64) for numbers in solver(steps, sigma))
    _check_corrections(steps, x_0, epsilon)
    return StepTable(
        t=t.astype(np.int32),
        s=s.astype(np.int32),
        alpha_bar_t=steps.alpha_bar_t,
        alpha_bar_s=steps.alpha_bar_s,
        sigma=sigma,
        noise=noise,
        x_0_correction=x_0,
        epsilon_correction=epsilon,
    )


def stack_tables(tables: Sequence[StepTable]) -> StepTable:
    """Several tables as one with leaves (E, S_max), so that one program runs them all.

    Shorter ones are padded at the end with inactive rows: t = s = 0, ᾱ = 1, no noise. Corrections
    are padded with zeros to the largest K.

    >>> from ddim_jax import eta
    >>> tables = [step_table([1.0, 0.8, 0.5], tau, eta(0.0)) for tau in ([2], [1, 2])]
    >>> stack_tables(tables).active.tolist()
    [[True, False], [True, True]]
    """
    if not tables:
        raise ValueError("tables is empty; give at least one StepTable.")
    longest = max(len(table.t) for table in tables)
    most = max(np.shape(leaf)[-1] for table in tables for leaf in table[-2:])

    def padded(table: StepTable, name: str) -> np.ndarray:
        leaf = np.asarray(getattr(table, name))
        widths = [(0, longest - len(leaf)), *((0, most - K) for K in leaf.shape[1:])]
        return np.pad(leaf, widths, constant_values=1 if name.startswith("alpha_bar") else 0)

    names = StepTable._fields
    return StepTable(
        **{name: np.stack([padded(table, name) for table in tables]) for name in names}
    )


def ddim_step(
    x_t: Images, prediction: Prediction, z: Images | None, row: StepTable
) -> Float[Array, "..."]:
    """x_s by Eq. 12 for a row with scalar leaves; x_t itself if the row is inactive.

    Without z it is the mean of x_s, Eq. 12 without its last term.

    >>> row = StepTable(t=2, s=1, alpha_bar_t=0.36, alpha_bar_s=0.64, sigma=0.0, noise=0.0)
    >>> prediction = Prediction(jnp.ones(1), jnp.ones(1))
    >>> ddim_step(jnp.ones(1), prediction, jnp.zeros(1), row).round(6).tolist()
    [1.399999976158142]
    """
    check_shapes(x_t, prediction, z)
    x_s = equation_12(prediction, 0.0 if z is None else z, row)
    return jnp.where(row.active, x_s, x_t).astype(jnp.result_type(x_t))


def equation_12(
    prediction: Prediction, z: Any | Callable[[], Any], row: StepTable
) -> Float[Array, "..."]:
    """(1), also for an inactive row. If z is a function, it is called only if the row has noise."""
    predicted_x_0 = jnp.sqrt(row.alpha_bar_s) * prediction.x_0
    direction_to_x_t = direction_scale(row.alpha_bar_s, row.sigma) * prediction.epsilon
    mean = predicted_x_0 + direction_to_x_t

    def with_random_noise(z):
        return (mean + row.noise * z).astype(mean.dtype)

    if not callable(z):
        return with_random_noise(z)
    return jax.lax.cond(row.noise > 0, lambda: with_random_noise(z()), lambda: mean)


def correct(
    x_s: Float[Array, "..."], predictions: Sequence[Prediction], row: StepTable
) -> Float[Array, "..."]:
    """(2), with the predictions that there are, newest first; all K = 0 of them for first order."""
    for number, prediction in zip(row.x_0_correction, predictions, strict=False):
        x_s = x_s + number * prediction.x_0
    for number, prediction in zip(row.epsilon_correction, predictions, strict=False):
        x_s = x_s + number * prediction.epsilon
    return x_s


def check_shapes(x_t: Images, prediction: Prediction, z: Images | None = None) -> None:
    """Refuse arrays that would broadcast in (1)."""
    shapes = [jnp.shape(value) for value in (x_t, *prediction, x_t if z is None else z)]
    if len(set(shapes)) > 1:
        raise ValueError(
            "x_t, x̂_0, ε̂ and z have shapes {}, {}, {} and {}; they must be equal.".format(*shapes)
        )


def _check_timesteps(tau: np.ndarray, T: int, allow_repeats: bool) -> None:
    if tau.ndim != 1 or not tau.size or not np.issubdtype(tau.dtype, np.integer):
        raise ValueError(
            f"timesteps have shape {tau.shape} and dtype {tau.dtype}; "
            "give integers of shape (S,), S ≥ 1."
        )
    if len(tau) > T and not allow_repeats:
        raise ValueError(f"timesteps hold {len(tau)} times; there are only T = {T} noisy ones.")
    for i in np.flatnonzero((tau < 1) | (tau > T)):
        raise ValueError(f"timesteps[{i}] is {tau[i]}; noisy times are 1 to T = {T}.")
    for i in np.flatnonzero(np.diff(tau) < (0 if allow_repeats else 1)) + 1:
        repeats = " (allow_repeats=True takes repeats, as in the official code)"
        raise ValueError(
            f"timesteps[{i}] is {tau[i]} after {tau[i - 1]}; times must be strictly increasing"
            f"{' or repeated' if allow_repeats else repeats}."
        )


def _check_sigmas(steps: Steps, sigma: np.ndarray, noise: np.ndarray) -> None:
    if sigma.shape != steps.t.shape or noise.shape != steps.t.shape:
        raise ValueError(
            f"the σ schedule gave sigma of shape {sigma.shape} and noise of shape {noise.shape}; "
            f"both need one value for each of the {len(steps.t)} steps."
        )
    # Both sides round in float64: at σ² = 1 − ᾱ_s they may differ in the last bits.
    limit = 1 - steps.alpha_bar_s
    for row in np.flatnonzero(~((sigma >= 0) & (sigma**2 <= limit + 1e-12))):
        allowed = f"0 ≤ sigma² ≤ 1 − ᾱ_s = {limit[row]:.6g} (sigma ≤ {np.sqrt(limit[row]):.6g})"
        raise _row_error(steps, row, f"sigma is {sigma[row]:.6g}; needs {allowed}")
    for row in np.flatnonzero(~((noise >= 0) & np.isfinite(noise))):
        raise _row_error(steps, row, f"noise is {noise[row]:.6g}; needs a finite noise ≥ 0")


def _check_corrections(steps: Steps, x_0: np.ndarray, epsilon: np.ndarray) -> None:
    if x_0.shape != epsilon.shape or x_0.ndim != 2 or len(x_0) != len(steps.t):
        raise ValueError(
            f"the solver gave corrections of shapes {x_0.shape} and {epsilon.shape}; both must be "
            f"(S, K), one row for each of the {len(steps.t)} steps."
        )
    active = steps.t > steps.s
    # A repeat makes no prediction and takes no correction.
    known = np.where(active, np.cumsum(active), 0)
    for row, K in zip(*np.nonzero((x_0 != 0) | (epsilon != 0)), strict=True):
        if known[row] <= K:
            problem = f"the solver corrects it by prediction {K} (0 is the newest)"
            raise _row_error(steps, row, f"{problem}; only {known[row]} can be used")
    for numbers in (x_0, epsilon):
        total, scale = numbers.sum(axis=1), 1 + np.abs(numbers).sum(axis=1)
        for row in np.flatnonzero(~(np.isfinite(scale) & (np.abs(total) <= 1e-9 * scale))):
            problem = f"the numbers of the solver sum to {total[row]:.6g}"
            raise _row_error(steps, row, f"{problem}; they must be finite and sum to 0")


def _row_error(steps: Steps, row: Integer, problem: str) -> ValueError:
    return ValueError(f"row {row} (t={steps.t[row]} to s={steps.s[row]}): {problem}.")
