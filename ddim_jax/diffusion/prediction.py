"""From the network's output to the pair (x̂_0, ε̂) that the reverse process needs.

    (1)  x_t = √ᾱ_t x_0 + √(1 − ᾱ_t) ε                 defines the pair: each of the two gives the other
    (2)  x̂_0 = f_θ(x_t) = (x_t − √(1 − ᾱ_t) ε_θ(x_t, t)) / √ᾱ_t         DDIM paper (arXiv:2010.02502), Eq. 9

A Denoiser is a function (x_t, t) → Prediction(x_0, epsilon). It is the only place that knows that the network is
conditioned on t − 1 = 0 … T−1, as published DDPM checkpoints are. Wrappers change a Denoiser into another.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from .forward import per_image
from .types import Numbers


class Prediction(NamedTuple):
    """The predicted clean image x̂_0 and the predicted noise ε̂, each of x_t's shape."""

    x_0: Float[Array, "*shape"]
    epsilon: Float[Array, "*shape"]


Denoiser = Callable[[Float[Array, "B *dims"], Int[Array, " B"]], Prediction]


def denoiser(apply: Callable[..., Any], params: Any, alpha_bar: Numbers, kind: str = "epsilon") -> Denoiser:
    """The Denoiser of a network that predicts the noise.

    Equation: ε̂ = ε_θ(x_t, t − 1), x̂_0 = (x_t − √(1 − ᾱ_t) ε̂)/√ᾱ_t.

    Args:
        apply: the network, apply(params, x_t (B, …), t − 1 (B,) int32) → (B, …).
        params: its parameters, a pytree.
        alpha_bar: ᾱ_0 … ᾱ_T, shape (T+1,).
        kind: what the network predicts, "epsilon".

    Returns:
        A Denoiser; its attribute `alpha_bar` lets wrappers use (1).

    Raises:
        ValueError: another kind; when called, an output that is not of x_t's shape.

    >>> denoise = denoiser(lambda params, x, t: params * x, 0.5, [1.0, 0.64])
    >>> denoise(jnp.ones((1, 2)), jnp.array([1])).x_0.tolist()
    [[0.875, 0.875]]

    Source: arXiv:2010.02502, Eq. 9.
    """
    if kind != "epsilon":
        raise ValueError(f"kind is {kind!r}; a network may predict 'epsilon'.")

    def denoise(x_t, t):
        output = apply(params, x_t, t - 1)
        if output.shape != x_t.shape:
            raise ValueError(f"the network gave shape {output.shape} for x_t of shape {x_t.shape}; they must be equal.")
        alpha_bar_t = per_image(jnp.asarray(alpha_bar)[t], x_t)
        return Prediction((x_t - jnp.sqrt(1 - alpha_bar_t) * output) / jnp.sqrt(alpha_bar_t), output)

    return _with_alpha_bar(denoise, alpha_bar)


def clip_x0(denoise: Denoiser, rederive_epsilon: bool = False, alpha_bar: Numbers | None = None) -> Denoiser:
    """Clip the predicted clean image to the range of images.

    Equation: x̂_0 ← clip(x̂_0, −1, 1), and with rederive_epsilon ε̂ ← (x_t − √ᾱ_t x̂_0)/√(1 − ᾱ_t).

    Args:
        denoise: a Denoiser.
        rederive_epsilon: make ε̂ agree with the clipped x̂_0 by (1), as the official code does with σ̂; diffusers leaves it.
        alpha_bar: ᾱ_0 … ᾱ_T for rederive_epsilon, needed only if `denoise` is a function of your own without it.

    Returns:
        A Denoiser.

    Raises:
        ValueError: ε̂ is to be re-derived and ᾱ is not known.

    >>> denoise = clip_x0(lambda x, t: Prediction(2 * x, x))
    >>> denoise(jnp.ones((1, 1)), jnp.array([1])).x_0.tolist()
    [[1.0]]

    Source: github.com/ermongroup/ddim, functions/denoising.py, ddpm_steps.
    """
    alpha_bar = getattr(denoise, "alpha_bar", None) if alpha_bar is None else alpha_bar
    if rederive_epsilon and alpha_bar is None:
        raise ValueError("alpha_bar is None and the denoiser carries none; rederive_epsilon needs it: pass alpha_bar=.")

    @functools.wraps(denoise)
    def clipped(x_t, t):
        x_0, epsilon = denoise(x_t, t)
        x_0 = jnp.clip(x_0, -1, 1)
        if rederive_epsilon:
            alpha_bar_t = per_image(jnp.asarray(alpha_bar)[t], x_t)
            epsilon = (x_t - jnp.sqrt(alpha_bar_t) * x_0) / jnp.sqrt(1 - alpha_bar_t)
        return Prediction(x_0, epsilon)

    return _with_alpha_bar(clipped, alpha_bar)


def _with_alpha_bar(denoise: Any, alpha_bar: Numbers | None) -> Denoiser:
    """Let a Denoiser carry the ᾱ that it was built with, so that wrappers can use (1) without being handed it again."""
    denoise.alpha_bar = alpha_bar
    return denoise
