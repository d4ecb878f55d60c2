"""From the network's output to the pair (x̂_0, ε̂) that the reverse process needs.

    (1)  x_t = √ᾱ_t x_0 + √(1 − ᾱ_t) ε                 defines the pair: each of the two gives the other
    (2)  x̂_0 = f_θ(x_t) = (x_t − √(1 − ᾱ_t) ε_θ(x_t, t)) / √ᾱ_t         DDIM paper (arXiv:2010.02502), Eq. 9

A Denoiser is a function (x_t, t) → Prediction(x_0, epsilon). It is the only place that knows that the network is
conditioned on t − 1 = 0 … T−1, as published DDPM checkpoints are. Wrappers change a Denoiser into another.
"""

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


Denoiser = Callable[[Float[Array, "B *dims"], Int[Array, " B"]], Prediction]


def denoiser(
    apply: Callable[..., Any], params: Any, alpha_bar: Numbers, kind: str = "epsilon"
) -> Denoiser:
    """The Denoiser of a network that predicts ε, x_0 or v.

    Equation: with y = apply(params, x_t, t − 1),
        epsilon: ε̂ = y,                          x̂_0 = (x_t − √(1 − ᾱ_t) y)/√ᾱ_t
        x0:      x̂_0 = y,                        ε̂ = (x_t − √ᾱ_t y)/√(1 − ᾱ_t)
        v:       x̂_0 = √ᾱ_t x_t − √(1 − ᾱ_t) y,  ε̂ = √(1 − ᾱ_t) x_t + √ᾱ_t y

    Args:
        apply: the network, apply(params, x_t (B, …), t − 1 (B,) int32) → (B, …).
        params: its parameters, a pytree.
        alpha_bar: ᾱ_0 … ᾱ_T, shape (T+1,).
        kind: what the network predicts, "epsilon", "x0" (or "x_0") or "v".

    Returns:
        A Denoiser; its attributes `alpha_bar` and `kind` tell wrappers and samplers what it was built with.

    Raises:
        ValueError: another kind; when called, an output that is not of x_t's shape.

    >>> denoise = denoiser(lambda params, x, t: params * x, 0.5, [1.0, 0.64])
    >>> denoise(jnp.ones((1, 2)), jnp.array([1])).x_0.tolist()
    [[0.875, 0.875]]

    Source: arXiv:2010.02502, Eq. 9; v: Salimans and Ho, arXiv:2202.00512, appendix D.
    """
    if kind not in ("epsilon", "x0", "x_0", "v"):
        raise ValueError(f"kind is {kind!r}; a network may predict 'epsilon', 'x0' or 'v'.")

    def denoise(x_t, t):
        y = apply(params, x_t, t - 1)
        if y.shape != x_t.shape:
            raise ValueError(
                f"the network gave shape {y.shape} for x_t of shape {x_t.shape}; they must be equal."
            )
        signal, noise = levels(alpha_bar, t, x_t)
        if kind == "epsilon":
            return Prediction((x_t - noise * y) / signal, y)
        if kind == "v":
            return Prediction(signal * x_t - noise * y, noise * x_t + signal * y)
        return Prediction(y, (x_t - signal * y) / noise)

    return carry(denoise, alpha_bar, kind)


def check_kind(kind: str | None, alpha_bar_t: Any) -> None:
    """Refuse ε-prediction where ᾱ_t = 0: x_t is pure noise there, and (2) divides by zero.

    Equation: x̂_0 = (x_t − √(1 − ᾱ_t) ε̂)/√ᾱ_t.

    Args:
        kind: what the network predicts; None: unknown, nothing is refused.
        alpha_bar_t: ᾱ at the times that are visited; traced values are not checked.

    Raises:
        ValueError: ε-prediction and a zero.

    >>> check_kind("v", np.array([0.0]))

    Source: Lin et al., arXiv:2305.08891, section 3.
    """
    if (
        kind == "epsilon"
        and not isinstance(alpha_bar_t, jax.core.Tracer)
        and np.any(np.asarray(alpha_bar_t) == 0)
    ):
        raise ValueError(
            "alpha_bar_t is 0 at a time that is visited: x_t is pure noise there and ε tells nothing of x_0; "
            "use a network that predicts 'v' or 'x0', or leave that time out."
        )


def clip_x0(
    denoise: Denoiser, rederive_epsilon: bool = False, alpha_bar: Numbers | None = None
) -> Denoiser:
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
        raise ValueError(
            "alpha_bar is None and the denoiser carries none; rederive_epsilon needs it: pass alpha_bar=."
        )

    def clipped(x_t, t):
        x_0, epsilon = denoise(x_t, t)
        x_0 = jnp.clip(x_0, -1, 1)
        return Prediction(
            x_0, _noise_between(x_t, x_0, t, alpha_bar) if rederive_epsilon else epsilon
        )

    return carry(clipped, alpha_bar, getattr(denoise, "kind", None))


def dynamic_threshold(denoise: Denoiser, percentile: Real) -> Denoiser:
    """Clip the predicted clean image to a range that each image sets itself, and scale it back to [−1, 1].

    Equation: s = max(1, percentile of |x̂_0|), x̂_0 ← clip(x̂_0, −s, s)/s; ε̂ stays.

    Args:
        denoise: a Denoiser.
        percentile: in (0, 100], 99.5 say; over all elements of an image.

    Returns:
        A Denoiser.

    Raises:
        ValueError: a percentile out of range.

    >>> denoise = dynamic_threshold(lambda x, t: Prediction(4 * x, x), 100)
    >>> denoise(jnp.array([[1.0, 0.5]]), jnp.array([1])).x_0.tolist()
    [[1.0, 0.5]]

    Source: Saharia et al., arXiv:2205.11487, section 2.3.
    """
    if not 0 < percentile <= 100:
        raise ValueError(
            f"percentile is {percentile}; it must be above 0 and at most 100 (Imagen uses 99.5)."
        )

    def thresholded(x_t, t):
        x_0, epsilon = denoise(x_t, t)
        size = jnp.percentile(jnp.abs(x_0).reshape(x_0.shape[0], -1), percentile, axis=1)
        size = per_image(jnp.maximum(size, 1), x_0)
        return Prediction(jnp.clip(x_0, -size, size) / size, epsilon)

    return carry(thresholded, getattr(denoise, "alpha_bar", None), getattr(denoise, "kind", None))


def guided(denoise_cond: Denoiser, denoise_uncond: Denoiser, scale: Numbers) -> Denoiser:
    """Classifier-free guidance.

    Equation: ε̂ = ε_u + scale·(ε_c − ε_u), and x̂_0 likewise, since (1) is linear.

    Args:
        denoise_cond: the Denoiser that knows the class.
        denoise_uncond: the one that does not.
        scale: 0 gives the unconditional one, 1 the conditional one, more goes beyond; a scalar or (B,).

    Returns:
        A Denoiser.

    >>> one, two = (lambda x, t, k=k: Prediction(k * x, k * x) for k in (1, 2))
    >>> guided(two, one, 3.0)(jnp.ones((1, 1)), jnp.array([1])).epsilon.tolist()
    [[4.0]]

    Source: Ho and Salimans, arXiv:2207.12598, Eq. 6, with scale = 1 + w.
    """

    def denoise(x_t, t):
        cond, uncond, s = denoise_cond(x_t, t), denoise_uncond(x_t, t), per_image(scale, x_t)
        return Prediction(*(u + s * (c - u) for c, u in zip(cond, uncond, strict=True)))

    return carry(
        denoise, getattr(denoise_cond, "alpha_bar", None), getattr(denoise_cond, "kind", None)
    )


def _noise_between(x_t, x_0, t, alpha_bar: Any):
    """ε by (1)."""
    signal, noise = levels(alpha_bar, t, x_t)
    return (x_t - signal * x_0) / noise


def levels(
    alpha_bar: Numbers, t: Int[Array, " B"], images: Images
) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
    """The factors of x_0 and ε in (1) at a time for each image.

    Equation: √ᾱ_t and √(1 − ᾱ_t), the roots in float64 where ᾱ is on the host: 1 − ᾱ_1 has four digits in float32.

    Args:
        alpha_bar: ᾱ_0 … ᾱ_T, shape (T+1,).
        t: times (B,).
        images: (B, …), for the rank of the result.

    Returns:
        Two arrays (B, 1, …, 1).

    >>> [level.item() for level in levels([1.0, 0.36], jnp.array([1]), jnp.ones((1, 2)))]
    [0.6000000238418579, 0.800000011920929]

    Source: arXiv:2010.02502, Eq. 4.
    """
    xp: Any = jnp if isinstance(alpha_bar, jax.core.Tracer) else np
    bars = xp.asarray(alpha_bar)
    return per_image(jnp.asarray(xp.sqrt(bars))[t], images), per_image(
        jnp.asarray(xp.sqrt(1 - bars))[t], images
    )


def carry(denoise: Any, alpha_bar: Numbers | None, kind: str | None = None) -> Denoiser:
    """Let a Denoiser carry what it was built with, so that wrappers and samplers need not be handed it again."""
    denoise.alpha_bar, denoise.kind = alpha_bar, kind
    return denoise
