"""The density of the probability-flow ODE, the limit of η = 0 for small steps.

With y = x/√ᾱ and ρ = √((1−ᾱ)/ᾱ), Eq. 14 and the change of the density along it are

    (1)  dy/dρ = ε_θ(√ᾱ y, t),   d ln p/dρ = −tr ∂ε_θ/∂y
    (2)  log p(x_0) = log N(x_T; 0, I) + d/2 ln ᾱ_T + ∫ tr ∂ε_θ/∂y dρ   from ρ = 0 to ρ_T

Only integer times are used. A Runge-Kutta step spans an even number of times, and its middle stages
use the time in the middle. Source: arXiv:2011.13456, appendix D.2.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float64

from .forward import per_image_sum
from .keys import Keys, check_keys, noise_rows
from .prediction import Denoise
from .schedules import checked_alpha_bar
from .types import Images, Integer, Numbers


def ode_log_likelihood(
    denoise: Denoise,
    x_0: Images,
    alpha_bar: Numbers,
    keys: Keys,
    *,
    trace: str = "hutchinson",
    stride: Integer = 2,
) -> Float[Array, " B"]:
    """The log density log p(x_0) of (2), in nats. Images of 256 levels need noise of a bin's width.

    Steps of order 4 span `stride` times, an even number; the default takes 2 T calls. Below ρ_1 the
    score is that at t = 1. The last times may take a smaller stride, or a step with no time in its
    middle. "hutchinson" estimates the trace by vᵀ (∂ε/∂y) v, with one v of ±1 per image. "exact"
    takes d products. If ᾱ_T = 0, the path ends at T − 1.

    >>> from ddim_jax import alpha_bars, gaussian_oracle, image_keys, linear_betas
    >>> bars = alpha_bars(linear_betas(1000))
    >>> denoise = gaussian_oracle([0.0], [[1.0]], bars)
    >>> log_p = ode_log_likelihood(denoise, jnp.zeros((1, 1)), bars, image_keys(0, [0]))
    >>> round(log_p.item(), 3)  # −½ ln 2π
    -0.919
    """
    if trace not in ("hutchinson", "exact"):
        raise ValueError(f"trace is {trace!r}; it must be 'hutchinson' or 'exact'.")
    if stride < 2 or stride % 2:
        raise ValueError(f"stride is {stride}; it must be an even number of times, such as 2.")
    bars = checked_alpha_bar(alpha_bar)
    bars = bars[bars > 0]
    x_0, d = jnp.asarray(x_0), math.prod(x_0.shape[1:])
    check_keys(keys, x_0, "x_0")
    probes = noise_rows(keys, 0, d).reshape(x_0.shape)
    probes = jnp.where(probes > 0, 1, -1).astype(x_0.dtype)
    divergence = _exact_trace if trace == "exact" else lambda f, y: _hutchinson(f, y, probes)

    rho, times = _nodes(bars, int(stride))

    def slope(y, rho_t, t):
        """dy/dρ and the trace; below ρ_1 the score −ε/√(1−ᾱ) is that at t = 1, so ε ∝ ρ."""

        def epsilon(y):
            x_t = (y / jnp.sqrt(1 + rho_t**2)).astype(x_0.dtype)  # √ᾱ = 1/√(1 + ρ²)
            return denoise(x_t, jnp.broadcast_to(t, x_0.shape[:1])).epsilon

        scale = jnp.minimum(rho_t / rho[0, 2], 1)
        return jax.tree.map(lambda leaf: scale * leaf, divergence(epsilon, y))

    def step(state, nodes):
        return _runge_kutta(slope, state, *nodes), None

    state = (x_0, jnp.zeros(x_0.shape[:1], x_0.dtype))
    (y, integral), _ = jax.lax.scan(step, state, (jnp.asarray(rho, x_0.dtype), jnp.asarray(times)))
    x_T = y * math.sqrt(bars[-1])
    log_normal = -0.5 * per_image_sum(x_T**2 + math.log(2 * math.pi))
    return log_normal + d / 2 * math.log(bars[-1]) + integral


def _nodes(
    bars: Float64[np.ndarray, " times"], stride: int
) -> tuple[Float64[np.ndarray, "N 3"], np.ndarray]:
    """ρ and t at the beginning, middle and end of every step: 0 → 1, strides, what is left over."""
    T = len(bars) - 1
    rho = np.sqrt((1 - bars) / bars)
    times, at = [], 1
    while T - at >= 2:
        here = min(stride, (T - at) // 2 * 2)
        times.append((at, at + here // 2, at + here))
        at += here
    triples = np.array(times, np.int32).reshape(-1, 3)
    rhos: list[np.ndarray] = [np.array([[0, rho[1] / 2, rho[1]]]), rho[triples]]
    steps: list[np.ndarray] = [np.ones((1, 3)), triples]
    if at < T:
        # No time lies between T − 1 and T: the middle has the t of the end.
        rhos.append(np.array([[rho[at], (rho[at] + rho[T]) / 2, rho[T]]]))
        steps.append(np.array([[at, T, T]]))
    return np.concatenate(rhos), np.concatenate(steps).astype(np.int32)


def _runge_kutta(slope, state, rho, t):
    """One step of order 4 in u ∈ [0, 2], where ρ(u) is the parabola through the three nodes."""
    d_rho = (
        (-3 * rho[0] + 4 * rho[1] - rho[2]) / 2,
        (rho[2] - rho[0]) / 2,
        (rho[0] - 4 * rho[1] + 3 * rho[2]) / 2,
    )

    def stage(carry, inputs):
        before, end = carry
        node, offset, weight = inputs
        here = slope(state[0] + offset * before, rho[node], t[node])
        here = jax.tree.map(lambda leaf: jnp.stack(d_rho)[node] * leaf, here)
        end = jax.tree.map(lambda sum, k: (sum + weight / 3 * k).astype(sum.dtype), end, here)
        return (here[0].astype(before.dtype), end), None

    # k_1 at the beginning, k_2 and k_3 in the middle, k_4 at the end.
    offsets, weights = jnp.array([0, 1, 1, 2], rho.dtype), jnp.array([1, 2, 2, 1], rho.dtype)
    stages = (jnp.array([0, 1, 1, 2]), offsets, weights)
    (_, end), _ = jax.lax.scan(stage, (jnp.zeros_like(state[0]), state), stages)
    return end


def _hutchinson(function, y, v):
    value, product = jax.jvp(function, (y,), (v,))
    return value, per_image_sum(v * product)


def _exact_trace(function, y):
    def diagonal(i):
        direction = jnp.zeros(y[0].size, y.dtype).at[i].set(1).reshape(y.shape[1:])
        _, product = jax.jvp(function, (y,), (jnp.broadcast_to(direction, y.shape),))
        return product.reshape(len(y), -1)[:, i]

    return function(y), jnp.sum(jax.lax.map(diagonal, jnp.arange(y[0].size)), axis=0)
