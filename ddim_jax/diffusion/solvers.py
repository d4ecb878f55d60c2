"""Solvers: linear multistep methods of any order, for any σ, as corrections to Eq. 12.

A linear multistep method adds to Eq. 12 multiples of the newest K predictions:

    (1)  x_s = √ᾱ_s x̂_0 + √(1−ᾱ_s−sigma²) ε̂ + noise · z + Σ_k (a_k x̂_0^k + e_k ε̂^k)

x̂_0^k and ε̂^k were predicted at time t_k. The newest has k = 0: it is x̂_0, ε̂, and t_0 = t. With
λ = ½ ln(ᾱ/(1−ᾱ)) and ρ = √((1−ᾱ)/ᾱ), Eq. 12 itself can be written as an integral in two ways:

    (2)  x_s = e^{−κh} √(ᾱ_s/ᾱ_t) x_t + √ᾱ_s ∫_0^1 κh e^{−κh(1−v)} x̂_0 dv + noise · z,
         h = λ_s − λ_t,   κh = h − ½ ln(1 − sigma²/(1−ᾱ_s))
    (3)  x_s = √(ᾱ_s/ᾱ_t) x_t + √ᾱ_s (ρ_s − ρ_t) ∫_0^1 ε̂ dv                       only if sigma = 0

Eq. 12 holds x̂_0 or ε̂ constant over the step. A method of order K replaces the constant by the
polynomial of degree K − 1 through the newest K predictions. On the scale of v they lie at v_0 = 0
and

    (4)  v_k = (λ_{t_k} − λ_t)/h  in (2),   (ρ_{t_k} − ρ_t)/(ρ_s − ρ_t)  in (3).

The integral of the polynomial is Σ_k w_k x̂_0^k, with weights that are exact for v^j, j < K:

    (5)  Σ_k w_k v_k^j = m_j,   m_j = ∫_0^1 κh e^{−κh(1−v)} v^j dv  in (2),   1/(j + 1)  in (3)
    (6)  a_k = √ᾱ_s w_k   or   e_k = √ᾱ_s (ρ_s − ρ_t) w_k   for k ≥ 1;   Σ_k a_k = Σ_k e_k = 0

The sums are 0 because Eq. 12 already has the constant part, m_0 = Σ_k w_k. The e_k serve for any σ.
Known methods:

    adams(2), adams(3)   at σ = 0 DPM-Solver++(2M) "heun" and UniP-3; in between the predictor of
                         SA-Solver, with τ² = κ − 1. adams(2) at η = 1: SDE-DPM-Solver++(2M) "heun"
    dpm_solver_pp(2)     DPM-Solver++(2M) "midpoint" and UniP-2 at σ = 0; its SDE version at η = 1
    dpm_solver_pp(3)     DPM-Solver++(3M) at σ = 0
    deis(K)              ρAB-DEIS, called LMS in k-diffusion and diffusers, at σ = 0
    ipndm(K)             iPNDM, or PNDM after its warm-up, at σ = 0

The first steps have few predictions, and so a lower order. This limits the whole to order 2.
`lower_order_final` also lowers the order at the end: to 1 in the last step, to 2 in the one before,
and so on. None means: if S < 15, as in diffusers. A step from ᾱ_t = 0 has order 1, and its
prediction is not used again. In (2) so has the step to s = 0, where λ = ∞. Repeats (t = s) make no
prediction. All is computed on the host: a new sigma in a finished table does not change a_k, e_k.

Sources: DPM-Solver++, arXiv:2211.01095; UniPC, arXiv:2302.04867; SA-Solver, arXiv:2309.05019; DEIS
and iPNDM, arXiv:2204.13902; PNDM, arXiv:2202.09778.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float64, Int64

from .sigmas import Steps
from .types import Integer

_Vector = Float64[np.ndarray, " K"]
_Rows = Int64[np.ndarray, " K"]


class Correction(NamedTuple):
    """a_k and e_k in (1) for every step, the newest prediction first; each row sums to 0."""

    x_0: Float[np.ndarray, "S K"]
    epsilon: Float[np.ndarray, "S K"]


Solver = Callable[[Steps, Float[np.ndarray, " S"]], Correction]


def first_order() -> Solver:
    """Eq. 12 alone, DDIM: K = 0.

    >>> steps = Steps(*np.array([[2, 1], [1, 0]]), *np.array([[0.5, 0.8], [0.8, 1.0]]))
    >>> first_order()(steps, np.zeros(2)).x_0.shape
    (2, 0)
    """
    return lambda steps, sigma: Correction(*np.zeros((2, len(steps.t), 0)))


def adams(order: Integer, *, lower_order_final: bool | None = None) -> Solver:
    """The exponential Adams method: (5) in λ for every σ; order 1 is Eq. 12.

    >>> steps = Steps(*np.array([[3, 2], [2, 1]]), *np.array([[0.2, 0.5], [0.5, 0.8]]))
    >>> adams(2, lower_order_final=False)(steps, np.zeros(2)).x_0.round(4).tolist()
    [[0.0, 0.0], [0.2492, -0.2492]]
    """
    return _in_lambda("adams", order, lower_order_final, _moments)


def dpm_solver_pp(order: Integer, *, lower_order_final: bool | None = None) -> Solver:
    """DPM-Solver++ as published: (5) in λ, but with m_1 = m_0/2 at order 2, and m_2/2 at order 3.

    m_0/2 is the midpoint rule. m_2/2 is an error in the published code, a second difference without
    its factor 2. So order 3 converges only with order 2, and is here for parity. `adams(3)` has
    order 3 after its first steps.

    >>> steps = Steps(*np.array([[3, 2], [2, 1]]), *np.array([[0.2, 0.5], [0.5, 0.8]]))
    >>> dpm_solver_pp(2, lower_order_final=False)(steps, np.zeros(2)).x_0.round(4).tolist()
    [[0.0, 0.0], [0.2236, -0.2236]]
    """
    if order > 3:
        raise ValueError(f"the order of dpm_solver_pp is {order}; it has orders 1 to 3: use adams.")

    def moments(kappa_h: float, count: int) -> _Vector:
        exact = _moments(kappa_h, count)
        return exact[0] * np.array([1, 0.5]) if count == 2 else exact * np.array([1, 1, 0.5])

    return _in_lambda("dpm_solver_pp", order, lower_order_final, moments)


def deis(order: Integer, *, lower_order_final: bool | None = None) -> Solver:
    """DEIS, or LMS: (5) in ρ, which is exact only for σ = 0.

    >>> steps = Steps(*np.array([[2, 1], [1, 0]]), *np.array([[0.2, 0.5], [0.5, 1.0]]))
    >>> deis(2, lower_order_final=False)(steps, np.zeros(2)).epsilon.round(4).tolist()
    [[0.0, 0.0], [-0.5, 0.5]]
    """

    def nodes(rho: _Vector, rho_s: float) -> _Vector:
        return (rho - rho[0]) / (rho_s - rho[0])

    return _in_rho("deis", order, lower_order_final, nodes)


def ipndm(order: Integer, *, lower_order_final: bool | None = None) -> Solver:
    """iPNDM: as if steps were equal in ρ, v_k = −k, so the w are the Adams–Bashforth weights.

    >>> steps = Steps(*np.array([[2, 1], [1, 0]]), *np.array([[0.2, 0.5], [0.5, 1.0]]))
    >>> ipndm(2, lower_order_final=False)(steps, np.zeros(2)).epsilon.round(4).tolist()
    [[0.0, 0.0], [-0.5, 0.5]]
    """
    return _in_rho("ipndm", order, lower_order_final, lambda rho, rho_s: -np.arange(len(rho)) * 1.0)


SOLVERS: dict[str, Callable[..., Solver]] = {
    "first": first_order,
    "adams": adams,  # this and the others take the order
    "dpmpp": dpm_solver_pp,
    "deis": deis,
    "ipndm": ipndm,
}


def _in_lambda(
    name: str,
    order: Integer,
    lower_order_final: bool | None,
    moments: Callable[[float, int], _Vector],
) -> Solver:
    """The solver with (2), whose m_j, j < count, are `moments(κh, count)`."""
    _check_order(name, order)

    @np.errstate(divide="ignore", invalid="ignore")
    def solver(steps: Steps, sigma: Float[np.ndarray, " S"]) -> Correction:
        log_snr_t, log_snr_s = (0.5 * np.log(a / (1 - a)) for a in steps[2:])
        h = log_snr_s - log_snr_t
        share = 1 - sigma**2 / (1 - steps.alpha_bar_s)
        # At the largest sigma κ = ∞. There share is 0 but for rounding, which its log would see.
        kappa_h = h - 0.5 * np.log(np.where(share > 1e-12, share, 0))

        def numbers(rows: _Rows) -> _Vector:
            row = rows[0]
            if steps.s[row] == 0:
                return np.zeros(len(rows))
            v = (log_snr_t[rows] - log_snr_t[row]) / h[row]
            return np.sqrt(steps.alpha_bar_s[row]) * _weights(v, moments(kappa_h[row], len(rows)))

        a = _corrections(steps, order, lower_order_final, numbers)
        return Correction(a, np.zeros_like(a))

    return solver


def _in_rho(
    name: str,
    order: Integer,
    lower_order_final: bool | None,
    nodes: Callable[[_Vector, float], _Vector],
) -> Solver:
    """The solver with (3), whose v_k are `nodes((ρ_{t_k})_k, ρ_s)`."""
    _check_order(name, order)

    @np.errstate(divide="ignore")
    def solver(steps: Steps, sigma: Float[np.ndarray, " S"]) -> Correction:
        rho_t, rho_s = (np.sqrt((1 - a) / a) for a in (steps.alpha_bar_t, steps.alpha_bar_s))

        def numbers(rows: _Rows) -> _Vector:
            row = rows[0]
            moments = 1 / np.arange(1.0, len(rows) + 1)
            w = _weights(nodes(rho_t[rows], rho_s[row]), moments)
            return np.sqrt(steps.alpha_bar_s[row]) * (rho_s[row] - rho_t[row]) * w

        e = _corrections(steps, order, lower_order_final, numbers)
        return Correction(np.zeros_like(e), e)

    return solver


def _corrections(
    steps: Steps,
    order: Integer,
    lower_order_final: bool | None,
    numbers: Callable[[_Rows], _Vector],
) -> Float64[np.ndarray, "S K"]:
    """(6) of all steps; `numbers` gives a step's √ᾱ_s w_k from the rows of its predictions."""
    active = np.flatnonzero(steps.t > steps.s)
    usable = active[steps.alpha_bar_t[active] > 0]
    lower = len(active) < 15 if lower_order_final is None else lower_order_final
    table = np.zeros((len(steps.t), order))
    for i, row in enumerate(active):
        newest_first = usable[usable <= row][::-1]
        rows = newest_first[: min(order, len(active) - i) if lower else order]
        # The first prediction may be at ᾱ_t = 0, where it cannot be used.
        if len(rows) > 1:
            table[row, : len(rows)] = numbers(rows)
            table[row, 0] -= table[row].sum()
    return table


def _weights(v: _Vector, moments: _Vector) -> _Vector:
    """The w of (5)."""
    return np.linalg.solve(np.vander(v, increasing=True).T, moments)


def _moments(kappa_h: float, count: int) -> _Vector:
    """m_j, j < count, of (2), by m_j = 1 − j m_{j−1}/κh, or a series where that would cancel."""
    if kappa_h < 1:
        terms = np.exp(-kappa_h) * np.cumprod(np.append(kappa_h, kappa_h / np.arange(1, 20)))
        return np.array([np.sum(terms / np.arange(j + 1, j + 21)) for j in range(count)])
    m = [-np.expm1(-kappa_h)]
    for j in range(1, count):
        m.append(1 - j / kappa_h * m[-1])
    return np.array(m)


def _check_order(name: str, order: Integer) -> None:
    if order < 1:
        raise ValueError(f"the order of {name} is {order}; it must be 1 or more.")
