"""Closed-form optimal denoisers: E[x_0 | x_t] for data whose distribution is known, so a σ can be studied with no network.

    (1)  q(x_t | x_0) = N(√ᾱ_t x_0, (1 − ᾱ_t) I)
    (2)  x̂_0 = E[x_0 | x_t],   ε̂ = (x_t − √ᾱ_t x̂_0)/√(1 − ᾱ_t) = E[ε | x_t]          what a perfect network predicts

Gaussian data x_0 ~ N(μ, Σ), by conditioning of Gaussians, with C = ᾱ_t Σ + (1 − ᾱ_t) I the covariance of x_t:

    (3)  x̂_0 = μ + √ᾱ_t Σ C⁻¹ (x_t − √ᾱ_t μ),   ε̂ = √(1 − ᾱ_t) C⁻¹ (x_t − √ᾱ_t μ)

Both are affine in x_t, so is Eq. 12 of the DDIM paper (arXiv:2010.02502), and the sampler's output is Gaussian: its mean and
covariance follow from those of x_T ~ N(0, I) step by step. All steps share the eigenvectors of Σ, so with λ an eigenvalue:

    (4)  g = √ᾱ_s √ᾱ_t λ/c + √(1−ᾱ_s−sigma²) √(1−ᾱ_t)/c,   c = ᾱ_t λ + 1 − ᾱ_t
         mean ← √ᾱ_s μ + g (mean − √ᾱ_t μ),   variance ← g² variance + noise²
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float64

from .prediction import Denoiser, Prediction, carry, levels
from .reverse import StepTable
from .types import Images, Integer, Numbers

_Parts = tuple[np.ndarray, np.ndarray, np.ndarray]


class Moments(NamedTuple):
    """The mean (D,) and covariance (D, D) of a Gaussian over flattened images, float64."""

    mean: Float64[np.ndarray, " D"]
    covariance: Float64[np.ndarray, "D D"]


def gaussian_oracle(mean: Numbers, covariance: Numbers, alpha_bar: Numbers) -> Denoiser:
    """The optimal Denoiser of Gaussian data.

    Equation: (3).

    Args:
        mean: μ, shape (D,) or that of an image with D elements.
        covariance: Σ, shape (D, D), symmetric with eigenvalues ≥ 0.
        alpha_bar: ᾱ_0 … ᾱ_T, shape (T+1,).

    Returns:
        A Denoiser of images with D elements.

    Raises:
        ValueError: a covariance that is not (D, D), symmetric and positive semi-definite.

    >>> denoise = gaussian_oracle([0.0], [[1.0]], [1.0, 0.64])
    >>> round(float(denoise(jnp.ones((1, 1)), jnp.array([1])).x_0[0, 0]), 6)
    0.8

    Source: arXiv:2010.02502, Eq. 4, and Bayes' rule.
    """
    mu, eigenvalues, vectors = _decompose(mean, covariance)

    def denoise(x_t, t):
        flat = x_t.reshape(x_t.shape[0], -1)
        alpha_bar_t = jnp.asarray(alpha_bar)[t][:, None]
        center, basis, values = (
            jnp.asarray(part, flat.dtype) for part in (mu[None], vectors, eigenvalues[None])
        )
        # C⁻¹ (x_t − √ᾱ_t μ) in the eigenbasis
        y = _matmul(flat - jnp.sqrt(alpha_bar_t) * center, basis) / (
            alpha_bar_t * values + 1 - alpha_bar_t
        )
        x_0 = center + _matmul(jnp.sqrt(alpha_bar_t) * values * y, basis.T)
        epsilon = _matmul(jnp.sqrt(1 - alpha_bar_t) * y, basis.T)
        return Prediction(x_0.reshape(x_t.shape), epsilon.reshape(x_t.shape))

    return carry(denoise, alpha_bar)


def mixture_oracle(weights: Numbers, means: Numbers, std: Numbers, alpha_bar: Numbers) -> Denoiser:
    """The optimal Denoiser of a mixture of isotropic Gaussians.

    Equation: x̂_0 = Σ_k r_k (m_k + √ᾱ_t s_k²/c_k (x_t − √ᾱ_t m_k)),  c_k = ᾱ_t s_k² + 1 − ᾱ_t,
    r_k ∝ w_k N(x_t; √ᾱ_t m_k, c_k I).

    Args:
        weights: w_k > 0, shape (K,); they are normalised.
        means: m_k, shape (K, D) or (K, *image).
        std: s_k ≥ 0, a scalar or shape (K,).
        alpha_bar: ᾱ_0 … ᾱ_T, shape (T+1,).

    Returns:
        A Denoiser of images with D elements.

    Raises:
        ValueError: weights that are not positive, a negative std, or lengths that differ.

    >>> denoise = mixture_oracle([1, 1], [[-1.0], [1.0]], 0.0, [1.0, 0.64])
    >>> round(float(denoise(jnp.zeros((1, 1)), jnp.array([1])).x_0[0, 0]), 6)
    0.0

    Source: arXiv:2010.02502, Eq. 4, and Bayes' rule.
    """
    w = np.asarray(weights, np.float64)
    m = np.asarray(means, np.float64).reshape(len(w), -1)
    s = np.broadcast_to(np.asarray(std, np.float64), w.shape)
    if w.ndim != 1 or not np.all(w > 0) or not np.all(s >= 0):
        raise ValueError(
            f"weights are {w} and std {s}; weights must be (K,) and positive, std ≥ 0."
        )

    def denoise(x_t, t):
        flat = x_t.reshape(x_t.shape[0], -1)
        alpha_bar_t = jnp.asarray(alpha_bar)[t][:, None]
        variance = jnp.asarray(s**2, flat.dtype)[None]
        c = alpha_bar_t * variance + 1 - alpha_bar_t
        offset = flat[:, None] - jnp.sqrt(alpha_bar_t)[..., None] * jnp.asarray(m, flat.dtype)[None]
        log_r = (
            jnp.asarray(np.log(w), flat.dtype)[None]
            - jnp.sum(offset**2, -1) / (2 * c)
            - flat.shape[1] / 2 * jnp.log(c)
        )
        r = jax.nn.softmax(log_r, axis=1)
        within = (
            jnp.asarray(m, flat.dtype)[None]
            + (jnp.sqrt(alpha_bar_t) * variance / c)[..., None] * offset
        )
        return _pair(x_t, jnp.sum(r[..., None] * within, axis=1), alpha_bar, t)

    return carry(denoise, alpha_bar)


def empirical_oracle(data: Images, alpha_bar: Numbers, *, chunk_size: Integer = 256) -> Denoiser:
    """The optimal Denoiser of a data set: what a network would learn if it learned all of it by heart.

    Equation: x̂_0 = Σ_n r_n x_n,  r_n ∝ exp(−‖x_t − √ᾱ_t x_n‖²/(2 (1 − ᾱ_t))), a softmax over all images, summed in chunks with a
    running maximum. Memory: the data and one array (B, chunk_size, D).

    Args:
        data: images (N, H, W, C) in [−1, 1], or (N, D).
        alpha_bar: ᾱ_0 … ᾱ_T, shape (T+1,).
        chunk_size: images at a time.

    Returns:
        A Denoiser.

    Raises:
        ValueError: no data, or a chunk size below 1.

    >>> denoise = empirical_oracle(jnp.array([[-1.0], [1.0]]), [1.0, 0.9999])
    >>> denoise(jnp.array([[0.9]]), jnp.array([1])).x_0.tolist()
    [[1.0]]

    Source: arXiv:2010.02502, Eq. 4, and Bayes' rule; Karras et al., arXiv:2206.00364, appendix B.3.
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
        flat = x_t.reshape(x_t.shape[0], -1)
        alpha_bar_t = jnp.asarray(alpha_bar)[t][:, None]

        def add(carry, inputs):
            top, total, weighted = carry
            images, here = inputs
            # Differences, not products: the squares of far images would swallow the digits that near ones differ in.
            offset = flat[:, None] - jnp.sqrt(alpha_bar_t)[..., None] * images[None]
            log_r = jnp.where(
                here[None], -jnp.sum(offset**2, -1) / (2 * (1 - alpha_bar_t)), -jnp.inf
            )
            new_top = jnp.maximum(top, jnp.max(log_r, axis=1))
            old, r = jnp.exp(top - new_top), jnp.exp(log_r - new_top[:, None])
            return (
                new_top,
                old * total + jnp.sum(r, axis=1),
                old[:, None] * weighted + _matmul(r, images),
            ), None

        start = (
            jnp.full(flat.shape[:1], -jnp.inf, flat.dtype),
            jnp.zeros(flat.shape[:1], flat.dtype),
            jnp.zeros_like(flat),
        )
        inputs = (jnp.asarray(chunks, flat.dtype), jnp.asarray(present))
        (_, total, weighted), _ = jax.lax.scan(add, start, inputs)
        return _pair(x_t, weighted / total[:, None], alpha_bar, t)

    return carry(denoise, alpha_bar)


def propagate_gaussian(
    mean: Numbers, covariance: Numbers, alpha_bar: Numbers, table: StepTable
) -> Moments:
    """The exact distribution of the sampler's output with `gaussian_oracle`, from x_T ~ N(0, I): no network, no sampling error.

    Equation: (4) for every row of the table.

    Args:
        mean: μ of the data, shape (D,) or that of an image.
        covariance: Σ of the data, shape (D, D).
        alpha_bar: ᾱ_0 … ᾱ_T that the oracle knows, shape (T+1,).
        table: the steps, leaves (S,).

    Returns:
        Moments(mean (D,), covariance (D, D)), float64.

    Raises:
        ValueError: a covariance that is not (D, D), symmetric and positive semi-definite.

    >>> from ddim_jax import alpha_bars, eta, linear_betas, step_table, uniform_timesteps
    >>> alpha_bar = alpha_bars(linear_betas(1000))
    >>> table = step_table(alpha_bar, uniform_timesteps(1000, 1000), eta(1.0))
    >>> propagate_gaussian([0.0], [[1.0]], alpha_bar, table).covariance.round(3).tolist()  # for N(0, 1) data
    [[0.991]]

    Source: arXiv:2010.02502, Eq. 12.
    """
    mu, eigenvalues, vectors = _decompose(mean, covariance)
    center = mu @ vectors
    m, variance = np.zeros_like(center), np.ones_like(center)
    active = np.asarray(table.active)
    columns = (
        np.asarray(leaf)[active] for leaf in (table.t, table.alpha_bar_s, table.sigma, table.noise)
    )
    for t, a_s, sigma, noise in zip(*columns, strict=True):
        a_t, a_s = np.asarray(alpha_bar, np.float64)[t], np.float64(a_s)
        c = a_t * eigenvalues + 1 - a_t
        direction = np.sqrt(max(1 - a_s - np.float64(sigma) ** 2, 0.0))
        g = (np.sqrt(a_s * a_t) * eigenvalues + direction * np.sqrt(1 - a_t)) / c
        m = np.sqrt(a_s) * center + g * (m - np.sqrt(a_t) * center)
        variance = g**2 * variance + np.float64(noise) ** 2
    return Moments(vectors @ m, (vectors * variance) @ vectors.T)


def wasserstein2_gaussian(
    mean_a: Numbers, cov_a: Numbers, mean_b: Numbers, cov_b: Numbers
) -> tuple[float, float]:
    """The squared 2-Wasserstein distance of two Gaussians, its two parts apart.

    Equation: ‖μ_a − μ_b‖²  and  tr(Σ_a + Σ_b − 2 (Σ_a^½ Σ_b Σ_a^½)^½).

    Args:
        mean_a: shape (D,) or that of an image.
        cov_a: shape (D, D), positive semi-definite.
        mean_b: likewise.
        cov_b: likewise.

    Returns:
        (squared distance of the means, squared distance of the covariances), both ≥ 0; W2² is their sum.

    Raises:
        ValueError: shapes that do not fit.

    >>> wasserstein2_gaussian([0.0], [[4.0]], [3.0], [[1.0]])
    (9.0, 1.0)

    Source: Dowson and Landau 1982.
    """
    (mu_a, values, vectors), (mu_b, _, _) = _decompose_both(mean_a, cov_a, mean_b, cov_b)
    a, b = np.asarray(cov_a, np.float64), np.asarray(cov_b, np.float64)
    root = (vectors * np.sqrt(values)) @ vectors.T
    cross = np.sqrt(np.clip(np.linalg.eigvalsh(root @ b @ root), 0, None)).sum()
    return float(np.sum((mu_a - mu_b) ** 2)), float(max(np.trace(a) + np.trace(b) - 2 * cross, 0))


def kl_gaussian(mean_a: Numbers, cov_a: Numbers, mean_b: Numbers, cov_b: Numbers) -> float:
    """The Kullback–Leibler divergence KL(a ‖ b) of two Gaussians, in nats.

    Equation: ½ (tr(Σ_b⁻¹ Σ_a) + (μ_b − μ_a)ᵀ Σ_b⁻¹ (μ_b − μ_a) − D + ln det Σ_b − ln det Σ_a).

    Args:
        mean_a: shape (D,) or that of an image.
        cov_a: shape (D, D), positive semi-definite.
        mean_b: likewise.
        cov_b: likewise.

    Returns:
        The divergence, ≥ 0; infinite where either covariance is singular (a pixel that never changes, say).

    Raises:
        ValueError: shapes that do not fit.

    >>> kl_gaussian([1.0], [[1.0]], [0.0], [[1.0]])
    0.5

    Source: Cover and Thomas, Elements of Information Theory, chapter 8.
    """
    (mu_a, values_a, _), (mu_b, values_b, vectors_b) = _decompose_both(mean_a, cov_a, mean_b, cov_b)
    if _singular(values_a) or _singular(values_b):
        return float("inf")
    inverse = (vectors_b / values_b) @ vectors_b.T
    offset = mu_b - mu_a
    trace = np.sum(inverse * np.asarray(cov_a, np.float64))
    return float(
        max(
            0.5
            * (
                trace
                + offset @ inverse @ offset
                - len(mu_a)
                + np.log(values_b).sum()
                - np.log(values_a).sum()
            ),
            0,
        )
    )


def _singular(values: np.ndarray) -> bool:
    return bool(values.min() <= values.max() * len(values) * np.finfo(np.float64).eps)


def _decompose(mean: Numbers, covariance: Numbers) -> _Parts:
    """μ flattened, and the eigenvalues and eigenvectors of Σ, in float64."""
    mu, sigma = np.asarray(mean, np.float64).ravel(), np.asarray(covariance, np.float64)
    if sigma.shape != (len(mu), len(mu)):
        raise ValueError(
            f"covariance has shape {sigma.shape} for a mean of {len(mu)} elements; it must be {(len(mu), len(mu))}."
        )
    scale = max(np.abs(sigma).max(), np.finfo(np.float64).tiny)
    values, vectors = np.linalg.eigh(sigma)
    if np.abs(sigma - sigma.T).max() > 1e-6 * scale or values.min() < -1e-6 * scale:
        raise ValueError(
            f"covariance must be symmetric with eigenvalues ≥ 0; its smallest is {values.min():.6g}."
        )
    return mu, np.clip(values, 0, None), vectors


def _decompose_both(
    mean_a: Numbers, cov_a: Numbers, mean_b: Numbers, cov_b: Numbers
) -> tuple[_Parts, _Parts]:
    a, b = _decompose(mean_a, cov_a), _decompose(mean_b, cov_b)
    if a[0].shape != b[0].shape:
        raise ValueError(
            f"the Gaussians have {len(a[0])} and {len(b[0])} dimensions; they must have as many."
        )
    return a, b


def _pair(x_t, x_0, alpha_bar: Numbers, t) -> Prediction:
    """(2), with ε̂ from x̂_0."""
    signal, noise = levels(alpha_bar, t, x_t)
    x_0 = x_0.reshape(x_t.shape)
    return Prediction(x_0, (x_t - signal * x_0) / noise)


def _matmul(a: Float[Array, "..."], b: Float[Array, "..."]) -> Float[Array, "..."]:
    return jnp.matmul(a, b, precision="highest")  # accelerators would multiply in TF32 or bfloat16
