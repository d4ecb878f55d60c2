"""The training objective (DDIM paper, arXiv:2010.02502, Eq. 5 with γ = 1, which is DDPM's L_simple).

    (1)  L(θ) = E_{x_0, t, ε} ‖ε_θ(√ᾱ_t x_0 + √(1 − ᾱ_t) ε, t) − ε‖² / dim,   t uniform on 1 … T,  ε ~ N(0, I)

Theorem 1 of the paper: one network trained so serves the reverse process of every σ.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from ..diffusion.forward import add_noise
from ..diffusion.prediction import check_kind
from ..diffusion.types import Numbers


def epsilon_loss(
    apply: Callable[..., Any],
    params: Any,
    x_0: Float[Array | np.ndarray, "B *dims"],
    alpha_bar: Numbers,
    key: Key[Array, ""],
    *,
    dropout_key: Key[Array, ""] | None = None,
) -> Float[Array, ""]:
    """The ε-MSE of a batch at random times with random noise.

    Equation: mean over all elements of (ε_θ(√ᾱ_t x_0 + √(1 − ᾱ_t) ε, t − 1) − ε)².

    Args:
        apply: the network, apply(params, x_t (B, …), t − 1 (B,) int32) → (B, …).
        params: its parameters, a pytree.
        x_0: clean images (B, H, W, C) in [−1, 1].
        alpha_bar: ᾱ_0 … ᾱ_T, shape (T+1,).
        key: of the times and the noise; equal keys give equal losses.
        dropout_key: handed to apply under that name, if given.

    Returns:
        The loss, a scalar ≥ 0; about 1 for a network that predicts 0.

    Raises:
        ValueError: an output that is not of x_0's shape, or a time with ᾱ_t = 0.

    >>> zero = lambda params, x, t: 0 * x
    >>> round(float(epsilon_loss(zero, None, jnp.zeros((64, 8, 8, 1)), [1.0, 0.5], jax.random.key(1))), 1)
    1.0

    Source: arXiv:2010.02502, Eq. 5; arXiv:2006.11239, Eq. 14.
    """
    if not isinstance(alpha_bar, jax.core.Tracer):
        check_kind("epsilon", np.asarray(alpha_bar)[1:])
    alpha_bar = jnp.asarray(alpha_bar)
    time_key, noise_key = jax.random.split(key)
    t = jax.random.randint(time_key, x_0.shape[:1], 1, len(alpha_bar))
    epsilon = jax.random.normal(noise_key, x_0.shape, x_0.dtype)
    network = apply if dropout_key is None else partial(apply, dropout_key=dropout_key)
    return mean_squared_error(network(params, add_noise(x_0, epsilon, alpha_bar[t]), t - 1), epsilon)


def mean_squared_error(a: Float[Array, "..."], b: Float[Array, "..."]) -> Float[Array, ""]:
    """The mean over all elements of (a − b)².

    Raises:
        ValueError: unequal shapes, which would broadcast to a wrong loss.

    >>> float(mean_squared_error(jnp.zeros(2), jnp.array([1.0, 3.0])))
    5.0
    """
    if a.shape != b.shape:
        raise ValueError(f"the shapes {a.shape} and {b.shape} of a squared error differ; they must be equal.")
    return jnp.mean(jnp.square(a - b))
