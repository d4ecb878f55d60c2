"""The noising process q of the DDIM paper (arXiv:2010.02502, sections 2 and 3), as Gaussians.

With s < t neighbours in τ and σ the standard deviation of the reverse step:

    (1)  q(x_t | x_0)        = N( √ᾱ_t x_0,  (1 − ᾱ_t) I )                                     Eq. 4
    (2)  q_σ(x_s | x_t, x_0) = N( √ᾱ_s x_0 + √(1−ᾱ_s−σ²) (x_t − √ᾱ_t x_0)/√(1−ᾱ_t),  σ² I )    Eq. 7
    (3)  q_σ(x_t | x_s, x_0) = q_σ(x_s | x_t, x_0) q(x_t | x_0) / q(x_s | x_0)                 Eq. 8

By (2), (1) holds at s whenever it holds at t, for every σ with 0 ≤ σ² ≤ 1 − ᾱ_s: given x_0, the
mean has variance (1−ᾱ_s−σ²)/(1−ᾱ_t) · (1−ᾱ_t), and the noise adds σ². By Bayes' rule for the
jointly Gaussian pair (x_s, x_t) given x_0, whose covariance is √(1−ᾱ_s−σ²) √(1−ᾱ_t), (3) has

    (4)  mean √ᾱ_t x_0 + √(1−ᾱ_t) √(1−ᾱ_s−σ²)/(1−ᾱ_s) · (x_s − √ᾱ_s x_0),
         variance σ² (1−ᾱ_t)/(1−ᾱ_s)

which depends on x_0: the forward process is not Markovian, unless σ is DDPM's (η = 1).
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .types import Images, Numbers


class Gaussian(NamedTuple):
    """A Gaussian with independent elements; std is a number or broadcasts to the mean."""

    mean: Float[Array, "*shape"]
    std: Float[Array, "..."]


def q_marginal(x_0: Images, alpha_bar_t: Numbers) -> Gaussian:
    """q(x_t | x_0) = N(√ᾱ_t x_0, (1 − ᾱ_t) I), Eq. 4, the same for every σ.

    >>> marginal = q_marginal(jnp.full((1, 2), 10.0), 0.36)
    >>> marginal.mean.tolist(), round(float(marginal.std), 6)
    ([[6.0, 6.0]], 0.8)
    """
    alpha_bar_t = per_image(alpha_bar_t, x_0)
    return Gaussian(jnp.sqrt(alpha_bar_t) * x_0, jnp.sqrt(1 - alpha_bar_t))


def add_noise(x_0: Images, noise: Images, alpha_bar_t: Numbers) -> Float[Array, "..."]:
    """x_t = √ᾱ_t x_0 + √(1 − ᾱ_t) ε, given the noise ε ~ N(0, I).

    >>> round(float(add_noise(jnp.ones(1), jnp.ones(1), 0.36)[0]), 6)
    1.4
    """
    if jnp.shape(x_0) != jnp.shape(noise):
        raise ValueError(
            f"x_0 has shape {jnp.shape(x_0)} and noise {jnp.shape(noise)}; "
            "draw noise of x_0's shape."
        )
    marginal = q_marginal(x_0, alpha_bar_t)
    return marginal.mean + marginal.std * noise


def q_reverse(
    x_t: Images, x_0: Images, alpha_bar_t: Numbers, alpha_bar_s: Numbers, sigma: Numbers
) -> Gaussian:
    """q_σ(x_s | x_t, x_0), Eq. 7, for 0 ≤ σ² ≤ 1 − ᾱ_s; for a larger traced σ the root is 0.

    >>> q_reverse(jnp.full(1, 1.4), jnp.ones(1), 0.36, 1.0, 0.0).mean.tolist()
    [1.0]
    """
    _check_sigma(alpha_bar_s, sigma)
    a_t, a_s, sigma = (per_image(value, x_t) for value in (alpha_bar_t, alpha_bar_s, sigma))
    epsilon = (x_t - jnp.sqrt(a_t) * x_0) / jnp.sqrt(1 - a_t)
    return Gaussian(jnp.sqrt(a_s) * x_0 + direction_scale(a_s, sigma) * epsilon, sigma)


def q_forward(
    x_s: Images, x_0: Images, alpha_bar_t: Numbers, alpha_bar_s: Numbers, sigma: Numbers
) -> Gaussian:
    """q_σ(x_t | x_s, x_0), Eq. 8 by (4), for s ≥ 1; at s = 0, where x_s is x_0, use `q_marginal`.

    >>> step = q_forward(jnp.full(1, 1.4), jnp.ones(1), 0.16, 0.36, 0.0)
    >>> round(float(step.mean[0]), 6), float(step.std)
    (1.316515, 0.0)
    """
    if _on_host(alpha_bar_s) and np.any(np.asarray(alpha_bar_s) == 1):
        raise ValueError(
            "alpha_bar_s is 1, which is s = 0: x_s is x_0 itself there; "
            "use q_marginal(x_0, alpha_bar_t)."
        )
    _check_sigma(alpha_bar_s, sigma)
    a_t, a_s, sigma = (per_image(value, x_s) for value in (alpha_bar_t, alpha_bar_s, sigma))
    gain = jnp.sqrt(1 - a_t) * direction_scale(a_s, sigma) / (1 - a_s)
    mean = jnp.sqrt(a_t) * x_0 + gain * (x_s - jnp.sqrt(a_s) * x_0)
    return Gaussian(mean, sigma * jnp.sqrt((1 - a_t) / (1 - a_s)))


def direction_scale(alpha_bar_s: Numbers, sigma: Numbers) -> Float[Array, "..."]:
    """√(1 − ᾱ_s − σ²), the factor of ε in (2); 0, with gradient 0, unless ᾱ_s + σ² < 1.

    >>> float(direction_scale(1.0, 0.0)), abs(float(jax.grad(direction_scale, argnums=1)(1.0, 0.0)))
    (0.0, 0.0)
    """
    remaining = 1 - jnp.asarray(alpha_bar_s) - jnp.square(jnp.asarray(sigma))
    # The inner where keeps sqrt's infinite gradient at 0 out of the chain rule (inf * 0 is nan).
    return jnp.where(remaining > 0, jnp.sqrt(jnp.where(remaining > 0, remaining, 1)), 0)


def per_image(value: Numbers, images: Images) -> Float[Array, "..."]:
    """A coefficient per image, (B,) → (B, 1, …, 1), to multiply images; a scalar stays a scalar.

    >>> per_image(jnp.ones(3), jnp.ones((3, 8, 8, 1))).shape
    (3, 1, 1, 1)
    """
    value = jnp.asarray(value)
    return value.reshape(value.shape + (1,) * (images.ndim - value.ndim)) if value.ndim else value


def per_image_sum(values: Float[Array, "B *dims"]) -> Float[Array, " B"]:
    """The sum over all axes but the first.

    >>> per_image_sum(jnp.ones((3, 8, 8, 1))).tolist()
    [64.0, 64.0, 64.0]
    """
    return jnp.sum(values, axis=tuple(range(1, values.ndim)))


def _on_host(*values: Any) -> bool:
    return not any(isinstance(value, jax.core.Tracer) for value in values)


def _check_sigma(alpha_bar_s: Numbers, sigma: Numbers) -> None:
    """Refuse a σ that makes the root in (2) imaginary, if its value is known."""
    if not _on_host(alpha_bar_s, sigma):
        return
    sigma, limit = np.broadcast_arrays(np.asarray(sigma), 1 - np.asarray(alpha_bar_s))
    # Values may be float32, in which 1 − ᾱ_s is accurate only to 1e-7.
    for i in np.flatnonzero(~((sigma >= 0) & (np.square(sigma) <= limit + 1e-6))):
        raise ValueError(
            f"sigma is {sigma.flat[i]:.6g}; it must be ≥ 0 with "
            f"sigma² ≤ 1 − alpha_bar_s = {limit.flat[i]:.6g}."
        )
