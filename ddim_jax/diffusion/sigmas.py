"""σ schedules as data: functions from the steps of a τ to two standard deviations a step.

A reverse step from t to s has **two** of them (DDIM paper, arXiv:2010.02502, Eq. 12 and appendix D.3):

    (1)  x_s = √ᾱ_s x̂_0 + √(1 − ᾱ_s − sigma²) ε̂ + noise · z,   z ~ N(0, I)

`sigma` lies under the root of the mean, `noise` multiplies the fresh Gaussian. They are one number in Eq. 12 and two for
σ̂, whose noise does not fit under the root. A schedule is any function Steps → Sigmas: write your own as three lines.
All arrays are in sampling order: row 0 is the noisiest step.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from .forward import add_noise
from .prediction import Denoiser
from .types import Images, Integer, Numbers, Real


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
    return lambda steps: Sigmas(
        mean(steps).sigma, np.where(steps.s == 0, 0.0, _transition_std(steps))
    )


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
    return lambda steps: Sigmas(
        _one_a_step("sigma", sigma, steps), _one_a_step("noise", noise, steps)
    )


def on_interval(schedule: SigmaSchedule, t_low: Integer, t_high: Integer) -> SigmaSchedule:
    """A schedule that is stochastic for some times only and deterministic outside.

    Equation: sigma and noise as they were where t_low ≤ t ≤ t_high, 0 elsewhere.

    Args:
        schedule: a σ schedule.
        t_low: first time, the end of a step that goes down from t.
        t_high: last time, ≥ t_low.

    Returns:
        A σ schedule.

    Raises:
        ValueError: t_low > t_high.

    >>> steps = Steps(np.array([2, 1]), np.array([1, 0]), np.array([0.5, 0.8]), np.array([0.8, 1.0]))
    >>> on_interval(custom(0.1), 2, 2)(steps).noise.tolist()
    [0.1, 0.0]

    Source: Karras et al., arXiv:2206.00364, section 4 (S_tmin and S_tmax).
    """
    if t_low > t_high:
        raise ValueError(f"t_low is {t_low} and t_high {t_high}; t_low must not be the larger.")

    def inside(steps: Steps) -> Sigmas:
        stochastic = (steps.t >= t_low) & (steps.t <= t_high)
        return Sigmas(*(np.where(stochastic, values, 0.0) for values in schedule(steps)))

    return inside


def scaled(schedule: SigmaSchedule, c: Numbers) -> SigmaSchedule:
    """A schedule times a number: as η scales DDPM's, for any.

    Equation: sigma ← c · sigma, noise ← c · noise.

    Args:
        schedule: a σ schedule.
        c: factor ≥ 0, a scalar or one value a step (S,) in sampling order.

    Returns:
        A σ schedule.

    Raises:
        ValueError: c < 0; when applied, a length that is not S.

    >>> steps = Steps(np.array([2, 1]), np.array([1, 0]), np.array([0.5, 0.8]), np.array([0.8, 1.0]))
    >>> np.array_equal(scaled(ddpm(), 0.3)(steps).sigma, eta(0.3)(steps).sigma)
    True

    Source: arXiv:2010.02502, Eq. 16.
    """
    factor = np.asarray(c, np.float64)
    bad = factor[~(factor >= 0)]
    if bad.size:
        raise ValueError(f"c is {bad.flat[0]:.6g}; it must be ≥ 0.")
    return lambda steps: Sigmas(
        *(_one_a_step("c", factor, steps) * values for values in schedule(steps))
    )


def final_noise(schedule: SigmaSchedule, sigma_1: Real) -> SigmaSchedule:
    """The paper's case t = 1 of p_θ: the last step returns f_θ plus noise.

    Equation: p_θ(x_0 | x_1) = N(f_θ(x_1), σ_1² I): sigma = 0 and noise = σ_1 in the step to s = 0.

    Args:
        schedule: a σ schedule for the other steps.
        sigma_1: standard deviation ≥ 0 of the last step's noise; √β_1 is DDPM's.

    Returns:
        A σ schedule; its last step has variance σ_1² more than the data.

    Raises:
        ValueError: σ_1 < 0.

    >>> steps = Steps(np.array([2, 1]), np.array([1, 0]), np.array([0.5, 0.8]), np.array([0.8, 1.0]))
    >>> final_noise(eta(0.0), 0.01)(steps)
    Sigmas(sigma=array([0., 0.]), noise=array([0.  , 0.01]))

    Source: arXiv:2010.02502, Eq. 10.
    """
    if not sigma_1 >= 0:
        raise ValueError(f"sigma_1 is {sigma_1:.6g}; it must be ≥ 0.")

    def with_noise(steps: Steps) -> Sigmas:
        sigma, noise = schedule(steps)
        return Sigmas(np.where(steps.s == 0, 0.0, sigma), np.where(steps.s == 0, sigma_1, noise))

    return with_noise


def analytic(schedule: SigmaSchedule, epsilon_power: Numbers) -> SigmaSchedule:
    """Analytic-DPM: the noise that minimises the KL of each step, for the mean of a given schedule.

    Equation: noise² = sigma² + (√((1−ᾱ_t) ᾱ_s/ᾱ_t) − √(1−ᾱ_s−sigma²))² (1 − E‖ε_θ(x_t, t)‖²/d), and 0 in the step to s = 0,
    where Analytic-DPM too shows the mean.

    Args:
        schedule: gives sigma, the σ of the mean: `eta(0.0)` is Analytic-DDIM, `ddpm()` Analytic-DDPM.
        epsilon_power: E‖ε_θ(x_t, t)‖²/d, shape (T+1,), indexed by t (entry 0 unused), each ≥ 0; from
            `estimate_epsilon_power`. Values above 1 count as 1, the most that an exact ε_θ can have.

    Returns:
        A σ schedule.

    Raises:
        ValueError: a power < 0; when applied, a time for which there is none or only NaN.

    >>> steps = Steps(np.array([2, 1]), np.array([1, 0]), np.array([0.5, 0.8]), np.array([0.8, 1.0]))
    >>> np.array_equal(analytic(eta(1.0), [0, 1, 1])(steps).noise, ddpm()(steps).noise)
    True

    Source: Bao et al., arXiv:2201.06503, theorem 1, with the score −ε/√(1−ᾱ_t).
    """
    power = np.asarray(epsilon_power, np.float64)
    if power.ndim != 1 or np.any(power < 0):
        raise ValueError(
            f"epsilon_power is {epsilon_power}; give (T+1,) values ≥ 0, from estimate_epsilon_power."
        )

    def optimal(steps: Steps) -> Sigmas:
        sigma, _ = schedule(steps)
        missing = steps.t[
            (steps.t >= len(power)) | np.isnan(power[np.minimum(steps.t, len(power) - 1)])
        ]
        if missing.size:
            raise ValueError(
                f"epsilon_power has no value for t = {missing[0]}; estimate it at every time that a step visits."
            )
        direction = np.sqrt(np.maximum(1 - steps.alpha_bar_s - sigma**2, 0))
        gain = np.sqrt((1 - steps.alpha_bar_t) * steps.alpha_bar_s / steps.alpha_bar_t) - direction
        variance = sigma**2 + gain**2 * (1 - np.minimum(power[steps.t], 1))
        return Sigmas(sigma, np.where(steps.s == 0, 0.0, np.sqrt(variance)))

    return optimal


def estimate_epsilon_power(
    denoise: Denoiser, x_0: Images, alpha_bar: Numbers, timesteps: Numbers, key: Key[Array, ""]
) -> Float[np.ndarray, " times"]:
    """Estimate the power of the predicted noise, on which `analytic` depends, from noisy data.

    Equation: E‖ε_θ(x_t, t)‖²/d ≈ mean over images and elements of ε̂², x_t = √ᾱ_t x_0 + √(1 − ᾱ_t) ε, at each t of τ.

    Args:
        denoise: a Denoiser; jit it for a network.
        x_0: clean images (B, H, W, C) of the training data; the error falls as 1/√(B·H·W·C).
        alpha_bar: ᾱ_0 … ᾱ_T, shape (T+1,).
        timesteps: the times to estimate it at, τ.
        key: of the noise, folded with each time.

    Returns:
        Shape (T+1,), float64, NaN at the times that were left out.

    >>> from ddim_jax import gaussian_oracle
    >>> denoise = gaussian_oracle([0.0], [[1.0]], [1.0, 0.64])
    >>> x_0 = jax.random.normal(jax.random.key(0), (4096, 1))
    >>> power = estimate_epsilon_power(denoise, x_0, [1.0, 0.64], [1], jax.random.key(1))
    >>> bool(abs(power[1] - 0.36) < 0.03)  # E ε̂² = 1 − ᾱ_t for unit Gaussian data
    True

    Source: arXiv:2201.06503, Eq. 8.
    """
    x_0, bars = jnp.asarray(x_0), np.asarray(alpha_bar, np.float64)
    power = np.full(len(bars), np.nan)
    for t in np.asarray(timesteps):
        noise = jax.random.normal(jax.random.fold_in(key, t), x_0.shape, x_0.dtype)
        x_t = add_noise(x_0, noise, bars[t].astype(x_0.dtype))
        power[t] = jnp.mean(jnp.square(denoise(x_t, jnp.full(x_0.shape[:1], t, jnp.int32)).epsilon))
    return power


def _transition_std(steps: Steps) -> Float[np.ndarray, " S"]:
    """σ̂ = √(1 − ᾱ_t/ᾱ_s), the standard deviation of DDPM's forward transition q(x_t | x_s)."""
    return np.sqrt(1 - steps.alpha_bar_t / steps.alpha_bar_s)


def _one_a_step(name: str, values: np.ndarray, steps: Steps) -> Float[np.ndarray, " S"]:
    if values.shape not in ((), steps.t.shape):
        raise ValueError(
            f"{name} has shape {values.shape}; give a scalar or one value for each of the {len(steps.t)} steps."
        )
    return np.broadcast_to(values, steps.t.shape)
