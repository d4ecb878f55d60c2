"""β schedules and the signal level ᾱ that everything else is written in.

    (1)  ᾱ_t = Π_{i=1..t} (1 − β_i),   ᾱ_0 = 1

ᾱ is DDPM's name for it; the DDIM paper (arXiv:2010.02502) writes α. Everything here runs on the host in NumPy float64
and is cast once, where it enters a compiled program: 1 − ᾱ_1 is 1e-4 and would lose four digits in float32.
"""

import numpy as np
from jaxtyping import Float64

from .types import Integer, Numbers, Real


def linear_betas(
    num_steps: Integer = 1000, start: Real = 1e-4, end: Real = 0.02
) -> Float64[np.ndarray, " T"]:
    """β that grows linearly, DDPM's schedule and the one of the DDIM paper's experiments.

    Equation: β_t = start + (t − 1)/(T − 1) · (end − start).

    Args:
        num_steps: T ≥ 1, the number of noising steps.
        start: β_1, in (0, 1].
        end: β_T, in (0, 1].

    Returns:
        β_1 … β_T, shape (T,), float64.

    Raises:
        ValueError: T < 1, or a β outside (0, 1].

    >>> linear_betas(1000)[[0, -1]].tolist()
    [0.0001, 0.02]

    Source: Ho et al., arXiv:2006.11239, section 4.
    """
    _check_num_steps(num_steps)
    return _checked(np.linspace(start, end, num_steps, dtype=np.float64))


def cosine_betas(
    num_steps: Integer = 1000, offset: Real = 0.008, max_beta: Real = 0.999
) -> Float64[np.ndarray, " T"]:
    """β for which ᾱ falls as a squared cosine.

    Equation: β_t = min(1 − f(t)/f(t−1), max_beta),  f(t) = cos²((t/T + offset)/(1 + offset) · π/2).

    Args:
        num_steps: T ≥ 1, the number of noising steps.
        offset: small shift ≥ 0 that keeps β_1 from vanishing.
        max_beta: cap in (0, 1] that keeps ᾱ_T above 0.

    Returns:
        β_1 … β_T, shape (T,), float64.

    Raises:
        ValueError: T < 1, or a β outside (0, 1].

    >>> float(cosine_betas(1000)[-1])
    0.999

    Source: Nichol and Dhariwal, arXiv:2102.09672, Eq. 17.
    """
    _check_num_steps(num_steps)
    u = np.arange(num_steps + 1, dtype=np.float64) / num_steps
    f = np.cos((u + offset) / (1 + offset) * np.pi / 2) ** 2
    return _checked(np.minimum(1 - f[1:] / f[:-1], max_beta))


def quadratic_betas(
    num_steps: Integer = 1000, start: Real = 1e-4, end: Real = 0.02
) -> Float64[np.ndarray, " T"]:
    """β whose square root grows linearly ("scaled linear" elsewhere).

    Equation: β_t = (√start + (t − 1)/(T − 1) · (√end − √start))².

    Args:
        num_steps: T ≥ 1, the number of noising steps.
        start: β_1, in (0, 1].
        end: β_T, in (0, 1].

    Returns:
        β_1 … β_T, shape (T,), float64.

    Raises:
        ValueError: T < 1, or a β outside (0, 1].

    >>> quadratic_betas(3, 0.01, 0.09).round(6).tolist()
    [0.01, 0.04, 0.09]

    Source: github.com/ermongroup/ddim, runners/diffusion.py, "quad".
    """
    _check_num_steps(num_steps)
    _checked(np.array([start, end]))
    return _checked(np.linspace(np.sqrt(start), np.sqrt(end), num_steps) ** 2)


def sigmoid_betas(
    num_steps: Integer = 1000, start: Real = 1e-4, end: Real = 0.02
) -> Float64[np.ndarray, " T"]:
    """β that rises along a logistic curve.

    Equation: β_t = start + (end − start)/(1 + exp(−u_t)),  u from −6 to 6 in equal steps.

    Args:
        num_steps: T ≥ 1, the number of noising steps.
        start: lower asymptote, in [0, 1].
        end: upper asymptote, in [0, 1].

    Returns:
        β_1 … β_T, shape (T,), float64.

    Raises:
        ValueError: T < 1, or a β outside (0, 1].

    >>> round(float(sigmoid_betas(3, 0.0, 0.02)[1]), 6)
    0.01

    Source: github.com/ermongroup/ddim, runners/diffusion.py, "sigmoid".
    """
    _check_num_steps(num_steps)
    return _checked(start + (end - start) / (1 + np.exp(-np.linspace(-6, 6, num_steps))))


def constant_betas(num_steps: Integer = 1000, value: Real = 0.02) -> Float64[np.ndarray, " T"]:
    """The same β at every step.

    Equation: β_t = value.

    Args:
        num_steps: T ≥ 1, the number of noising steps.
        value: β, in (0, 1].

    Returns:
        β_1 … β_T, shape (T,), float64.

    Raises:
        ValueError: T < 1, or a β outside (0, 1].

    >>> constant_betas(2, 0.5).tolist()
    [0.5, 0.5]

    Source: github.com/ermongroup/ddim, runners/diffusion.py, "const".
    """
    _check_num_steps(num_steps)
    return _checked(np.full(num_steps, value, np.float64))


def jsd_betas(num_steps: Integer = 1000) -> Float64[np.ndarray, " T"]:
    """β = 1/T, 1/(T−1), …, 1, for which ᾱ falls linearly to exactly 0.

    Equation: β_t = 1/(T − t + 1), so ᾱ_t = 1 − t/T.

    ᾱ_T = 0 holds no signal: a step that visits T needs a network that predicts x_0 or v.

    Args:
        num_steps: T ≥ 1, the number of noising steps.

    Returns:
        β_1 … β_T, shape (T,), float64.

    Raises:
        ValueError: T < 1.

    >>> alpha_bars(jsd_betas(4)).round(6).tolist()
    [1.0, 0.75, 0.5, 0.25, 0.0]

    Source: Sohl-Dickstein et al., arXiv:1503.03585, section 2.4.1; the official code's "jsd".
    """
    _check_num_steps(num_steps)
    return _checked(1 / np.arange(num_steps, 0, -1, dtype=np.float64))


def alpha_bars(betas: Numbers) -> Float64[np.ndarray, " times"]:
    """The signal level of every time, with ᾱ_0 = 1 for clean data.

    Equation: ᾱ_t = Π_{i=1..t} (1 − β_i).

    Args:
        betas: β_1 … β_T, shape (T,), each in (0, 1].

    Returns:
        ᾱ_0 … ᾱ_T, shape (T+1,), float64, decreasing; noisy times are 1 … T.

    Raises:
        ValueError: a β outside (0, 1].

    >>> alpha_bars(np.array([0.1, 0.5])).tolist()
    [1.0, 0.9, 0.45]

    Source: arXiv:2006.11239, Eq. 4; the DDIM paper's α (arXiv:2010.02502, section 2).
    """
    return np.concatenate([[1.0], np.cumprod(1 - _checked(np.asarray(betas, np.float64)))])


def zero_terminal_snr(alpha_bar: Numbers) -> Float64[np.ndarray, " times"]:
    """ᾱ stretched so that its last value is exactly 0 and its first two stay.

    Equation: √ᾱ_t ← √ᾱ_1 (√ᾱ_t − √ᾱ_T)/(√ᾱ_1 − √ᾱ_T) for t ≥ 1; ᾱ_0 = 1.

    A step that visits T needs a network that predicts x_0 or v.

    Args:
        alpha_bar: ᾱ_0 … ᾱ_T, shape (T+1,), T ≥ 2, decreasing.

    Returns:
        ᾱ, shape (T+1,), float64, with ᾱ_T = 0.

    Raises:
        ValueError: T < 2, or an ᾱ that does not fall.

    >>> zero_terminal_snr([1.0, 0.81, 0.36, 0.09]).round(4).tolist()
    [1.0, 0.81, 0.2025, 0.0]

    Source: Lin et al., arXiv:2305.08891, algorithm 1.
    """
    values = np.asarray(alpha_bar, np.float64)
    if values.ndim != 1 or len(values) < 3 or not np.all(np.diff(values) < 0) or values[-1] < 0:
        raise ValueError(
            f"alpha_bar is {values}; it must be (T+1,) with T ≥ 2, fall strictly and stay ≥ 0."
        )
    root = np.sqrt(values[1:])
    return np.concatenate([[1.0], (root[0] * (root - root[-1]) / (root[0] - root[-1])) ** 2])


def _check_num_steps(num_steps: Integer) -> None:
    if num_steps < 1:
        raise ValueError(
            f"num_steps is {num_steps}; a schedule needs at least 1 step, DDPM has 1000."
        )


def _checked(betas: np.ndarray) -> np.ndarray:
    bad = np.flatnonzero(~((betas > 0) & (betas <= 1)))
    if bad.size:
        raise ValueError(
            f"β_{bad[0] + 1} is {betas[bad[0]]:.6g}; every β must lie in (0, 1]: change start, end or offset."
        )
    return betas
