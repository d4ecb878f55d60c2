"""The noising process q of the DDIM paper (arXiv:2010.02502, sections 2 and 3), as the Gaussians it is made of.

With s < t neighbours in τ and σ the standard deviation of the reverse step:

    (1)  q(x_t | x_0)        = N( √ᾱ_t x_0,  (1 − ᾱ_t) I )                                             paper Eq. 4
    (2)  q_σ(x_s | x_t, x_0) = N( √ᾱ_s x_0 + √(1−ᾱ_s−σ²) · (x_t − √ᾱ_t x_0)/√(1−ᾱ_t),  σ² I )          paper Eq. 7
    (3)  q_σ(x_t | x_s, x_0) = q_σ(x_s | x_t, x_0) q(x_t | x_0) / q(x_s | x_0)                         paper Eq. 8

(2) is chosen so that (1) holds at s whenever it holds at t, for every σ with 0 ≤ σ² ≤ 1 − ᾱ_s: given x_0, the mean keeps
variance (1−ᾱ_s−σ²)/(1−ᾱ_t) · (1−ᾱ_t) and the noise adds σ². Bayes' rule for the jointly Gaussian pair (x_s, x_t) given x_0,
whose covariance is k(1−ᾱ_t) with k = √(1−ᾱ_s−σ²)/√(1−ᾱ_t), turns (3) into

    (4)  mean √ᾱ_t x_0 + √(1−ᾱ_t) √(1−ᾱ_s−σ²)/(1−ᾱ_s) · (x_s − √ᾱ_s x_0),   variance σ² (1−ᾱ_t)/(1−ᾱ_s)

which depends on x_0, so the forward process is not Markovian, unless σ is DDPM's (η = 1).
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .types import Images, Numbers


class Gaussian(NamedTuple):
    """A Gaussian with independent elements: mean (*shape), std a scalar or broadcastable to the mean."""

    mean: Float[Array, "*shape"]
    std: Float[Array, "..."]


def q_marginal(x_0: Images, alpha_bar_t: Numbers) -> Gaussian:
    """The distribution of a noisy image given the clean one, the same for every σ.

    Equation: q(x_t | x_0) = N(√ᾱ_t x_0, (1 − ᾱ_t) I).

    Args:
        x_0: clean images (B, H, W, C), or any shape.
        alpha_bar_t: ᾱ_t in [0, 1], a scalar or one value an image (B,).

    Returns:
        Gaussian(mean, std), mean of x_0's shape.

    >>> q_marginal(jnp.ones((1, 2)), 0.36).mean.tolist(), round(float(q_marginal(jnp.ones((1, 2)), 0.36).std), 6)
    ([[0.6000000238418579, 0.6000000238418579]], 0.8)

    Source: arXiv:2010.02502, Eq. 4.
    """
    alpha_bar_t = per_image(alpha_bar_t, x_0)
    return Gaussian(jnp.sqrt(alpha_bar_t) * x_0, jnp.sqrt(1 - alpha_bar_t))


def add_noise(x_0: Images, noise: Images, alpha_bar_t: Numbers) -> Float[Array, "..."]:
    """The noisy image that a given draw of standard normal noise makes of a clean one.

    Equation: x_t = √ᾱ_t x_0 + √(1 − ᾱ_t) ε.

    Args:
        x_0: clean images (B, H, W, C), or any shape.
        noise: ε ~ N(0, I), the shape of x_0.
        alpha_bar_t: ᾱ_t in [0, 1], a scalar or one value an image (B,).

    Returns:
        x_t, the shape of x_0.

    Raises:
        ValueError: x_0 and noise differ in shape.

    >>> round(float(add_noise(jnp.ones(1), jnp.ones(1), 0.36)[0]), 6)
    1.4

    Source: arXiv:2010.02502, Eq. 4.
    """
    if jnp.shape(x_0) != jnp.shape(noise):
        raise ValueError(
            f"x_0 has shape {jnp.shape(x_0)} and noise {jnp.shape(noise)}; draw noise of x_0's shape."
        )
    marginal = q_marginal(x_0, alpha_bar_t)
    return marginal.mean + marginal.std * noise


def q_reverse(
    x_t: Images, x_0: Images, alpha_bar_t: Numbers, alpha_bar_s: Numbers, sigma: Numbers
) -> Gaussian:
    """One step of the inference process backwards: the less noisy x_s given x_t and the clean image.

    Equation: N(√ᾱ_s x_0 + √(1−ᾱ_s−σ²) · (x_t − √ᾱ_t x_0)/√(1−ᾱ_t), σ² I).

    Args:
        x_t: noisy images (B, H, W, C), or any shape.
        x_0: clean images, the shape of x_t.
        alpha_bar_t: ᾱ_t in [0, 1), a scalar or (B,).
        alpha_bar_s: ᾱ_s in (ᾱ_t, 1], a scalar or (B,).
        sigma: σ with 0 ≤ σ² ≤ 1 − ᾱ_s, a scalar or (B,); a larger one counts as the largest.

    Returns:
        Gaussian(mean, std), mean of x_t's shape.

    Raises:
        ValueError: a σ on the host that lies outside its range.

    >>> q_reverse(jnp.full(1, 1.4), jnp.ones(1), 0.36, 1.0, 0.0).mean.tolist()
    [1.0]

    Source: arXiv:2010.02502, Eq. 7.
    """
    _check_sigma(alpha_bar_s, sigma)
    alpha_bar_t, alpha_bar_s, sigma = (
        per_image(value, x_t) for value in (alpha_bar_t, alpha_bar_s, sigma)
    )
    epsilon = (x_t - jnp.sqrt(alpha_bar_t) * x_0) / jnp.sqrt(1 - alpha_bar_t)
    return Gaussian(
        jnp.sqrt(alpha_bar_s) * x_0 + direction_scale(alpha_bar_s, sigma) * epsilon, sigma
    )


def q_forward(
    x_s: Images, x_0: Images, alpha_bar_t: Numbers, alpha_bar_s: Numbers, sigma: Numbers
) -> Gaussian:
    """One step of the non-Markovian forward process: the noisier x_t given x_s and the clean image.

    Equation: N(√ᾱ_t x_0 + √(1−ᾱ_t) √(1−ᾱ_s−σ²)/(1−ᾱ_s) · (x_s − √ᾱ_s x_0), σ² (1−ᾱ_t)/(1−ᾱ_s) I).

    Args:
        x_s: images at the less noisy time s ≥ 1 (B, H, W, C), or any shape.
        x_0: clean images, the shape of x_s.
        alpha_bar_t: ᾱ_t in [0, ᾱ_s), a scalar or (B,).
        alpha_bar_s: ᾱ_s in (ᾱ_t, 1), a scalar or (B,).
        sigma: σ of the reverse step, 0 ≤ σ² ≤ 1 − ᾱ_s, a scalar or (B,).

    Returns:
        Gaussian(mean, std), mean of x_s's shape.

    Raises:
        ValueError: ᾱ_s = 1 (s = 0, where x_s is x_0 and Bayes' rule divides by zero: use q_marginal), or σ out of range.

    >>> g = q_forward(jnp.full(1, 1.4), jnp.ones(1), 0.16, 0.36, 0.0)
    >>> round(float(g.mean[0]), 6), float(g.std)
    (1.316515, 0.0)

    Source: arXiv:2010.02502, Eq. 8.
    """
    if _on_host(alpha_bar_s) and np.any(np.asarray(alpha_bar_s) == 1):
        raise ValueError(
            "alpha_bar_s is 1, which is s = 0: x_s is x_0 itself there; use q_marginal(x_0, alpha_bar_t)."
        )
    _check_sigma(alpha_bar_s, sigma)
    alpha_bar_t, alpha_bar_s, sigma = (
        per_image(value, x_s) for value in (alpha_bar_t, alpha_bar_s, sigma)
    )
    gain = jnp.sqrt(1 - alpha_bar_t) * direction_scale(alpha_bar_s, sigma) / (1 - alpha_bar_s)
    mean = jnp.sqrt(alpha_bar_t) * x_0 + gain * (x_s - jnp.sqrt(alpha_bar_s) * x_0)
    return Gaussian(mean, sigma * jnp.sqrt((1 - alpha_bar_t) / (1 - alpha_bar_s)))


def x_0_weights(alpha_bar_t: Numbers, alpha_bar_s: Numbers, sigma: Numbers) -> Float[Array, "..."]:
    """The exact weight of ‖f_θ(x_t) − x_0‖² in the variational objective J_σ.

    Equation: c²/(2 σ²),  c = √ᾱ_s − √(1−ᾱ_s−σ²) √ᾱ_t/√(1−ᾱ_t).

    It is the KL between q_σ(x_s | x_t, x_0) and p_θ = q_σ(x_s | x_t, f_θ(x_t)), two Gaussians with the same σ whose means differ
    by c (x_0 − f_θ). At s = 0 the mean is f_θ itself, c = 1, and σ is the paper's σ_1.

    Args:
        alpha_bar_t: ᾱ_t in [0, 1), any shape.
        alpha_bar_s: ᾱ_s in (ᾱ_t, 1], the same shape or a scalar.
        sigma: σ ≥ 0 with σ² ≤ 1 − ᾱ_s unless ᾱ_s = 1, likewise.

    Returns:
        The weight ≥ 0 per summed square, infinite where σ = 0 (a deterministic step has no finite KL).

    >>> round(float(x_0_weights(0.0, 0.8, 0.2)), 4)
    10.0

    Source: arXiv:2010.02502, theorem 1 and appendix B.
    """
    alpha_bar_t, alpha_bar_s, sigma = (
        jnp.asarray(value) for value in (alpha_bar_t, alpha_bar_s, sigma)
    )
    c = jnp.sqrt(alpha_bar_s) - direction_scale(alpha_bar_s, sigma) * jnp.sqrt(
        alpha_bar_t / (1 - alpha_bar_t)
    )
    return c**2 / (2 * sigma**2)


def epsilon_weights(
    alpha_bar_t: Numbers, alpha_bar_s: Numbers, sigma: Numbers
) -> Float[Array, "..."]:
    """The exact weight γ of ‖ε_θ − ε‖² in the variational objective J_σ.

    Equation: γ = c² (1−ᾱ_t)/(2 σ² ᾱ_t) with the c of `x_0_weights`, since x_0 − f_θ = √(1−ᾱ_t)/√ᾱ_t (ε_θ − ε).

    The paper prints γ = 1/(2 d σ² ᾱ_t), without c² (1−ᾱ_t) and divided by the dimension d; this is per summed square.

    Args:
        alpha_bar_t: ᾱ_t in (0, 1), any shape.
        alpha_bar_s: ᾱ_s in (ᾱ_t, 1], the same shape or a scalar.
        sigma: σ ≥ 0 with σ² ≤ 1 − ᾱ_s unless ᾱ_s = 1, likewise.

    Returns:
        γ ≥ 0, infinite where σ = 0.

    >>> round(float(epsilon_weights(0.5, 0.8, 0.2)), 6)
    3.055728

    Source: arXiv:2010.02502, theorem 1 and appendix B.
    """
    alpha_bar_t = jnp.asarray(alpha_bar_t)
    return x_0_weights(alpha_bar_t, alpha_bar_s, sigma) * (1 - alpha_bar_t) / alpha_bar_t


def direction_scale(alpha_bar_s: Numbers, sigma: Numbers) -> Float[Array, "..."]:
    """The factor of ε in the mean of a reverse step, Eq. 12's "direction pointing to x_t".

    Equation: √(1 − ᾱ_s − σ²), and 0 with a gradient of 0 where the root's argument is not positive.

    Args:
        alpha_bar_s: ᾱ_s in [0, 1].
        sigma: σ with 0 ≤ σ² ≤ 1 − ᾱ_s.

    Returns:
        The root, the broadcast shape of both.

    >>> float(direction_scale(1.0, 0.0)), abs(float(jax.grad(direction_scale, argnums=1)(1.0, 0.0)))
    (0.0, 0.0)

    Source: arXiv:2010.02502, Eq. 12.
    """
    remaining = 1 - jnp.asarray(alpha_bar_s) - jnp.square(jnp.asarray(sigma))
    # The inner where keeps the gradient of sqrt at 0, which is infinite, out of the chain rule (inf * 0 is nan).
    return jnp.where(remaining > 0, jnp.sqrt(jnp.where(remaining > 0, remaining, 1)), 0)


def per_image(value: Numbers, images: Images) -> Float[Array, "..."]:
    """One coefficient an image, shaped so that it multiplies the images.

    Equation: (B,) → (B, 1, …, 1); a scalar stays a scalar.

    Args:
        value: a scalar, or one value an image (B,).
        images: (B, H, W, C), or any shape that begins with B.

    Returns:
        The value with the rank of the images, or a scalar.

    >>> per_image(jnp.ones(3), jnp.ones((3, 8, 8, 1))).shape
    (3, 1, 1, 1)
    """
    value = jnp.asarray(value)
    return value.reshape(value.shape + (1,) * (images.ndim - value.ndim)) if value.ndim else value


def _on_host(*values: Any) -> bool:
    return not any(isinstance(value, jax.core.Tracer) for value in values)


def _check_sigma(alpha_bar_s: Numbers, sigma: Numbers) -> None:
    """Refuse a σ that leaves the root of Eq. 7 imaginary, where the value is known (not inside a jit)."""
    if not _on_host(alpha_bar_s, sigma):
        return
    sigma, limit = np.broadcast_arrays(np.asarray(sigma), 1 - np.asarray(alpha_bar_s))
    # Values may come in float32, where 1 − ᾱ_s is exact to 1e-7 only.
    bad = np.flatnonzero(~((sigma >= 0) & (np.square(sigma) <= limit + 1e-6)))
    if bad.size:
        sigma_bad, limit_bad = sigma.flat[bad[0]], limit.flat[bad[0]]
        raise ValueError(
            f"sigma is {sigma_bad:.6g}; it must be ≥ 0 with sigma² ≤ 1 − alpha_bar_s = {limit_bad:.6g}."
        )
