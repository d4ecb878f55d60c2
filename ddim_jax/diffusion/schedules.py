"""β schedules and the signal level ᾱ that everything else is written in.

    (1)  ᾱ_t = Π_{i=1..t} (1 − β_i),   ᾱ_0 = 1

ᾱ is DDPM's name for it; the DDIM paper (arXiv:2010.02502) writes α. Everything here runs on the host in NumPy float64
and is cast once, where it enters a compiled program: 1 − ᾱ_1 is 1e-4 and would lose four digits in float32.
"""

import numpy as np
from jaxtyping import Float64

from .types import Numbers


def linear_betas(num_steps: int = 1000, start: float = 1e-4, end: float = 0.02) -> Float64[np.ndarray, " T"]:
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


def cosine_betas(num_steps: int = 1000, offset: float = 0.008, max_beta: float = 0.999) -> Float64[np.ndarray, " T"]:
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


def _check_num_steps(num_steps: int) -> None:
    if num_steps < 1:
        raise ValueError(f"num_steps is {num_steps}; a schedule needs at least 1 step, DDPM has 1000.")


def _checked(betas: np.ndarray) -> np.ndarray:
    bad = np.flatnonzero(~((betas > 0) & (betas <= 1)))
    if bad.size:
        raise ValueError(f"β_{bad[0] + 1} is {betas[bad[0]]:.6g}; every β must lie in (0, 1]: change start, end or offset.")
    return betas
