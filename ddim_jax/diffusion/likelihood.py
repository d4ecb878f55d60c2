"""The ELBO of any (τ, σ), bits/dim, and the costs for an optimal τ.

With p of Eq. 10 and q_σ of Eq. 6, the variational bound J_σ (Eq. 11) is

    (1)  −log p(x_0) ≤ L_T + Σ_s L_s + L_0
         L_T = KL( q(x_t | x_0) ‖ N(0, I) ) at the first t of the table
         L_s = KL( q_σ(x_s | x_t, x_0) ‖ N(mean of Eq. 12, noise² I) ) for s > 0
             = d (ln(noise/σ) + σ²/(2 noise²) − ½) + ‖m‖²/(2 noise²),
         m   = √ᾱ_s (x_0 − x̂_0) + √(1−ᾱ_s−σ²) (ε − ε̂)
         L_0 = −log p(x_0 | x_t), with mean x̂_0 at the last t and standard deviation σ_1

σ_1 is the noise of the last row (`final_noise`). If that is 0, it is √β̃ of the row before, as in
DDPM, or √β_1 if there is none. Images have 256 levels: p(x_0 | x_t) is the mass of the Gaussian in
the bin of each value, and the outer bins are open (arXiv:2006.11239, Eq. 13).

Costs are in nats per image, (B,). The likelihood for σ = 0 is `ode_log_likelihood`, in flow.py.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import log_ndtr
from jaxtyping import Array, Float, Float64

from .flow import ode_log_likelihood as ode_log_likelihood  # the likelihood of σ = 0
from .forward import add_noise, direction_scale, per_image_sum
from .keys import Keys, check_keys, noise_rows
from .objective import x_0_weights
from .prediction import Denoise, as_denoiser, check_kind
from .reverse import StepTable
from .schedules import checked_alpha_bar
from .sigmas import SigmaSchedule, Steps, eta
from .types import Images, Integer, Numbers, Real


class Elbo(NamedTuple):
    """The terms of (1) in nats per image: L_T, L_s, L_0. The ELBO is minus their sum."""

    prior: Float[Array, " B"]
    steps: Float[Array, "B rows"]
    data: Float[Array, " B"]


def elbo(
    denoise: Denoise,
    x_0: Images,
    alpha_bar: Numbers,
    table: StepTable,
    keys: Keys,
    *,
    levels: Integer | None = 256,
) -> Elbo:
    """The terms of (1), each L_s and L_0 with one draw x_t from q(x_t | x_0) by `keys`.

    `levels` is the number of values that x_0 can take in [−1, 1]. None: the data term is the
    density −log N(x_0; x̂_0, σ_1²). Where s > 0, sigma and noise must be > 0. If one is 0, as with
    η = 0, L_s is infinite (ValueError, or inf if traced). First order only; x̂_0 is not clipped.

    >>> from ddim_jax import eta, gaussian_oracle, image_keys, step_table
    >>> bars = [1.0, 0.64, 0.01]
    >>> table = step_table(bars, [1, 2], eta(1.0))
    >>> costs = elbo(gaussian_oracle([0.0], [[1.0]], bars), jnp.zeros((1, 1)), bars, table,
    ...              image_keys(0, [0]), levels=None)
    >>> costs.prior.round(3).tolist(), costs.steps.shape
    ([0.0], (1, 1))
    """
    x_0 = jnp.asarray(x_0)
    _check(denoise, x_0, table, keys, levels)
    rows = StepTable(*map(jnp.asarray, table[:6]))
    shape, first = x_0.shape, rows.alpha_bar_t[jnp.argmax(rows.active)]
    prior = 0.5 * per_image_sum(first * (x_0**2 - 1) - jnp.log1p(-first))
    sigma_1 = _sigma_1(rows, alpha_bar)

    def of_row(_, row):
        def cost():
            epsilon = noise_rows(keys, row.t, math.prod(shape[1:])).reshape(shape).astype(x_0.dtype)
            x_t = add_noise(x_0, epsilon, row.alpha_bar_t)
            x_hat_0, epsilon_hat = denoise(x_t, jnp.broadcast_to(row.t, shape[:1]))

            def step():
                root = direction_scale(row.alpha_bar_s, row.sigma)
                m = jnp.sqrt(row.alpha_bar_s) * (x_0 - x_hat_0) + root * (epsilon - epsilon_hat)
                return _kl(m, row.sigma, row.noise)

            def data():
                return -per_image_sum(_log_probability(x_0, x_hat_0, sigma_1, levels))

            return jax.lax.cond(row.s > 0, step, data).astype(x_0.dtype)

        return None, jax.lax.cond(row.active, cost, lambda: jnp.zeros(shape[:1], x_0.dtype))

    _, costs = jax.lax.scan(of_row, None, rows)
    to_data = (rows.s == 0)[:, None]
    steps = jnp.where(to_data, 0, costs)[:-1].T
    return Elbo(prior, steps, jnp.sum(jnp.where(to_data, costs, 0), axis=0))


def bits_per_dim(nats: Numbers, shape: tuple[int, ...], *, density: bool = False) -> Any:
    """−nats/(d ln 2) of a log-likelihood for images of `shape`, d elements.

    With `density`, nats are those of a density of x = (k + u − ½)/127.5 − 1, with levels k and u
    uniform in [0, 1): log₂ 127.5 is added. score_sde adds 7, which gives 0.0056 more.

    >>> float(bits_per_dim(-np.log(256.0) * 3, (1, 1, 3)))
    8.0
    """
    nats = nats if isinstance(nats, jax.Array) else np.asarray(nats, np.float64)
    return -nats / (math.prod(shape) * math.log(2)) + (math.log2(127.5) if density else 0)


def elbo_costs(
    alpha_bar: Numbers,
    x_0_errors: Numbers,
    dimension: Integer,
    sigma_schedule: SigmaSchedule = eta(1.0),  # noqa: B008 (a function)
    sigma_1: Real | None = None,
) -> Float64[np.ndarray, "times times"]:
    """The expected L_s of every step t → s as cost[s, t], in nats, for `optimal_timesteps`.

    `x_0_errors` holds E‖x_0 − x̂_0(x_t, t)‖² for 0 … T. cost[0, t] is the Gaussian data term with
    σ_1, by default √β_1. Infinite for s ≥ t, and where sigma or noise is 0. The schedule must be a
    function, not an array: it is called with all pairs of times. Source: arXiv:2106.03802,
    section 3; arXiv:2201.06503, appendix.

    >>> elbo_costs([1.0, 0.64, 0.01], [0.0, 0.1, 0.5], 1)[:2, 1:].round(3).tolist()
    [[0.547, 1.103], [inf, 0.442]]
    """
    bars, errors = checked_alpha_bar(alpha_bar), np.asarray(x_0_errors, np.float64)
    if errors.shape != bars.shape or not np.all(errors[1:] >= 0):
        raise ValueError(
            f"x_0_errors are {errors}; give E‖x_0 − x̂_0‖² ≥ 0 at every time, shape {bars.shape}."
        )
    cost = np.full((len(bars), len(bars)), np.inf)
    variance = 1 - bars[1] if sigma_1 is None else float(sigma_1) ** 2
    cost[0, 1:] = dimension / 2 * math.log(2 * math.pi * variance) + errors[1:] / (2 * variance)
    s, t = np.triu_indices(len(bars), 1)
    s, t = s[s > 0], t[s > 0]
    sigma, noise = sigma_schedule(Steps(t, s, bars[t], bars[s]))
    ok = (sigma > 0) & (noise > 0)
    s, t, sigma, noise = s[ok], t[ok], sigma[ok], noise[ok]
    ratio = np.square(sigma / noise)
    with jax.enable_x64(True):
        weight = np.asarray(x_0_weights(bars[t], bars[s], sigma)) * ratio
    cost[s, t] = dimension / 2 * (ratio - np.log(ratio) - 1) + weight * errors[t]
    return cost


def _kl(m: Any, sigma: Any, noise: Any) -> Float[Array, " B"]:
    """L_s of (1)."""
    finite = (sigma > 0) & (noise > 0)
    sigma, noise = jnp.where(finite, sigma, 1), jnp.where(finite, noise, 1)
    ratio = jnp.square(sigma / noise)
    cost = per_image_sum(0.5 * (ratio - jnp.log(ratio) - 1) + m**2 / (2 * noise**2))
    return jnp.where(finite, cost, jnp.inf)


def _sigma_1(rows: StepTable, alpha_bar: Numbers) -> Float[Array, ""]:
    last = rows.active & (rows.s == 0)
    noise, t = (jnp.sum(jnp.where(last, leaf, 0)) for leaf in (rows.noise, rows.t))
    before = rows.active & (rows.s == t)
    a_t, a_s = (jnp.where(before, leaf, 0.5) for leaf in (rows.alpha_bar_t, rows.alpha_bar_s))
    posterior = jnp.sum(jnp.where(before, (1 - a_s) / (1 - a_t) * (1 - a_t / a_s), 0))
    bars: Any = alpha_bar if isinstance(alpha_bar, jax.Array) else np.asarray(alpha_bar)
    variance = jnp.where(jnp.any(before), posterior, 1 - bars[1])
    return jnp.where(noise > 0, noise, jnp.sqrt(variance))


def _log_probability(x_0: Any, mean: Any, std: Any, levels: Integer | None) -> Float[Array, "..."]:
    """The log of N(x_0; mean, std²), or of its integral over the bin of each level."""
    if levels is None:
        return -0.5 * (((x_0 - mean) / std) ** 2 + jnp.log(2 * math.pi * std**2))
    top = levels - 1
    k = jnp.clip(jnp.round((x_0 + 1) / 2 * top), 0, top)
    # Neighbours compute the edge between them alike, so that the probabilities sum to 1.
    low, high = (((2 * edge - 1) / top - 1 - mean) / std for edge in (k, k + 1))
    # Φ(high) − Φ(low) = Φ(−low) − Φ(−high): below the mean, both are far from 1.
    above = low > 0
    low, high = jnp.where(above, -high, low), jnp.where(above, -low, high)
    low_end, high_end = jnp.where(above, k == top, k == 0), jnp.where(above, k == 0, k == top)
    log_high = jnp.where(high_end, 0, log_ndtr(high))
    log_low = jnp.where(low_end, -jnp.inf, log_ndtr(low))
    return log_high + jnp.log1p(-jnp.exp(log_low - log_high))


def _check(
    denoise: Denoise, x_0: Images, table: StepTable, keys: Keys, levels: Integer | None
) -> None:
    if len({jnp.shape(leaf) for leaf in table[:6]}) != 1 or jnp.ndim(table.t) != 1:
        raise ValueError(
            f"the table's leaves have shapes {[*map(jnp.shape, table)]}; all must be (S,)."
        )
    check_keys(keys, x_0, "x_0")
    check_kind(as_denoiser(denoise).kind, table.alpha_bar_t)
    if levels is not None and levels < 2:
        raise ValueError(f"levels is {levels}; give 2 or more, or None for a density.")
    if not any(isinstance(leaf, jax.core.Tracer) for leaf in table):
        _check_rows(StepTable(*map(np.asarray, table)))
    if levels is not None and not isinstance(x_0, jax.core.Tracer):
        k = (np.asarray(x_0, np.float64) + 1) / 2 * (levels - 1)
        off = np.abs(k - np.clip(np.round(k), 0, levels - 1))
        if off.max(initial=0) > 1e-3:
            raise ValueError(
                f"x_0 has {np.asarray(x_0).flat[off.argmax()]:.6g}, which is not one of {levels} "
                "levels from −1 to 1; give levels=None for data that have a density."
            )


def _check_rows(table: StepTable) -> None:
    if np.any(table.x_0_correction) or np.any(table.epsilon_correction):
        raise ValueError(
            "the table has a solver's corrections; the ELBO is that of Eq. 10: use first_order()."
        )
    inner = table.active & (table.s > 0)
    for i in np.flatnonzero(inner & ~((table.sigma > 0) & (table.noise > 0))):
        raise ValueError(
            f"row {i} (t={table.t[i]} to s={table.s[i]}) has sigma {table.sigma[i]:.6g} and noise "
            f"{table.noise[i]:.6g}; the ELBO is −∞ unless both are > 0, so η = 0 has none: use "
            "η > 0, or ode_log_likelihood."
        )
