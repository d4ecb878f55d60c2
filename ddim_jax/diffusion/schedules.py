"""β schedules, and the signal level ᾱ that all formulas use (DDIM paper, section 2).

    (1)  ᾱ_t = Π_{i=1..t} (1 − β_i),   ᾱ_0 = 1

A schedule is β_1 … β_T, shape (T,), each in (0, 1], in float64: 1 − ᾱ_1 is 1e-4 and would lose four
digits in float32. Quadratic, sigmoid, constant and jsd are as in the official code
(github.com/ermongroup/ddim, runners/diffusion.py).
"""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float64

from .types import Integer, Numbers, Real

Betas = Float64[np.ndarray, " T"]


def linear_betas(num_steps: Integer = 1000, start: Real = 1e-4, end: Real = 0.02) -> Betas:
    """β_t = start + (t − 1)/(T − 1) · (end − start): DDPM's (arXiv:2006.11239, section 4).

    >>> linear_betas(1000)[[0, -1]].tolist()
    [0.0001, 0.02]
    """
    return _checked(np.linspace(start, end, _at_least_1(num_steps), dtype=np.float64))


def cosine_betas(num_steps: Integer = 1000, offset: Real = 0.008, max_beta: Real = 0.999) -> Betas:
    """β for which ᾱ falls as cos²((t/T + offset)/(1 + offset) · π/2), no β above max_beta.

    The offset keeps β_1 above 0; max_beta keeps ᾱ_T above 0. Source: arXiv:2102.09672, Eq. 17.

    >>> float(cosine_betas(1000)[-1])
    0.999
    """
    u = np.arange(_at_least_1(num_steps) + 1, dtype=np.float64) / num_steps
    f = np.cos((u + offset) / (1 + offset) * np.pi / 2) ** 2
    return _checked(np.minimum(1 - f[1:] / f[:-1], max_beta))


def quadratic_betas(num_steps: Integer = 1000, start: Real = 1e-4, end: Real = 0.02) -> Betas:
    """β_t = (√start + (t − 1)/(T − 1) · (√end − √start))², called "scaled linear" elsewhere.

    >>> quadratic_betas(3, 0.01, 0.09).round(6).tolist()
    [0.01, 0.04, 0.09]
    """
    first, last = np.sqrt(_checked(np.array([start, end])))
    return _checked(np.linspace(first, last, _at_least_1(num_steps)) ** 2)


def sigmoid_betas(num_steps: Integer = 1000, start: Real = 1e-4, end: Real = 0.02) -> Betas:
    """β_t = start + (end − start)/(1 + exp(−u_t)) with u from −6 to 6 in equal steps.

    >>> round(float(sigmoid_betas(3, 0.0, 0.02)[1]), 6)
    0.01
    """
    u = np.linspace(-6, 6, _at_least_1(num_steps))
    return _checked(start + (end - start) / (1 + np.exp(-u)))


def constant_betas(num_steps: Integer = 1000, value: Real = 0.02) -> Betas:
    """β_t = value.

    >>> constant_betas(2, 0.5).tolist()
    [0.5, 0.5]
    """
    return _checked(np.full(_at_least_1(num_steps), value, np.float64))


def jsd_betas(num_steps: Integer = 1000) -> Betas:
    """β_t = 1/(T − t + 1), for which ᾱ_t = 1 − t/T falls to exactly 0 (arXiv:1503.03585, 2.4.1).

    ᾱ_T = 0 holds no signal: a step that visits T needs a network that predicts x_0 or v.

    >>> alpha_bars(jsd_betas(4)).round(6).tolist()
    [1.0, 0.75, 0.5, 0.25, 0.0]
    """
    return _checked(1 / np.arange(_at_least_1(num_steps), 0, -1, dtype=np.float64))


# By name, as functions (num_steps, start, end); a schedule ignores what it does not need.
BETAS: dict[str, Callable[[Integer, Real, Real], Betas]] = {
    "linear": linear_betas,
    "cosine": lambda num_steps, start, end: cosine_betas(num_steps),
    "quadratic": quadratic_betas,
    "sigmoid": sigmoid_betas,
    "constant": lambda num_steps, start, end: constant_betas(num_steps, end),
    "jsd": lambda num_steps, start, end: jsd_betas(num_steps),
}


def alpha_bars(betas: Numbers) -> Float64[np.ndarray, " times"]:
    """The signal level ᾱ_0 … ᾱ_T, shape (T+1,), of β_1 … β_T, (1).

    >>> alpha_bars([0.1, 0.5]).tolist()
    [1.0, 0.9, 0.45]
    """
    return np.concatenate([[1.0], np.cumprod(1 - _checked(np.asarray(betas, np.float64)))])


def zero_terminal_snr(alpha_bar: Numbers) -> Float64[np.ndarray, " times"]:
    """√ᾱ_t ← √ᾱ_1 (√ᾱ_t − √ᾱ_T)/(√ᾱ_1 − √ᾱ_T): ᾱ_T becomes exactly 0, and ᾱ_0 and ᾱ_1 stay.

    As with jsd, T needs a network that predicts x_0 or v. Source: arXiv:2305.08891, algorithm 1.

    >>> zero_terminal_snr([1.0, 0.81, 0.36, 0.09]).round(4).tolist()
    [1.0, 0.81, 0.2025, 0.0]
    """
    values = np.asarray(alpha_bar, np.float64)
    if values.ndim != 1 or len(values) < 3 or not np.all(np.diff(values) < 0) or values[-1] < 0:
        raise ValueError(
            f"alpha_bar is {values}; it must be (T+1,) with T ≥ 2, decrease strictly and stay ≥ 0."
        )
    root = np.sqrt(values[1:])
    return np.concatenate([[1.0], (root[0] * (root - root[-1]) / (root[0] - root[-1])) ** 2])


def checked_alpha_bar(alpha_bar: Numbers) -> Float64[np.ndarray, " times"]:
    """ᾱ in float64; refused if it is not ᾱ_0 = 1 … ᾱ_T, strictly decreasing."""
    values = np.asarray(alpha_bar, np.float64)
    if values.ndim != 1 or values.size < 2:
        raise ValueError(
            f"alpha_bar has shape {values.shape}; it must be (T+1,): use alpha_bars(betas)."
        )
    if values[0] != 1:
        raise ValueError(
            f"alpha_bar[0] is {values[0]:.6g}; time 0 is data, where ᾱ is 1: use alpha_bars(betas)."
        )
    for i in np.flatnonzero(~((np.diff(values) < 0) & (values[1:] >= 0))):
        raise ValueError(
            f"alpha_bar[{i + 1}] is {values[i + 1]:.6g} after {values[i]:.6g}; "
            "ᾱ must decrease strictly and stay ≥ 0."
        )
    return values


def _at_least_1(num_steps: Integer) -> Integer:
    if num_steps < 1:
        raise ValueError(
            f"num_steps is {num_steps}; a schedule needs at least 1 step, DDPM has 1000."
        )
    return num_steps


def _checked(betas: np.ndarray) -> np.ndarray:
    for i in np.flatnonzero(~((betas > 0) & (betas <= 1))):
        raise ValueError(
            f"β_{i + 1} is {betas[i]:.6g}; every β must lie in (0, 1]: change start, end or offset."
        )
    return betas
