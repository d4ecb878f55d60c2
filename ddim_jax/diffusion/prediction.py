"""From the network's output to the pair (x̂_0, ε̂) that the reverse process needs.

    (1)  x_t = √ᾱ_t x_0 + √(1 − ᾱ_t) ε                        x_0 and ε determine each other
    (2)  x̂_0 = f_θ(x_t) = (x_t − √(1 − ᾱ_t) ε_θ(x_t, t)) / √ᾱ_t                          Eq. 9

A Denoiser maps (x_t, t) to Prediction(x_0, epsilon). It is the only place that knows that networks
are conditioned on t − 1 = 0 … T−1, as published DDPM checkpoints are. Wrappers turn one Denoiser
into another. Wrappers and samplers also accept a plain function of your own.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from .forward import per_image
from .types import Images, Numbers, Real


class Prediction(NamedTuple):
    """The predicted clean image x̂_0 and the predicted noise ε̂, each of x_t's shape."""

    x_0: Float[Array, "*shape"]
    epsilon: Float[Array, "*shape"]


Denoise = Callable[[Float[Array, "B *dims"], Int[Array, " B"]], Prediction]


@dataclasses.dataclass(frozen=True, eq=False)
class Denoiser:
    """A function (x_t, t (B,)) → Prediction, and what is known about how it was built."""

    call: Denoise
    alpha_bar: Numbers | None = None
    kind: str | None = None  # what the network predicts, a key of PREDICTIONS

    def __call__(self, x_t: Float[Array, "B *dims"], t: Int[Array, " B"]) -> Prediction:
        """x̂_0 and ε̂ at (x_t, t)."""
        return self.call(x_t, t)


class Predicted(NamedTuple):
    """What a network may predict: y, given signal = √ᾱ_t and noise = √(1 − ᾱ_t)."""

    pair: Callable[..., Prediction]  # (x_t, y, signal, noise) → x̂_0 and ε̂ by (1)
    target: Callable[..., Any]  # (x_0, ε, signal, noise) → y
    x_0_error: Callable[[Any], Any]  # ᾱ_t → ‖x̂_0 − x_0‖²/‖ŷ − y‖²


PREDICTIONS = {
    "epsilon": Predicted(
        lambda x_t, y, signal, noise: Prediction((x_t - noise * y) / signal, y),
        lambda x_0, epsilon, signal, noise: epsilon,
        lambda alpha_bar_t: (1 - alpha_bar_t) / alpha_bar_t,
    ),
    "x0": Predicted(
        lambda x_t, y, signal, noise: Prediction(y, (x_t - signal * y) / noise),
        lambda x_0, epsilon, signal, noise: x_0,
        lambda alpha_bar_t: 1.0,
    ),
    "v": Predicted(  # Salimans and Ho, arXiv:2202.00512, appendix D
        lambda x_t, y, signal, noise: Prediction(
            signal * x_t - noise * y, noise * x_t + signal * y
        ),
        lambda x_0, epsilon, signal, noise: signal * epsilon - noise * x_0,
        lambda alpha_bar_t: 1 - alpha_bar_t,
    ),
}


def denoiser(
    apply: Callable[..., Any], params: Any, alpha_bar: Numbers, kind: str = "epsilon"
) -> Denoiser:
    """The Denoiser of a network apply(params, x_t, t − 1): (1) solved for x_0 and ε.

    `kind` is what it predicts: "epsilon", "x0" (or "x_0"), or "v" = √ᾱ_t ε − √(1 − ᾱ_t) x_0.

    >>> denoise = denoiser(lambda params, x, t: params * x, 0.5, [1.0, 0.64])
    >>> denoise(jnp.ones((1, 2)), jnp.array([1])).x_0.tolist()
    [[0.875, 0.875]]
    """
    kind = "x0" if kind == "x_0" else kind
    if kind not in PREDICTIONS:
        raise ValueError(f"kind is {kind!r}; a network may predict {', '.join(PREDICTIONS)}.")

    def call(x_t, t):
        y = apply(params, x_t, t - 1)
        if y.shape != x_t.shape:
            raise ValueError(
                f"the network gave shape {y.shape} for x_t of shape {x_t.shape}; "
                "they must be equal."
            )
        return PREDICTIONS[kind].pair(x_t, y, *levels(alpha_bar, t, x_t))

    return Denoiser(call, alpha_bar, kind)


def as_denoiser(denoise: Denoise) -> Denoiser:
    """A Denoiser unchanged; a plain function as a Denoiser with nothing else known."""
    return denoise if isinstance(denoise, Denoiser) else Denoiser(denoise)


def check_kind(kind: str | None, alpha_bar_t: Any) -> None:
    """Refuse ε-prediction where ᾱ_t = 0: x_t is pure noise there, and (2) divides by 0."""
    traced = isinstance(alpha_bar_t, jax.core.Tracer)
    if kind == "epsilon" and not traced and np.any(np.asarray(alpha_bar_t) == 0):
        raise ValueError(
            "alpha_bar_t is 0 at a time that is visited: x_t is pure noise there and ε tells "
            "nothing about x_0; use a network that predicts 'v' or 'x0', or leave that time out."
        )


def clip_x0(
    denoise: Denoise, rederive_epsilon: bool = False, alpha_bar: Numbers | None = None
) -> Denoiser:
    """Clip the predicted clean image: x̂_0 ← clip(x̂_0, −1, 1).

    `rederive_epsilon` recomputes ε̂ from it by (1), as the official code does with σ̂; for
    a plain function it needs `alpha_bar`. Otherwise ε̂ is unchanged, as in diffusers.

    >>> denoise = clip_x0(lambda x, t: Prediction(2 * x, x))
    >>> denoise(jnp.ones((1, 1)), jnp.array([1])).x_0.tolist()
    [[1.0]]
    """
    denoise = as_denoiser(denoise)
    bars: Any = denoise.alpha_bar if alpha_bar is None else alpha_bar
    if rederive_epsilon and bars is None:
        raise ValueError(
            "alpha_bar is None and the denoiser has none; rederive_epsilon needs it: "
            "pass alpha_bar=."
        )

    def clipped(x_t, t):
        x_0, epsilon = denoise(x_t, t)
        x_0 = jnp.clip(x_0, -1, 1)
        if rederive_epsilon:
            signal, noise = levels(bars, t, x_t)
            epsilon = (x_t - signal * x_0) / noise
        return Prediction(x_0, epsilon)

    return Denoiser(clipped, bars, denoise.kind)


def dynamic_threshold(denoise: Denoise, percentile: Real) -> Denoiser:
    """x̂_0 ← clip(x̂_0, −s, s)/s, s = max(1, percentile of |x̂_0|) per image; ε̂ is unchanged.

    Source: Saharia et al., arXiv:2205.11487, section 2.3.

    >>> denoise = dynamic_threshold(lambda x, t: Prediction(4 * x, x), 100)
    >>> denoise(jnp.array([[1.0, 0.5]]), jnp.array([1])).x_0.tolist()
    [[1.0, 0.5]]
    """
    if not 0 < percentile <= 100:
        raise ValueError(
            f"percentile is {percentile}; it must be above 0 and at most 100 (Imagen uses 99.5)."
        )
    denoise = as_denoiser(denoise)

    def thresholded(x_t, t):
        x_0, epsilon = denoise(x_t, t)
        size = jnp.percentile(jnp.abs(x_0).reshape(x_0.shape[0], -1), percentile, axis=1)
        size = per_image(jnp.maximum(size, 1), x_0)
        return Prediction(jnp.clip(x_0, -size, size) / size, epsilon)

    return dataclasses.replace(denoise, call=thresholded)


def guided(denoise_cond: Denoise, denoise_uncond: Denoise, scale: Numbers) -> Denoiser:
    """Classifier-free guidance: ε̂ = ε_u + scale·(ε_c − ε_u), and x̂_0 likewise: (1) is linear.

    Scale 1 is the conditional model. Source: arXiv:2207.12598, Eq. 6, with scale = 1 + w.

    >>> one, two = (lambda x, t, k=k: Prediction(k * x, k * x) for k in (1, 2))
    >>> guided(two, one, 3.0)(jnp.ones((1, 1)), jnp.array([1])).epsilon.tolist()
    [[4.0]]
    """

    def call(x_t, t):
        cond, uncond, s = denoise_cond(x_t, t), denoise_uncond(x_t, t), per_image(scale, x_t)
        return Prediction(*(u + s * (c - u) for c, u in zip(cond, uncond, strict=True)))

    return dataclasses.replace(as_denoiser(denoise_cond), call=call)


def levels(
    alpha_bar: Numbers, t: Int[Array, " B"], images: Images
) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
    """√ᾱ_t and √(1 − ᾱ_t) shaped to multiply images; roots in float64 if ᾱ is on the host."""
    xp: Any = jnp if isinstance(alpha_bar, jax.core.Tracer) else np
    bars = xp.asarray(alpha_bar)
    signal, noise = (per_image(jnp.asarray(xp.sqrt(x))[t], images) for x in (bars, 1 - bars))
    return signal, noise
