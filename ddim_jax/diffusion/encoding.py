"""Encode images as noise, by the deterministic process run backwards, and interpolate noises.

    (1)  x_t = √ᾱ_t x̂_0 + √(1 − ᾱ_t) ε̂,   ε̂ = ε_θ(x_s, s),  x̂_0 = (x_s − √(1 − ᾱ_s) ε̂)/√ᾱ_s

is the update with σ = 0 and s, t exchanged: an Euler step, forwards in time, of the ODE that Eq. 12
with σ = 0 discretises (DDIM paper, arXiv:2010.02502, Eq. 13 and 14). `sample` with η = 0 decodes;
the two become inverses as S → ∞.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .forward import per_image
from .prediction import Denoise
from .reverse import StepTable
from .types import Images, Numbers


def encode(denoise: Denoise, x_0: Images, table: StepTable) -> Float[Array, "B *dims"]:
    """The noise x_T that deterministic sampling maps to the images: (1), from the last row up.

    At s = 0, x̂_0 = x_0 and ε̂ is taken at time 1. Ignores sigma and noise; skips inactive rows.

    >>> from ddim_jax import eta, gaussian_oracle, step_table
    >>> denoise = gaussian_oracle([0.0], [[1.0]], [1.0, 0.64])
    >>> x_T = encode(denoise, jnp.ones((1, 1)), step_table([1.0, 0.64], [1], eta(0.0)))
    >>> round(x_T.item(), 3)
    1.16
    """
    if jnp.ndim(table.t) != 1:
        raise ValueError(f"the table's leaves have shape {jnp.shape(table.t)}; they must be (S,).")

    def step(x_s, row):
        def up():
            # Networks have no time 0.
            epsilon = denoise(x_s, jnp.broadcast_to(jnp.maximum(row.s, 1), x_s.shape[:1])).epsilon
            x_hat_0 = (x_s - jnp.sqrt(1 - row.alpha_bar_s) * epsilon) / jnp.sqrt(row.alpha_bar_s)
            x_t = jnp.sqrt(row.alpha_bar_t) * x_hat_0 + jnp.sqrt(1 - row.alpha_bar_t) * epsilon
            return x_t.astype(x_s.dtype)

        return jax.lax.cond(row.active, up, lambda: x_s), None

    rows = jax.tree.map(jnp.asarray, table)
    return jax.lax.scan(step, jnp.asarray(x_0), rows, reverse=True)[0]


def slerp(a: Images, b: Images, weight: Numbers) -> Float[Array, "B *dims"]:
    """sin((1 − w) θ)/sin θ · a + sin(w θ)/sin θ · b for each image, cos θ = ⟨a, b⟩/(‖a‖ ‖b‖).

    It keeps the norm of Gaussian noise (appendix D.5). Where θ is 0 or π, it is linear instead.

    >>> slerp(jnp.array([[3.0, 0.0]]), jnp.array([[0.0, 3.0]]), 1.0).round(4).tolist()
    [[0.0, 3.0]]
    """
    if jnp.shape(a) != jnp.shape(b):
        raise ValueError(f"a has shape {jnp.shape(a)} and b {jnp.shape(b)}; they must be equal.")
    flat_a, flat_b = (x.reshape(x.shape[0], -1) for x in (a, b))
    norms = jnp.linalg.norm(flat_a, axis=1) * jnp.linalg.norm(flat_b, axis=1)
    cosine = jnp.sum(flat_a * flat_b, axis=1) / jnp.where(norms > 0, norms, 1)
    theta = jnp.arccos(jnp.clip(cosine, -1, 1))
    weight, sine = jnp.broadcast_to(jnp.asarray(weight, theta.dtype), theta.shape), jnp.sin(theta)
    # As a and b become parallel, both weights tend to those of linear interpolation.
    curved = sine > 1e-4
    safe = jnp.where(curved, sine, 1)
    of_a = jnp.where(curved, jnp.sin((1 - weight) * theta) / safe, 1 - weight)
    of_b = jnp.where(curved, jnp.sin(weight * theta) / safe, weight)
    return per_image(of_a, a) * a + per_image(of_b, b) * b
