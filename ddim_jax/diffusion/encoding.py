"""From an image to its noise: the deterministic process run backwards, and interpolation between noises.

    (1)  x_t = √ᾱ_t x̂_0 + √(1 − ᾱ_t) ε̂,   ε̂ = ε_θ(x_s, s),  x̂_0 = (x_s − √(1 − ᾱ_s) ε̂)/√ᾱ_s

is the update with σ = 0 and s, t exchanged: an Euler step, forwards in time, of the ODE that Eq. 12 with σ = 0 discretises
(DDIM paper, arXiv:2010.02502, Eq. 13 and 14). `sample` with η = 0 goes back; the two are inverse as S → ∞.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .forward import per_image
from .prediction import Denoiser
from .reverse import StepTable
from .types import Images, Numbers


def encode(denoise: Denoiser, x_0: Images, table: StepTable) -> Float[Array, "B *dims"]:
    """The noise x_T that deterministic sampling turns into given images.

    Equation: (1) for the rows of the table from its last to its first; at s = 0, ε̂ is taken at time 1 and x̂_0 = x_0.

    Args:
        denoise: a Denoiser.
        x_0: images (B, H, W, C) in [−1, 1].
        table: the steps, leaves (S,); sigma and noise are ignored, inactive rows skipped.

    Returns:
        x_T, at the time of the table's first row, shape (B, H, W, C).

    Raises:
        ValueError: a table that is not (S,).

    >>> from ddim_jax import Prediction, alpha_bars, eta, linear_betas, step_table, uniform_timesteps
    >>> table = step_table(alpha_bars(linear_betas(1000)), uniform_timesteps(1000, 4), eta(0.0))
    >>> encode(lambda x, t: Prediction(x, jnp.zeros_like(x)), jnp.ones((1, 8, 8, 1)), table).shape
    (1, 8, 8, 1)

    Source: arXiv:2010.02502, section 5.4 and Eq. 14.
    """
    if jnp.ndim(table.t) != 1:
        raise ValueError(f"the table's leaves have shape {jnp.shape(table.t)}; they must be (S,).")
    # A row goes down to the time of the next one; where that is padding, ᾱ_s = 1 tells that it goes to data.
    below = jnp.append(jnp.asarray(table.t)[1:], 0)
    s = jnp.where(jnp.asarray(table.alpha_bar_s) == 1, 0, below)

    def step(x_s, inputs):
        row, s = inputs

        def up():
            epsilon = denoise(x_s, jnp.broadcast_to(jnp.maximum(s, 1), x_s.shape[:1])).epsilon
            x_hat_0 = (x_s - jnp.sqrt(1 - row.alpha_bar_s) * epsilon) / jnp.sqrt(row.alpha_bar_s)
            x_t = jnp.sqrt(row.alpha_bar_t) * x_hat_0 + jnp.sqrt(1 - row.alpha_bar_t) * epsilon
            return x_t.astype(x_s.dtype)

        return jax.lax.cond(row.active, up, lambda: x_s), None

    rows = jax.tree.map(jnp.asarray, table)
    return jax.lax.scan(step, jnp.asarray(x_0), (rows, s), reverse=True)[0]


def slerp(a: Images, b: Images, weight: Numbers) -> Float[Array, "B *dims"]:
    """Spherical interpolation between two batches of noise, image by image.

    Equation: sin((1 − w) θ)/sin θ · a + sin(w θ)/sin θ · b,  cos θ = ⟨a, b⟩/(‖a‖ ‖b‖); (1 − w) a + w b where θ is 0 or π.

    Args:
        a: noise (B, H, W, C).
        b: noise, the shape of a.
        weight: w, 0 gives a and 1 gives b; a scalar or one value an image (B,).

    Returns:
        The shape of a; for Gaussian noise of the norm that Gaussian noise has, which a straight line leaves.

    Raises:
        ValueError: shapes that differ.

    >>> slerp(jnp.array([[3.0, 0.0]]), jnp.array([[0.0, 3.0]]), 1.0).round(4).tolist()
    [[0.0, 3.0]]

    Source: arXiv:2010.02502, appendix D.5.
    """
    if jnp.shape(a) != jnp.shape(b):
        raise ValueError(f"a has shape {jnp.shape(a)} and b {jnp.shape(b)}; they must be equal.")
    flat_a, flat_b = (x.reshape(x.shape[0], -1) for x in (a, b))
    norms = jnp.linalg.norm(flat_a, axis=1) * jnp.linalg.norm(flat_b, axis=1)
    cosine = jnp.sum(flat_a * flat_b, axis=1) / jnp.where(norms > 0, norms, 1)
    theta = jnp.arccos(jnp.clip(cosine, -1, 1))
    weight, sine = jnp.broadcast_to(jnp.asarray(weight, theta.dtype), theta.shape), jnp.sin(theta)
    # Where a and b are parallel, both quotients tend to those of the straight line.
    curved = sine > 1e-4
    safe = jnp.where(curved, sine, 1)
    of_a = jnp.where(curved, jnp.sin((1 - weight) * theta) / safe, 1 - weight)
    of_b = jnp.where(curved, jnp.sin(weight * theta) / safe, weight)
    return per_image(of_a, a) * a + per_image(of_b, b) * b
