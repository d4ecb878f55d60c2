"""σ schedules as data: functions from the steps of a τ to two standard deviations a step.

A reverse step from t to s has **two** of them (DDIM paper, arXiv:2010.02502, Eq. 12 and appendix D.3):

    (1)  x_s = √ᾱ_s x̂_0 + √(1 − ᾱ_s − sigma²) ε̂ + noise · z,   z ~ N(0, I)

`sigma` lies under the root of the mean, `noise` multiplies the fresh Gaussian. They are one number in Eq. 12 and two for
σ̂, whose noise does not fit under the root. A schedule is any function Steps → Sigmas: write your own as three lines.
All arrays are in sampling order: row 0 is the noisiest step.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from .types import Numbers


class Steps(NamedTuple):
    """The reverse steps t → s of a τ, in sampling order; leaves (S,), ᾱ in float64."""

    t: Int[np.ndarray, " S"]
    s: Int[np.ndarray, " S"]
    alpha_bar_t: Float[np.ndarray, " S"]
    alpha_bar_s: Float[np.ndarray, " S"]


class Sigmas(NamedTuple):
    """The two standard deviations of every step, in sampling order; leaves (S,)."""

    sigma: Float[np.ndarray, " S"]
    noise: Float[np.ndarray, " S"]


SigmaSchedule = Callable[[Steps], Sigmas]


def eta(value: Numbers) -> SigmaSchedule:
    """The paper's family between DDIM (η = 0, deterministic) and DDPM (η = 1).

    Equation: σ(η) = η √((1 − ᾱ_s)/(1 − ᾱ_t)) √(1 − ᾱ_t/ᾱ_s), sigma = noise = σ(η).

    Args:
        value: η ≥ 0, a scalar or one value a step (S,) in sampling order.

    Returns:
        A σ schedule.

    Raises:
        ValueError: η < 0; when applied, a length that is not S.

    >>> eta(-0.1)
    Traceback (most recent call last):
    ValueError: eta is -0.1; it must be ≥ 0: 0 is DDIM, 1 is DDPM.

    Source: arXiv:2010.02502, Eq. 16.
    """
    values = np.asarray(value, np.float64)
    bad = values[~(values >= 0)]
    if bad.size:
        raise ValueError(f"eta is {bad.flat[0]:.6g}; it must be ≥ 0: 0 is DDIM, 1 is DDPM.")

    def schedule(steps: Steps) -> Sigmas:
        posterior = np.sqrt((1 - steps.alpha_bar_s) / (1 - steps.alpha_bar_t))
        sigma = _one_a_step("eta", values, steps) * posterior * _transition_std(steps)
        return Sigmas(sigma, sigma)

    return schedule


def ddpm() -> SigmaSchedule:
    """DDPM's posterior standard deviation, η = 1.

    Equation: σ(1) = √((1 − ᾱ_s)/(1 − ᾱ_t)) √(1 − ᾱ_t/ᾱ_s), sigma = noise = σ(1).

    Returns:
        A σ schedule.

    >>> steps = Steps(np.array([2]), np.array([1]), np.array([0.5]), np.array([0.8]))
    >>> ddpm()(steps).noise.round(6).tolist()
    [0.387298]

    Source: arXiv:2010.02502, Eq. 16; arXiv:2006.11239, β̃ of Eq. 7.
    """
    return eta(1.0)


def sigma_hat() -> SigmaSchedule:
    """DDPM's larger standard deviation σ̂, as noise beside the mean of η = 1.

    Equation: noise = σ̂ = √(1 − ᾱ_t/ᾱ_s), and 0 in the step to s = 0; sigma = σ(1).

    The official code also clips x̂_0 and re-derives ε in this case: wrap the denoiser in `clip_x0(…, rederive_epsilon=True)`.

    Returns:
        A σ schedule; its noise does not keep the marginals q(x_s | x_0), its variance is too large.

    >>> steps = Steps(np.array([2, 1]), np.array([1, 0]), np.array([0.5, 0.8]), np.array([0.8, 1.0]))
    >>> sigma_hat()(steps).noise.round(6).tolist()
    [0.612372, 0.0]

    Source: arXiv:2010.02502, section 5.1 and appendix D.3.
    """
    mean = ddpm()
    return lambda steps: Sigmas(mean(steps).sigma, np.where(steps.s == 0, 0.0, _transition_std(steps)))


def custom(sigma: Numbers, noise: Numbers | None = None) -> SigmaSchedule:
    """A σ schedule from numbers of your own.

    Equation: sigma and noise as given; noise = sigma unless given.

    Args:
        sigma: σ with 0 ≤ σ² ≤ 1 − ᾱ_s, a scalar or one value a step (S,) in sampling order (row 0 is the noisiest step).
        noise: standard deviation ≥ 0 of the fresh noise, likewise.

    Returns:
        A σ schedule. `step_table` checks the ranges, since they depend on ᾱ.

    Raises:
        ValueError: when applied, a length that is not S.

    >>> steps = Steps(np.array([2, 1]), np.array([1, 0]), np.array([0.5, 0.8]), np.array([0.8, 1.0]))
    >>> custom([0.1, 0.0])(steps).noise.tolist()
    [0.1, 0.0]

    Source: arXiv:2010.02502, section 4.1: σ is a free choice.
    """
    sigma = np.asarray(sigma, np.float64)
    noise = sigma if noise is None else np.asarray(noise, np.float64)
    return lambda steps: Sigmas(_one_a_step("sigma", sigma, steps), _one_a_step("noise", noise, steps))


def _transition_std(steps: Steps) -> Float[np.ndarray, " S"]:
    """σ̂ = √(1 − ᾱ_t/ᾱ_s), the standard deviation of DDPM's forward transition q(x_t | x_s)."""
    return np.sqrt(1 - steps.alpha_bar_t / steps.alpha_bar_s)


def _one_a_step(name: str, values: np.ndarray, steps: Steps) -> Float[np.ndarray, " S"]:
    if values.shape not in ((), steps.t.shape):
        raise ValueError(f"{name} has shape {values.shape}; give a scalar or one value for each of the {len(steps.t)} steps.")
    return np.broadcast_to(values, steps.t.shape)
