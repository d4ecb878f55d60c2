"""σ schedules as data: functions from the steps of a τ to two standard deviations per step.

    (1)  x_s = √ᾱ_s x̂_0 + √(1 − ᾱ_s − sigma²) ε̂ + noise · z,   z ~ N(0, I)

`sigma` is under the square root in the mean, `noise` multiplies the fresh Gaussian. In Eq. 12 they
are equal. For σ̂ (appendix D.3) they differ: its noise is too large for the root. A schedule is any
function Steps → Sigmas: write your own in three lines. `step_table` checks its range.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from .forward import add_noise
from .prediction import Denoise
from .types import Images, Integer, Numbers, Real


class Steps(NamedTuple):
    """The reverse steps t → s of a τ; leaves (S,), ᾱ in float64."""

    t: Int[np.ndarray, " S"]
    s: Int[np.ndarray, " S"]
    alpha_bar_t: Float[np.ndarray, " S"]
    alpha_bar_s: Float[np.ndarray, " S"]


class Sigmas(NamedTuple):
    """The two standard deviations of every step; leaves (S,)."""

    sigma: Float[np.ndarray, " S"]
    noise: Float[np.ndarray, " S"]


SigmaSchedule = Callable[[Steps], Sigmas]


def eta(value: Numbers) -> SigmaSchedule:
    """The paper's σ(η) = η √((1 − ᾱ_s)/(1 − ᾱ_t)) √(1 − ᾱ_t/ᾱ_s), Eq. 16: 0 is DDIM, 1 is DDPM.

    >>> eta(-0.1)
    Traceback (most recent call last):
    ValueError: eta is -0.1; it must be ≥ 0 and finite: 0 is DDIM, 1 is DDPM.
    """
    values = _on_host("eta", value)
    for bad in values[~((values >= 0) & np.isfinite(values))]:
        raise ValueError(f"eta is {bad:.6g}; it must be ≥ 0 and finite: 0 is DDIM, 1 is DDPM.")

    def schedule(steps: Steps) -> Sigmas:
        posterior = np.sqrt((1 - steps.alpha_bar_s) / (1 - steps.alpha_bar_t))
        sigma = _per_step("eta", values, steps) * posterior * _transition_std(steps)
        return Sigmas(sigma, sigma)

    return schedule


def ddpm() -> SigmaSchedule:
    """DDPM's posterior standard deviation, η = 1: √β̃ of arXiv:2006.11239, Eq. 7.

    >>> ddpm()(Steps(*np.array([[2], [1]]), *np.array([[0.5], [0.8]]))).noise.round(6).tolist()
    [0.387298]
    """
    return eta(1.0)


def sigma_hat() -> SigmaSchedule:
    """DDPM's larger noise σ̂ = √(1 − ᾱ_t/ᾱ_s), 0 in the step to s = 0, with the mean of η = 1.

    It makes the variance of x_s given x_0 too large. With it, the official code also clips x̂_0:
    `clip_x0(…, rederive_epsilon=True)`. Source: section 5.1 and appendix D.3.

    >>> steps = Steps(*np.array([[2, 1], [1, 0]]), *np.array([[0.5, 0.8], [0.8, 1.0]]))
    >>> sigma_hat()(steps).noise.round(6).tolist()
    [0.612372, 0.0]
    """
    mean = ddpm()
    return lambda steps: Sigmas(
        mean(steps).sigma, np.where(steps.s == 0, 0.0, _transition_std(steps))
    )


SIGMAS: dict[str, Callable[..., SigmaSchedule]] = {
    "eta": eta,  # takes the value of η
    "ddpm": ddpm,
    "hat": sigma_hat,
}


def custom(sigma: Numbers, noise: Numbers | None = None) -> SigmaSchedule:
    """A schedule with the given sigma and noise; noise is sigma by default.

    >>> steps = Steps(*np.array([[2, 1], [1, 0]]), *np.array([[0.5, 0.8], [0.8, 1.0]]))
    >>> custom([0.1, 0.0])(steps).noise.tolist()
    [0.1, 0.0]
    """
    sigma = _on_host("sigma", sigma)
    noise = sigma if noise is None else _on_host("noise", noise)
    return lambda steps: Sigmas(_per_step("sigma", sigma, steps), _per_step("noise", noise, steps))


def on_interval(schedule: SigmaSchedule, t_low: Integer, t_high: Integer) -> SigmaSchedule:
    """A schedule within t_low ≤ t ≤ t_high, σ = 0 outside: S_tmin, S_tmax of arXiv:2206.00364.

    >>> steps = Steps(*np.array([[2, 1], [1, 0]]), *np.array([[0.5, 0.8], [0.8, 1.0]]))
    >>> on_interval(custom(0.1), 2, 2)(steps).noise.tolist()
    [0.1, 0.0]
    """
    if t_low > t_high:
        raise ValueError(f"t_low is {t_low} and t_high {t_high}; t_low must not exceed t_high.")

    def inside(steps: Steps) -> Sigmas:
        stochastic = (steps.t >= t_low) & (steps.t <= t_high)
        return Sigmas(*(np.where(stochastic, values, 0.0) for values in schedule(steps)))

    return inside


def scaled(schedule: SigmaSchedule, c: Numbers) -> SigmaSchedule:
    """A schedule with sigma and noise multiplied by c ≥ 0, as η multiplies DDPM's.

    >>> steps = Steps(*np.array([[2, 1], [1, 0]]), *np.array([[0.5, 0.8], [0.8, 1.0]]))
    >>> np.array_equal(scaled(ddpm(), 0.3)(steps).sigma, eta(0.3)(steps).sigma)
    True
    """
    factor = _on_host("c", c)
    for bad in factor[~((factor >= 0) & np.isfinite(factor))]:
        raise ValueError(f"c is {bad:.6g}; it must be ≥ 0 and finite.")
    return lambda steps: Sigmas(
        *(_per_step("c", factor, steps) * values for values in schedule(steps))
    )


def final_noise(schedule: SigmaSchedule, sigma_1: Real) -> SigmaSchedule:
    """A schedule with the paper's last step p_θ(x_0 | x_1) = N(f_θ(x_1), σ_1² I), Eq. 10.

    There sigma = 0 and noise = σ_1 (DDPM: √β_1). It adds σ_1² to the variance of the samples.

    >>> steps = Steps(*np.array([[2, 1], [1, 0]]), *np.array([[0.5, 0.8], [0.8, 1.0]]))
    >>> final_noise(eta(0.0), 0.01)(steps)
    Sigmas(sigma=array([0., 0.]), noise=array([0.  , 0.01]))
    """
    if not 0 <= sigma_1 < np.inf:
        raise ValueError(f"sigma_1 is {sigma_1:.6g}; it must be ≥ 0 and finite.")

    def with_noise(steps: Steps) -> Sigmas:
        sigma, noise = schedule(steps)
        return Sigmas(np.where(steps.s == 0, 0.0, sigma), np.where(steps.s == 0, sigma_1, noise))

    return with_noise


def analytic(
    schedule: SigmaSchedule,
    epsilon_power: Numbers,
    *,
    bounded: bool = False,
    last_noise: Real | None = None,
) -> SigmaSchedule:
    """Analytic-DPM: the noise that minimises the KL of each step, for the mean of a given schedule.

    noise² = sigma² + (√((1−ᾱ_t) ᾱ_s/ᾱ_t) − √(1−ᾱ_s−sigma²))² (1 − E‖ε_θ(x_t, t)‖²/d), and 0 in the
    step to s = 0. `eta(0.0)` gives Analytic-DDIM, `ddpm()` Analytic-DDPM. `epsilon_power` holds
    E‖ε_θ(x_t, t)‖²/d for 0 … T, from `estimate_epsilon_power`; values above 1, which no
    exact ε_θ has, count as 1. Published FIDs have two bounds: `bounded` keeps the variance of x_0
    given x_t at most 1, and `last_noise` = y keeps the noise of the step to τ_1 at most
    y · 2/255 · √(π/2), with y = 1 or 2. Source: arXiv:2201.06503, theorem 1, section 4.1.

    >>> steps = Steps(*np.array([[2, 1], [1, 0]]), *np.array([[0.5, 0.8], [0.8, 1.0]]))
    >>> np.array_equal(analytic(eta(1.0), [0, 1, 1])(steps).noise, ddpm()(steps).noise)
    True
    """
    power = np.asarray(epsilon_power, np.float64)
    if last_noise is not None and not last_noise >= 0:
        raise ValueError(f"last_noise is {last_noise}; give None or a number ≥ 0, such as 1.")
    if power.ndim != 1 or np.any(power < 0):
        raise ValueError(
            f"epsilon_power is {epsilon_power}; "
            "give (T+1,) values ≥ 0, from estimate_epsilon_power."
        )

    def optimal(steps: Steps) -> Sigmas:
        sigma, _ = schedule(steps)
        unknown = np.isnan(power[np.minimum(steps.t, len(power) - 1)])
        for t in steps.t[(steps.t >= len(power)) | unknown]:
            raise ValueError(
                f"epsilon_power has no value for t = {t}; "
                "estimate it at every time that a step visits."
            )
        direction = np.sqrt(np.maximum(1 - steps.alpha_bar_s - sigma**2, 0))
        gain = np.sqrt((1 - steps.alpha_bar_t) * steps.alpha_bar_s / steps.alpha_bar_t) - direction
        unexplained = 1 - np.minimum(power[steps.t], 1)
        if bounded:
            unexplained = np.minimum(unexplained, steps.alpha_bar_t / (1 - steps.alpha_bar_t))
        noise = np.where(steps.s == 0, 0.0, np.sqrt(sigma**2 + gain**2 * unexplained))
        if last_noise is not None:
            most = last_noise * 2 / 255 * np.sqrt(np.pi / 2)
            noise = np.where(steps.s == steps.t.min(), np.minimum(noise, most), noise)
        return Sigmas(sigma, noise)

    return optimal


def estimate_epsilon_power(
    denoise: Denoise, x_0: Images, alpha_bar: Numbers, timesteps: Numbers, key: Key[Array, ""]
) -> Float[np.ndarray, " times"]:
    """E‖ε_θ(x_t, t)‖²/d for 0 … T, as `analytic` takes it (arXiv:2201.06503, Eq. 8).

    NaN where t is not in `timesteps`. The error falls as 1/√(B·H·W·C). Jit a network's denoiser.

    >>> from ddim_jax import gaussian_oracle
    >>> denoise = gaussian_oracle([0.0], [[1.0]], [1.0, 0.64])
    >>> x_0 = jax.random.normal(jax.random.key(0), (4096, 1))
    >>> power = estimate_epsilon_power(denoise, x_0, [1.0, 0.64], [1], jax.random.key(1))
    >>> bool(abs(power[1] - 0.36) < 0.03)  # E ε̂² = 1 − ᾱ_t for unit Gaussian data
    True
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


def _on_host(name: str, value: Numbers) -> Float[np.ndarray, "..."]:
    if isinstance(value, jax.core.Tracer):
        raise ValueError(
            f"{name} is traced, and tables are built on the host; build the table outside, and "
            "pass it, or differentiate by its columns: table._replace(sigma=…, noise=…)."
        )
    return np.asarray(value, np.float64)


def _per_step(name: str, values: np.ndarray, steps: Steps) -> Float[np.ndarray, " S"]:
    if values.shape not in ((), steps.t.shape):
        raise ValueError(
            f"{name} has shape {values.shape}; "
            f"give a scalar or one value for each of the {len(steps.t)} steps."
        )
    return np.broadcast_to(values, steps.t.shape)
