"""Sub-sequences τ of the noisy times 1 … T (DDIM paper, arXiv:2010.02502, section 4.2 and appendix D.2).

A sequence is a strictly increasing integer array of exactly S times. The sampler visits it from its end to its beginning
and takes the last step from τ_1 to time 0, which is data. The official code derives its sequences otherwise: they are up to
twice as long as asked (uniform) or repeat times (quadratic). `official_timesteps` reproduces them for parity.
"""

import numpy as np
from jaxtyping import Int64

from .types import Integer

Times = Int64[np.ndarray, " S"]


def uniform_timesteps(T: Integer, S: Integer) -> Times:
    """S equally spaced times that begin at 1, the paper's linear τ (used there for all but CIFAR-10).

    Equation: τ_i = ⌊(i − 1) T/S⌋ + 1,  i = 1 … S; equal to the official code's where S divides T.

    Args:
        T: number of noising steps.
        S: number of reverse steps, 1 ≤ S ≤ T.

    Returns:
        τ, shape (S,), strictly increasing within 1 … T.

    Raises:
        ValueError: S outside 1 … T.

    >>> uniform_timesteps(1000, 10).tolist()
    [1, 101, 201, 301, 401, 501, 601, 701, 801, 901]

    Source: arXiv:2010.02502, appendix D.2.
    """
    _check_steps(T, S)
    return np.arange(S, dtype=np.int64) * T // S + 1


def quadratic_timesteps(T: Integer, S: Integer) -> Times:
    """S times that are denser near the data, the paper's quadratic τ (used there for CIFAR-10).

    Equation: τ_i = max(⌊(√(0.8 T) · (i − 1)/(S − 1))²⌋ + 1, τ_{i−1} + 1),  i = 1 … S; the first is the official code's, the
    maximum replaces its repeated times by the next free ones.

    Args:
        T: number of noising steps.
        S: number of reverse steps, 1 ≤ S ≤ T.

    Returns:
        τ, shape (S,), strictly increasing within 1 … T.

    Raises:
        ValueError: S outside 1 … T.

    >>> quadratic_timesteps(1000, 10).tolist()
    [1, 10, 40, 89, 159, 247, 356, 484, 633, 801]

    Source: arXiv:2010.02502, appendix D.2.
    """
    _check_steps(T, S)
    index = np.arange(S)
    # With τ_i − i in place of τ_i, strictly increasing becomes non-decreasing: a running maximum.
    return np.maximum.accumulate(_quadratic(T, S) + 1 - index) + index


def trailing_timesteps(T: Integer, S: Integer) -> Times:
    """S equally spaced times that end at T.

    Equation: τ_i = round(i T/S),  i = 1 … S.

    Args:
        T: number of noising steps.
        S: number of reverse steps, 1 ≤ S ≤ T.

    Returns:
        τ, shape (S,), strictly increasing, τ_S = T.

    Raises:
        ValueError: S outside 1 … T.

    >>> trailing_timesteps(1000, 4).tolist()
    [250, 500, 750, 1000]

    Source: Lin et al., arXiv:2305.08891, table 2.
    """
    _check_steps(T, S)
    return np.round(np.arange(1, S + 1) * T / S).astype(np.int64)


def linspace_timesteps(T: Integer, S: Integer) -> Times:
    """S equally spaced times that begin at 1 and end at T.

    Equation: τ_i = 1 + round((i − 1)(T − 1)/(S − 1)),  i = 1 … S; τ = (T) for S = 1.

    Args:
        T: number of noising steps.
        S: number of reverse steps, 1 ≤ S ≤ T.

    Returns:
        τ, shape (S,), strictly increasing.

    Raises:
        ValueError: S outside 1 … T.

    >>> linspace_timesteps(1000, 4).tolist()
    [1, 334, 667, 1000]

    Source: Lin et al., arXiv:2305.08891, table 2.
    """
    _check_steps(T, S)
    return np.round(np.linspace(T, 1, S)).astype(np.int64)[::-1]


def official_timesteps(T: Integer, S: Integer, kind: str) -> Times:
    """The times that the official code visits, repeats and untrue lengths included, for parity with it.

    Equation: uniform 1 + range(0, T, T//S); quadratic 1 + ⌊linspace(0, √(0.8 T), S)²⌋.

    Args:
        T: number of noising steps.
        S: number of reverse steps asked for, 1 ≤ S ≤ T.
        kind: "uniform" or "quadratic" (the official flag says "quad", which is taken too).

    Returns:
        Times within 1 … T, non-decreasing; S long only where the official sequence is.

    Raises:
        ValueError: S outside 1 … T, or an unknown kind.

    >>> len(official_timesteps(1000, 300, "uniform")), len(uniform_timesteps(1000, 300))
    (334, 300)

    Source: github.com/ermongroup/ddim, runners/diffusion.py, sample_image.
    """
    _check_steps(T, S)
    if kind == "uniform":
        return np.arange(0, T, T // S, dtype=np.int64) + 1
    if kind in ("quadratic", "quad"):
        return _quadratic(T, S) + 1
    raise ValueError(f"kind is {kind!r}; the official code has 'uniform' and 'quadratic'.")


def _quadratic(T: Integer, S: Integer) -> Times:
    return (np.linspace(0, np.sqrt(T * 0.8), S) ** 2).astype(np.int64)


def _check_steps(T: Integer, S: Integer) -> None:
    if not 1 <= S <= T:
        raise ValueError(
            f"S is {S} reverse steps; choose 1 to T = {T}, the number of noising steps."
        )
