"""Sub-sequences τ of the noisy times 1 … T (DDIM paper, section 4.2).

The sampler visits τ from its end to its beginning and takes the last step from τ_1 to time 0. Each
τ here has exactly S times, 1 ≤ S ≤ T. The official code (github.com/ermongroup/ddim, sample_image)
gives up to twice as many (uniform), or repeats some (quadratic). Sources: uniform (all data but
CIFAR-10) and quadratic, appendix D.2; trailing and linspace, arXiv:2305.08891, table 2; logSNR,
arXiv:2206.00927; Karras, arXiv:2206.00364, Eq. 5; optimal, arXiv:2106.03802.
"""

from collections.abc import Callable

import numpy as np
from jaxtyping import Int64

from .schedules import checked_alpha_bar
from .types import Integer, Numbers, Real

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
    return _strictly_increasing(_quadratic(T, S) + 1, T)


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


def logsnr_timesteps(alpha_bar: Numbers, S: Integer) -> Times:
    """τ at which ½ ln(ᾱ/(1 − ᾱ)) is equally spaced, from T to 1 and rounded to integers.

    τ = (T) for S = 1. Repeated times move to free ones. If ᾱ_T = 0, the spacing starts from T − 1,
    but T is visited in place of T − 1.

    >>> from ddim_jax import alpha_bars, linear_betas
    >>> logsnr_timesteps(alpha_bars(linear_betas(1000)), 5).tolist()
    [1, 31, 303, 723, 1000]
    """
    return _at_log_sigmas(alpha_bar, S, lambda low, high: np.linspace(low, high, S))


def karras_timesteps(alpha_bar: Numbers, S: Integer, rho: Real = 7.0) -> Times:
    """τ at which √((1 − ᾱ)/ᾱ) to the power 1/ρ is equally spaced; otherwise as `logsnr_timesteps`.

    >>> from ddim_jax import alpha_bars, linear_betas
    >>> karras_timesteps(alpha_bars(linear_betas(1000)), 5).tolist()
    [1, 143, 594, 844, 1000]
    """
    if not rho > 0:
        raise ValueError(f"rho is {rho}; it must be > 0, such as 7.")
    return _at_log_sigmas(
        alpha_bar,
        S,
        lambda low, high: rho * np.log(np.linspace(np.exp(low / rho), np.exp(high / rho), S)),
    )


def optimal_timesteps(cost: Numbers, S: Integer) -> Times:
    """The τ with τ_S = T and the least Σ cost[s, t] over its steps t → s, the last one to 0.

    `cost` is (T+1, T+1), from `elbo_costs` or your own; only s < t is read. By dynamic programming:
    C_1(t) = cost[0, t], C_k(t) = min over s of C_{k−1}(s) + cost[s, t]. It optimises that sum, and
    published FIDs do not gain from an optimal ELBO. Source: arXiv:2106.03802, algorithm 1.

    >>> optimal_timesteps([[0, 1, 5, 9], [0, 0, 9, 9], [0, 0, 0, 1], [0, 0, 0, 0]], 2).tolist()
    [2, 3]
    """
    cost = np.array(cost, np.float64)
    T = len(cost) - 1
    if cost.shape != (T + 1, T + 1):
        raise ValueError(f"cost has shape {cost.shape}; it must be (T+1, T+1), cost[s, t].")
    _check_steps(T, S)
    cost[np.tril_indices(T + 1)] = np.inf
    if np.isnan(cost).any():
        raise ValueError("cost has NaN; give a number, or ∞ for steps that are not allowed.")
    least, origins = cost[0], []
    for _ in range(1, S):
        totals = least[:, None] + cost
        origins.append(np.argmin(totals, axis=0))
        least = np.min(totals, axis=0)
    if not least[T] < np.inf:
        raise ValueError(f"every way from T = {T} to 0 in {S} steps has an infinite cost.")
    times = [T]
    for origin in reversed(origins):
        times.append(int(origin[times[-1]]))
    return np.array(times[::-1], np.int64)


def _with_alpha_bar(
    timesteps: Callable[[Integer, Integer], Times],
) -> Callable[[Numbers, Integer], Times]:
    """A τ that needs only T, called as those that need ᾱ."""
    return lambda alpha_bar, S: timesteps(np.size(alpha_bar) - 1, S)


TIMESTEPS: dict[str, Callable[[Numbers, Integer], Times]] = {
    "uniform": _with_alpha_bar(uniform_timesteps),
    "quadratic": _with_alpha_bar(quadratic_timesteps),
    "trailing": _with_alpha_bar(trailing_timesteps),
    "linspace": _with_alpha_bar(linspace_timesteps),
    "logsnr": logsnr_timesteps,
    "karras": karras_timesteps,
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


def _at_log_sigmas(
    alpha_bar: Numbers, S: Integer, spaced: Callable[[float, float], np.ndarray]
) -> Times:
    """The times at which ln √((1 − ᾱ)/ᾱ) has the values `spaced(at 1, at T)`."""
    alpha_bar = checked_alpha_bar(alpha_bar)
    T = len(alpha_bar) - 1
    _check_steps(T, S)
    finite = alpha_bar[1:][alpha_bar[1:] > 0]
    log_sigma = 0.5 * np.log((1 - finite) / finite)
    times = np.interp(spaced(log_sigma[0], log_sigma[-1]), log_sigma, np.arange(len(finite)) + 1)
    times[-1] = T
    return _strictly_increasing(np.round(times).astype(np.int64), T)


def _strictly_increasing(times: Times, T: Integer) -> Times:
    """Non-decreasing times, each repeated one moved to the nearest free one, within 1 … T."""
    index = np.arange(len(times))
    # With τ_i − i in place of τ_i, strictly increasing becomes non-decreasing: a running maximum.
    return np.minimum(np.maximum.accumulate(times - index), T - len(times) + 1) + index


def _check_steps(T: Integer, S: Integer) -> None:
    if not 1 <= S <= T:
        raise ValueError(
            f"S is {S} reverse steps; choose 1 to T = {T}, the number of noising steps."
        )
