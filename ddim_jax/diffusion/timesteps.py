"""Sub-sequences τ of the noisy times 1 … T (DDIM paper, section 4.2).

The sampler visits τ from its end to its beginning and takes the last step from τ_1 to time 0. Each
τ here has exactly S times, 1 ≤ S ≤ T. The official code (github.com/ermongroup/ddim, sample_image)
gives up to twice as many (uniform), or repeats some (quadratic). Sources: uniform (all data but
CIFAR-10) and quadratic, appendix D.2; trailing and linspace, arXiv:2305.08891, table 2.
"""

from collections.abc import Callable

import numpy as np
from jaxtyping import Int64

from .types import Integer

Times = Int64[np.ndarray, " S"]


def uniform_timesteps(T: Integer, S: Integer) -> Times:
    """τ_i = ⌊(i − 1) T/S⌋ + 1: equally spaced from 1; as in the official code if S divides T.

    >>> uniform_timesteps(1000, 10).tolist()
    [1, 101, 201, 301, 401, 501, 601, 701, 801, 901]
    """
    _check_steps(T, S)
    return np.arange(S, dtype=np.int64) * T // S + 1


def quadratic_timesteps(T: Integer, S: Integer) -> Times:
    """τ_i = ⌊(√(0.8 T) (i − 1)/(S − 1))²⌋ + 1: denser near the data; the paper's for CIFAR-10.

    As in the official code, but a repeated time moves to the next free one: τ_i ≥ τ_{i−1} + 1.

    >>> quadratic_timesteps(1000, 10).tolist()
    [1, 10, 40, 89, 159, 247, 356, 484, 633, 801]
    """
    _check_steps(T, S)
    index = np.arange(S)
    # With τ_i − i in place of τ_i, strictly increasing becomes non-decreasing: a running maximum.
    return np.maximum.accumulate(_quadratic(T, S) + 1 - index) + index


def trailing_timesteps(T: Integer, S: Integer) -> Times:
    """τ_i = round(i T/S): equally spaced times that end at T.

    >>> trailing_timesteps(1000, 4).tolist()
    [250, 500, 750, 1000]
    """
    _check_steps(T, S)
    return np.round(np.arange(1, S + 1) * T / S).astype(np.int64)


def linspace_timesteps(T: Integer, S: Integer) -> Times:
    """τ_i = 1 + round((i − 1)(T − 1)/(S − 1)): equally spaced from 1 to T; τ = (T) for S = 1.

    >>> linspace_timesteps(1000, 4).tolist()
    [1, 334, 667, 1000]
    """
    _check_steps(T, S)
    return np.round(np.linspace(T, 1, S)).astype(np.int64)[::-1]


TIMESTEPS: dict[str, Callable[[Integer, Integer], Times]] = {
    "uniform": uniform_timesteps,
    "quadratic": quadratic_timesteps,
    "trailing": trailing_timesteps,
    "linspace": linspace_timesteps,
}


def official_timesteps(T: Integer, S: Integer, kind: str) -> Times:
    """The times that the official code visits for `kind` "uniform" or "quadratic" ("quad").

    Uniform ones may be more than S, and quadratic ones may repeat. Only for parity with that code.

    >>> len(official_timesteps(1000, 300, "uniform")), len(uniform_timesteps(1000, 300))
    (334, 300)
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
