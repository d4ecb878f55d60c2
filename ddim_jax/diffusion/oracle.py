"""Optimal denoisers of known distributions, so that a σ can be studied without a network.

    (1)  x̂_0 = E[x_0 | x_t],   ε̂ = (x_t − √ᾱ_t x̂_0)/√(1 − ᾱ_t) = E[ε | x_t]

is what a perfect network predicts when q(x_t | x_0) = N(√ᾱ_t x_0, (1 − ᾱ_t) I), Eq. 4. It follows
from Bayes' rule. For Gaussian data x_0 ~ N(μ, Σ), with C = ᾱ_t Σ + (1 − ᾱ_t) I:

    (2)  x̂_0 = μ + √ᾱ_t Σ C⁻¹ (x_t − √ᾱ_t μ),   ε̂ = √(1 − ᾱ_t) C⁻¹ (x_t − √ᾱ_t μ)

For a mixture of isotropic Gaussians with weights w_k, means m_k and standard deviations s_k:

    (3)  x̂_0 = Σ_k r_k (m_k + √ᾱ_t s_k²/c_k (x_t − √ᾱ_t m_k)),   c_k = ᾱ_t s_k² + 1 − ᾱ_t,
         r_k ∝ w_k N(x_t; √ᾱ_t m_k, c_k I)
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .moments import decompose
from .prediction import Denoiser, Prediction, levels
from .types import Images, Integer, Numbers


def gaussian_oracle(mean: Numbers, covariance: Numbers, alpha_bar: Numbers) -> Denoiser:
    """The optimal Denoiser of Gaussian data, (2); μ is (D,) or an image, Σ (D, D).

    >>> denoise = gaussian_oracle([0.0], [[1.0]], [1.0, 0.64])
    >>> round(float(denoise(jnp.ones((1, 1)), jnp.array([1])).x_0[0, 0]), 6)
    0.8
    """
    mu, eigenvalues, vectors = decompose(mean, covariance)

    def denoise(x_t, t):
        flat, a_t = _flat(x_t, t, alpha_bar)
        center, basis, values = (
            jnp.asarray(part, flat.dtype) for part in (mu[None], vectors, eigenvalues[None])
        )
        # C⁻¹ (x_t − √ᾱ_t μ) in the eigenbasis
        y = _matmul(flat - jnp.sqrt(a_t) * center, basis) / (a_t * values + 1 - a_t)
        x_0 = center + _matmul(jnp.sqrt(a_t) * values * y, basis.T)
        epsilon = _matmul(jnp.sqrt(1 - a_t) * y, basis.T)
        return Prediction(x_0.reshape(x_t.shape), epsilon.reshape(x_t.shape))

    return Denoiser(denoise, alpha_bar)


def mixture_oracle(weights: Numbers, means: Numbers, std: Numbers, alpha_bar: Numbers) -> Denoiser:
    """The optimal Denoiser of a mixture of isotropic Gaussians, (3).

    `weights` (K,) are normalised, `means` are (K, D) or (K, *image), `std` is a number or (K,).

    >>> denoise = mixture_oracle([1, 1], [[-1.0], [1.0]], 0.0, [1.0, 0.64])
    >>> round(float(denoise(jnp.zeros((1, 1)), jnp.array([1])).x_0[0, 0]), 6)
    0.0
    """
    w = np.asarray(weights, np.float64)
    m = np.asarray(means, np.float64).reshape(len(w), -1)
    s = np.broadcast_to(np.asarray(std, np.float64), w.shape)
    if w.ndim != 1 or not np.all(w > 0) or not np.all(s >= 0):
        raise ValueError(
            f"weights are {w} and std {s}; weights must be (K,) and positive, std ≥ 0."
        )

    def denoise(x_t, t):
        flat, a_t = _flat(x_t, t, alpha_bar)
        log_w, variance, centers = (
            jnp.asarray(part, flat.dtype)[None] for part in (np.log(w), s**2, m)
        )
        c = a_t * variance + 1 - a_t
        offset = flat[:, None] - jnp.sqrt(a_t)[..., None] * centers
        squares = jnp.sum(offset**2, -1)
        r = jax.nn.softmax(log_w - squares / (2 * c) - flat.shape[1] / 2 * jnp.log(c), axis=1)
        within = centers + (jnp.sqrt(a_t) * variance / c)[..., None] * offset
        return _pair(x_t, jnp.sum(r[..., None] * within, axis=1), alpha_bar, t)

    return Denoiser(denoise, alpha_bar)


def empirical_oracle(data: Images, alpha_bar: Numbers, *, chunk_size: Integer = 256) -> Denoiser:
    """The optimal Denoiser of the images `data` (N, …) themselves: (3) with s_k = 0, m_k an image.

    It acts as a network that has memorised them (arXiv:2206.00364, appendix B.3). The sum runs in
    chunks with a running maximum: memory holds the data and one array (B, chunk_size, D).

    >>> denoise = empirical_oracle(jnp.array([[-1.0], [1.0]]), [1.0, 0.9999])
    >>> denoise(jnp.array([[0.9]]), jnp.array([1])).x_0.tolist()
    [[1.0]]
    """
    count = len(data)
    if count < 1 or chunk_size < 1:
        raise ValueError(
            f"data has {count} images and chunk_size is {chunk_size}; both must be at least 1."
        )
    flat_data = np.asarray(data, np.float32).reshape(count, -1)
    chunk_size = min(int(chunk_size), count)
    padded = np.pad(flat_data, ((0, -count % chunk_size), (0, 0)))
    chunks = padded.reshape(-1, chunk_size, padded.shape[1])
    present = (np.arange(len(padded)) < count).reshape(-1, chunk_size)

    def denoise(x_t, t):
        flat, a_t = _flat(x_t, t, alpha_bar)

        def add(sums, inputs):
            top, total, weighted = sums
            images, here = inputs
            # Differences, not products: expanding the square would lose the digits in which near
            # images differ.
            offset = flat[:, None] - jnp.sqrt(a_t)[..., None] * images[None]
            log_r = jnp.where(here[None], -jnp.sum(offset**2, -1) / (2 * (1 - a_t)), -jnp.inf)
            new_top = jnp.maximum(top, jnp.max(log_r, axis=1))
            old, r = jnp.exp(top - new_top), jnp.exp(log_r - new_top[:, None])
            weighted = old[:, None] * weighted + _matmul(r, images)
            return (new_top, old * total + jnp.sum(r, axis=1), weighted), None

        batch = flat.shape[:1]
        start = (
            jnp.full(batch, -jnp.inf, flat.dtype),
            jnp.zeros(batch, flat.dtype),
            jnp.zeros_like(flat),
        )
        inputs = (jnp.asarray(chunks, flat.dtype), jnp.asarray(present))
        (_, total, weighted), _ = jax.lax.scan(add, start, inputs)
        return _pair(x_t, weighted / total[:, None], alpha_bar, t)

    return Denoiser(denoise, alpha_bar)


def _flat(x_t, t, alpha_bar: Numbers) -> tuple[Float[Array, "B D"], Float[Array, "B 1"]]:
    """Images as rows, and ᾱ_t beside them."""
    return x_t.reshape(x_t.shape[0], -1), jnp.asarray(alpha_bar)[t][:, None]


def _pair(x_t, x_0, alpha_bar: Numbers, t) -> Prediction:
    """(1), with ε̂ from x̂_0."""
    signal, noise = levels(alpha_bar, t, x_t)
    x_0 = x_0.reshape(x_t.shape)
    return Prediction(x_0, (x_t - signal * x_0) / noise)


def _matmul(a: Float[Array, "..."], b: Float[Array, "..."]) -> Float[Array, "..."]:
    return jnp.matmul(a, b, precision="highest")  # accelerators would multiply in TF32 or bfloat16
