"""The training objective, and the weights that the paper's variational objective gives it.

    (1)  L(θ) = E_{x_0, t, ε} w_t ‖y_θ(x_t, t) − y‖² / dim                                     Eq. 5
         x_t = √ᾱ_t x_0 + √(1 − ᾱ_t) ε,   t uniform on 1 … T,   ε ~ N(0, I)

w is the paper's γ; y = ε with w = 1 is DDPM's L_simple (arXiv:2006.11239, Eq. 14). The network may
also predict y = x_0 or v = √ᾱ_t ε − √(1 − ᾱ_t) x_0. Weights are stated for the error of x̂_0, to
which the others are proportional:

    (2)  ‖x̂_0 − x_0‖² = ‖v̂ − v‖² (1 − ᾱ_t) = ‖ε̂ − ε‖² (1 − ᾱ_t)/ᾱ_t

By theorem 1 the variational objective J_σ (Eq. 11) is (1) with some w, up to a constant, for every
σ. So one network serves every σ. A step of J_σ is the KL between q_σ(x_s | x_t, x_0) and
q_σ(x_s | x_t, f_θ(x_t)), Gaussians with the same σ whose means differ by c (x_0 − f_θ):

    (3)  KL = c²/(2 σ²) ‖f_θ − x_0‖² = γ ‖ε_θ − ε‖²
         c = √ᾱ_s − √(1−ᾱ_s−σ²) √ᾱ_t/√(1−ᾱ_t),   γ = c² (1−ᾱ_t)/(2 σ² ᾱ_t)

At s = 0 the mean is f_θ itself, c = 1, and σ is the paper's σ_1. The paper (appendix B) prints
γ = 1/(2 d σ² ᾱ_t): no c² (1−ᾱ_t), and a division by the dimension d. (3) is exact as it stands.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float64, Int, Key

from .forward import add_noise, direction_scale, per_image
from .prediction import PREDICTIONS, check_kind, levels
from .sigmas import Steps, eta, final_noise
from .types import Numbers


class Examples(NamedTuple):
    """A batch of noisy images and what the network is to predict from them; leaves (B, …)."""

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
    """(1) for ε with w = 1, on a batch at random times; about 1 for a network that predicts 0.

    >>> zero, x_0 = lambda params, x, t: 0 * x, jnp.zeros((64, 8, 8, 1))
    >>> round(float(epsilon_loss(zero, None, x_0, [1.0, 0.5], jax.random.key(1))), 1)
    1.0
    """
    examples = draw_examples(x_0, alpha_bar, key)
    return prediction_loss(apply, params, examples, dropout_key=dropout_key)


def draw_examples(
    x_0: Float[Array | np.ndarray, "B *dims"],
    alpha_bar: Numbers,
    key: Key[Array, ""],
    *,
    kind: str = "epsilon",
    weights: Numbers | None = None,
    label: Int[Array | np.ndarray, " B"] | None = None,
) -> Examples:
    """x_t, t, y and w_t of (1) for a batch; `weights` are w_0 … w_T, from `loss_weights`.

    >>> examples = draw_examples(jnp.ones((2, 1)), [1.0, 0.0], jax.random.key(0), kind="v")
    >>> examples.t.tolist(), examples.target.tolist()  # ᾱ_1 = 0, so v = −x_0
    ([1, 1], [[-1.0], [-1.0]])
    """
    if not isinstance(alpha_bar, jax.core.Tracer):
        check_kind(kind, np.asarray(alpha_bar)[1:])
    x_0 = jnp.asarray(x_0)
    time_key, noise_key = jax.random.split(key)
    t = jax.random.randint(time_key, x_0.shape[:1], 1, np.shape(alpha_bar)[0], jnp.int32)
    epsilon = jax.random.normal(noise_key, x_0.shape, x_0.dtype)
    return Examples(
        x_t=add_noise(x_0, epsilon, jnp.asarray(alpha_bar)[t]),
        t=t,
        target=PREDICTIONS[kind].target(x_0, epsilon, *levels(alpha_bar, t, x_0)),
        weight=jnp.ones(len(t)) if weights is None else jnp.asarray(weights, jnp.float32)[t],
        label=None if label is None else jnp.asarray(label),
    )


def prediction_loss(
    apply: Callable[..., Any],
    params: Any,
    examples: Examples,
    *,
    dropout_key: Key[Array, ""] | None = None,
) -> Float[Array, ""]:
    """(1) on given examples; `apply` gets `label` and `dropout_key` only if they are given."""
    given = {"label": examples.label, "dropout_key": dropout_key}
    given = {name: value for name, value in given.items() if value is not None}
    y = apply(params, examples.x_t, examples.t - 1, **given)
    return mean_squared_error(y, examples.target, examples.weight)


def loss_weights(
    alpha_bar: Numbers,
    kind: str = "epsilon",
    scheme: str = "constant",
    *,
    min_snr_gamma: float = 5.0,
    gamma_eta: float = 1.0,
) -> Float64[np.ndarray, " times"]:
    """w_0 … w_T of (1) for a network that predicts ε, x_0 or v; w_0 is 0 and never used.

    constant: w_t = 1. The others weight the error of x̂_0 and convert that by (2).
    min-snr: min(ᾱ_t/(1 − ᾱ_t), min_snr_gamma). Source: Hang et al., arXiv:2303.09556, Eq. 8.
    gamma: c²/(2σ²) of (3) for all steps 1 … T with η = gamma_eta and σ_1 = √β_1, scaled to mean 1.

    >>> loss_weights([1.0, 0.9, 0.5], "epsilon", "min-snr").round(3).tolist()
    [0.0, 0.556, 1.0]
    """
    bars = np.asarray(alpha_bar, np.float64)
    check_kind(kind, bars[1:])
    t, bars_s, bars_t = np.arange(1, len(bars)), bars[:-1], bars[1:]
    if scheme == "constant":
        weights = np.ones(len(t))
    elif scheme == "min-snr":
        snr = bars_t / (1 - bars_t)
        weights = np.minimum(snr, min_snr_gamma) * PREDICTIONS[kind].x_0_error(bars_t)
    elif scheme == "gamma":
        schedule = final_noise(eta(gamma_eta), np.sqrt(1 - bars_t[0]))
        with jax.enable_x64(True):
            sigma = schedule(Steps(t, t - 1, bars_t, bars_s)).noise
            weights = np.asarray(x_0_weights(bars_t, bars_s, sigma))
        weights = weights * PREDICTIONS[kind].x_0_error(bars_t)
        weights = weights / weights.mean()
    else:
        raise ValueError(f"scheme is {scheme!r}; it must be constant, min-snr or gamma.")
    return np.concatenate([[0.0], weights])


def x_0_weights(alpha_bar_t: Numbers, alpha_bar_s: Numbers, sigma: Numbers) -> Float[Array, "..."]:
    """The weight c²/(2 σ²) of ‖f_θ(x_t) − x_0‖² in J_σ, (3); infinite where σ = 0.

    >>> round(float(x_0_weights(0.0, 0.8, 0.2)), 4)
    10.0
    """
    a_t, a_s, sigma = (jnp.asarray(value) for value in (alpha_bar_t, alpha_bar_s, sigma))
    c = jnp.sqrt(a_s) - direction_scale(a_s, sigma) * jnp.sqrt(a_t / (1 - a_t))
    return c**2 / (2 * sigma**2)


def epsilon_weights(
    alpha_bar_t: Numbers, alpha_bar_s: Numbers, sigma: Numbers
) -> Float[Array, "..."]:
    """The weight γ of ‖ε_θ − ε‖² in J_σ, (3): exact, unlike the γ that the paper prints.

    >>> round(float(epsilon_weights(0.5, 0.8, 0.2)), 6)
    3.055728
    """
    a_t = jnp.asarray(alpha_bar_t)
    return x_0_weights(a_t, alpha_bar_s, sigma) * (1 - a_t) / a_t


def mean_squared_error(
    a: Float[Array, "..."], b: Float[Array, "..."], weight: Float[Array, " B"] | None = None
) -> Float[Array, ""]:
    """The mean of weight · (a − b)² over all elements; the shapes must be equal, not broadcast.

    >>> float(mean_squared_error(jnp.zeros(2), jnp.array([1.0, 3.0])))
    5.0
    """
    if a.shape != b.shape:
        raise ValueError(
            f"the shapes {a.shape} and {b.shape} of a squared error differ; they must be equal."
        )
    square = jnp.square(a - b)
    return jnp.mean(square if weight is None else per_image(weight, square) * square)
