"""The training objective (DDIM paper, arXiv:2010.02502, Eq. 5; with γ = 1 it is DDPM's L_simple).

    (1)  L(θ) = E_{x_0, t, ε} w_t ‖y_θ(x_t, t) − y‖² / dim,   x_t = √ᾱ_t x_0 + √(1 − ᾱ_t) ε,   t uniform on 1 … T,  ε ~ N(0, I)

where y is what the network predicts: ε, x_0, or v = √ᾱ_t ε − √(1 − ᾱ_t) x_0. Theorem 1 of the paper: one network trained so
serves the reverse process of every σ. Weights are stated for the error of x̂_0, to which the others are proportional:

    (2)  ‖x̂_0 − x_0‖² = ‖v̂ − v‖² (1 − ᾱ_t) = ‖ε̂ − ε‖² (1 − ᾱ_t)/ᾱ_t
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float64, Int, Key

from ..diffusion.forward import add_noise, per_image, x_0_weights
from ..diffusion.prediction import check_kind, levels
from ..diffusion.sigmas import Steps, eta
from ..diffusion.types import Numbers


class Examples(NamedTuple):
    """A batch of noisy images and what the network shall answer to them; leaves (B, …)."""

    x_t: Float[Array, "B *dims"]
    t: Int[Array, " B"]
    target: Float[Array, "B *dims"]
    weight: Float[Array, " B"]
    label: Int[Array, " B"] | None


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
    return prediction_loss(
        apply, params, draw_examples(x_0, alpha_bar, key), dropout_key=dropout_key
    )


def draw_examples(
    x_0: Float[Array | np.ndarray, "B *dims"],
    alpha_bar: Numbers,
    key: Key[Array, ""],
    *,
    kind: str = "epsilon",
    weights: Numbers | None = None,
    label: Int[Array | np.ndarray, " B"] | None = None,
) -> Examples:
    """Clean images at random times with random noise, and what the network is to predict of them.

    Equation: x_t = √ᾱ_t x_0 + √(1 − ᾱ_t) ε; y = ε, x_0, or √ᾱ_t ε − √(1 − ᾱ_t) x_0.

    Args:
        x_0: clean images (B, H, W, C) in [−1, 1].
        alpha_bar: ᾱ_0 … ᾱ_T, shape (T+1,).
        key: of the times and the noise.
        kind: "epsilon", "x0" or "v".
        weights: w_0 … w_T, shape (T+1,), from `loss_weights`; None: 1.
        label: classes (B,), passed on.

    Returns:
        Examples.

    Raises:
        ValueError: a time with ᾱ_t = 0 and ε-prediction.

    Source: arXiv:2010.02502, Eq. 4; v: arXiv:2202.00512, appendix D.
    """
    if not isinstance(alpha_bar, jax.core.Tracer):
        check_kind(kind, np.asarray(alpha_bar)[1:])
    x_0 = jnp.asarray(x_0)
    time_key, noise_key = jax.random.split(key)
    t = jax.random.randint(time_key, x_0.shape[:1], 1, np.shape(alpha_bar)[0])
    epsilon = jax.random.normal(noise_key, x_0.shape, x_0.dtype)
    signal, noise = levels(alpha_bar, t, x_0)
    target = {"epsilon": epsilon, "x0": x_0, "v": signal * epsilon - noise * x_0}[kind]
    weight = jnp.ones(len(t)) if weights is None else jnp.asarray(weights, jnp.float32)[t]
    return Examples(
        add_noise(x_0, epsilon, jnp.asarray(alpha_bar)[t]),
        t,
        target,
        weight,
        None if label is None else jnp.asarray(label),
    )


def prediction_loss(
    apply: Callable[..., Any],
    params: Any,
    examples: Examples,
    *,
    dropout_key: Key[Array, ""] | None = None,
) -> Float[Array, ""]:
    """The weighted squared error of a network on examples.

    Equation: mean over all elements of w_t (y_θ(x_t, t − 1) − y)².

    Args:
        apply: the network; it gets `label` and `dropout_key` only where there are any.
        params: its parameters, a pytree.
        examples: from `draw_examples`.
        dropout_key: handed to apply under that name, if given.

    Returns:
        The loss, a scalar ≥ 0.

    Raises:
        ValueError: an output that is not of x_t's shape.

    Source: arXiv:2010.02502, Eq. 5.
    """
    given = {"label": examples.label, "dropout_key": dropout_key}
    y = apply(
        params,
        examples.x_t,
        examples.t - 1,
        **{name: value for name, value in given.items() if value is not None},
    )
    return mean_squared_error(y, examples.target, examples.weight)


def loss_weights(
    alpha_bar: Numbers,
    kind: str = "epsilon",
    scheme: str = "constant",
    *,
    min_snr_gamma: float = 5.0,
    gamma_eta: float = 1.0,
) -> Float64[np.ndarray, " times"]:
    """The weight of each time in the loss of a network that predicts ε, x_0 or v.

    Equation: constant: w_t = 1. Else w_t = u_t k_t: k_t = (1 − ᾱ_t)/ᾱ_t, 1 or 1 − ᾱ_t turns an error of ε, x_0 or v into one of
    x_0 by (2), and u_t is the weight of that: min(SNR_t, min_snr_gamma) with SNR_t = ᾱ_t/(1 − ᾱ_t), or, for "gamma",
    c_t²/(2σ_t²) of J_σ over the whole chain 1 … T with σ = σ(gamma_eta) and σ_1 = √β_1, scaled so that w has mean 1.

    Args:
        alpha_bar: ᾱ_0 … ᾱ_T, shape (T+1,).
        kind: what the network predicts, "epsilon", "x0" or "v".
        scheme: "constant", "min-snr" or "gamma".
        min_snr_gamma: > 0, the largest SNR that counts.
        gamma_eta: η in (0, 1].

    Returns:
        w_0 … w_T, shape (T+1,), float64; w_0 is 0 and never used.

    Raises:
        ValueError: ᾱ_T = 0 and ε-prediction.

    >>> loss_weights([1.0, 0.9, 0.5], "epsilon", "min-snr").round(3).tolist()
    [0.0, 0.556, 1.0]

    Source: min-SNR: Hang et al., arXiv:2303.09556, Eq. 8; γ: arXiv:2010.02502, theorem 1 (see `epsilon_weights`).
    """
    bars = np.asarray(alpha_bar, np.float64)
    check_kind(kind, bars[1:])
    t = np.arange(1, len(bars))
    before, now = bars[:-1], bars[1:]
    if scheme == "constant":
        weights = np.ones(len(t))
    else:
        per_output = {
            "epsilon": lambda: (1 - now) / now,
            "x0": lambda: np.ones(len(t)),
            "v": lambda: 1 - now,
        }[kind]()
        if scheme == "min-snr":
            weights = np.minimum(now / (1 - now), min_snr_gamma) * per_output
        else:
            sigma = np.array(eta(gamma_eta)(Steps(t, t - 1, now, before)).sigma)
            sigma[0] = np.sqrt(1 - now[0])
            with jax.enable_x64(True):
                weights = np.asarray(x_0_weights(now, before, sigma)) * per_output
            weights = weights / weights.mean()
    return np.concatenate([[0.0], weights])


def mean_squared_error(
    a: Float[Array, "..."], b: Float[Array, "..."], weight: Float[Array, " B"] | None = None
) -> Float[Array, ""]:
    """The mean over all elements of weight · (a − b)², in float32 at least.

    Raises:
        ValueError: unequal shapes, which would broadcast to a wrong loss.

    >>> float(mean_squared_error(jnp.zeros(2), jnp.array([1.0, 3.0])))
    5.0
    """
    if a.shape != b.shape:
        raise ValueError(
            f"the shapes {a.shape} and {b.shape} of a squared error differ; they must be equal."
        )
    square = jnp.square(a - b)
    return jnp.mean(square if weight is None else per_image(weight, square) * square)
