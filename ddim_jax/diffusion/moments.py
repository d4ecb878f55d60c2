"""The sampler's exact output distribution for Gaussian data, and distances between Gaussians.

For x_0 ~ N(μ, Σ) the optimal denoiser is affine in x_t (`gaussian_oracle`). So are Eq. 12 and a
solver's correction, so the sampler's output is Gaussian: its mean and covariance follow from those
of x_T ~ N(0, I) step by step. All steps share the eigenvectors of Σ. With λ an eigenvalue:

    (1)  x̂_0 = μ + p (x_t − √ᾱ_t μ),   ε̂ = q (x_t − √ᾱ_t μ),
         p = √ᾱ_t λ/c,   q = √(1−ᾱ_t)/c,   c = ᾱ_t λ + 1 − ᾱ_t
    (2)  x_s = √ᾱ_s μ + Σ_k (g_k (x_{t_k} − √ᾱ_{t_k} μ) + a_k μ) + noise · z,
         g_k = a_k p_k + e_k q_k,   for k = 0 with √ᾱ_s p + √(1−ᾱ_s−sigma²) q more

The state is x_{t_0}, …, x_{t_{K−1}}, newest first. A step shifts it and puts x_s in front.
Means are (D,) or an image of D elements, covariances (D, D). Everything is NumPy float64.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float64

from .reverse import StepTable, stack_tables
from .types import Numbers

_Parts = tuple[np.ndarray, np.ndarray, np.ndarray]


class Moments(NamedTuple):
    """The mean and covariance of a Gaussian over flattened images."""

    mean: Float64[np.ndarray, " D"]
    covariance: Float64[np.ndarray, "D D"]


def propagate_gaussian(
    mean: Numbers, covariance: Numbers, alpha_bar: Numbers, table: StepTable
) -> Moments:
    """The exact moments of `sample` with `gaussian_oracle` and x_T ~ N(0, I): (2) for every row.

    >>> from ddim_jax import alpha_bars, eta, linear_betas, step_table, uniform_timesteps
    >>> alpha_bar = alpha_bars(linear_betas(1000))
    >>> table = step_table(alpha_bar, uniform_timesteps(1000, 1000), eta(1.0))
    >>> propagate_gaussian([0.0], [[1.0]], alpha_bar, table).covariance.round(3).tolist()
    [[0.991]]
    """
    mu, eigenvalues, vectors = decompose(mean, covariance)
    center, bars = mu @ vectors, np.asarray(alpha_bar, np.float64)
    # Stacked, both corrections have the same K.
    rows = StepTable(*(np.asarray(leaf[0], np.float64) for leaf in stack_tables([table])))
    order = rows.x_0_correction.shape[1]
    # The moments of the state in each eigendirection, and √ᾱ, p and q at its times.
    D, K = len(mu), max(order, 1)
    m, P = np.zeros((D, K)), np.zeros((D, K, K))
    P[:, 0, 0] = 1
    signal, p, q = np.zeros(K), np.zeros((D, K)), np.zeros((D, K))
    shift = np.eye(K, k=-1)
    for i in np.flatnonzero(rows.active):
        a_t, a_s = bars[int(rows.t[i])], rows.alpha_bar_s[i]
        c = a_t * eigenvalues + 1 - a_t
        signal, p, q = shift @ signal, p @ shift.T, q @ shift.T
        signal[0], p[:, 0], q[:, 0] = (
            np.sqrt(a_t),
            np.sqrt(a_t) * eigenvalues / c,
            np.sqrt(1 - a_t) / c,
        )
        direction = np.sqrt(max(1 - a_s - rows.sigma[i] ** 2, 0.0))
        a, e = rows.x_0_correction[i], rows.epsilon_correction[i]
        step = np.tile(shift, (D, 1, 1))
        step[:, 0, :order] = a * p[:, :order] + e * q[:, :order]
        step[:, 0, 0] += np.sqrt(a_s) * p[:, 0] + direction * q[:, 0]
        m = (step @ m[:, :, None])[:, :, 0]
        m[:, 0] += (np.sqrt(a_s) + a.sum() - step[:, 0] @ signal) * center
        P = step @ P @ step.swapaxes(1, 2)
        P[:, 0, 0] += rows.noise[i] ** 2
    return Moments(vectors @ m[:, 0], (vectors * P[:, 0, 0]) @ vectors.T)


def wasserstein2_gaussian(
    mean_a: Numbers, cov_a: Numbers, mean_b: Numbers, cov_b: Numbers
) -> tuple[float, float]:
    """W2² in its two parts, ‖μ_a − μ_b‖² and tr(Σ_a + Σ_b − 2 (Σ_a^½ Σ_b Σ_a^½)^½).

    Source: Dowson and Landau 1982.

    >>> wasserstein2_gaussian([0.0], [[4.0]], [3.0], [[1.0]])
    (9.0, 1.0)
    """
    (mu_a, values, vectors), (mu_b, _, _) = _decompose_both(mean_a, cov_a, mean_b, cov_b)
    a, b = np.asarray(cov_a, np.float64), np.asarray(cov_b, np.float64)
    root = (vectors * np.sqrt(values)) @ vectors.T
    cross = np.sqrt(np.clip(np.linalg.eigvalsh(root @ b @ root), 0, None)).sum()
    return float(np.sum((mu_a - mu_b) ** 2)), float(max(np.trace(a) + np.trace(b) - 2 * cross, 0))


def kl_gaussian(mean_a: Numbers, cov_a: Numbers, mean_b: Numbers, cov_b: Numbers) -> float:
    """KL(a ‖ b) = ½ (tr(Σ_b⁻¹ Σ_a) + (μ_b − μ_a)ᵀ Σ_b⁻¹ (μ_b − μ_a) − D + ln det Σ_b/det Σ_a).

    In nats; infinite if either covariance is singular (for example, a pixel never changes).

    >>> kl_gaussian([1.0], [[1.0]], [0.0], [[1.0]])
    0.5
    """
    (mu_a, values_a, _), (mu_b, values_b, vectors_b) = _decompose_both(mean_a, cov_a, mean_b, cov_b)
    if _singular(values_a) or _singular(values_b):
        return float("inf")
    inverse = (vectors_b / values_b) @ vectors_b.T
    offset = mu_b - mu_a
    trace = np.sum(inverse * np.asarray(cov_a, np.float64))
    log_det_a, log_det_b = np.log(values_a).sum(), np.log(values_b).sum()
    twice = trace + offset @ inverse @ offset - len(mu_a) + log_det_b - log_det_a
    return float(max(0.5 * twice, 0))


def decompose(mean: Numbers, covariance: Numbers) -> _Parts:
    """μ flattened, and the eigenvalues and eigenvectors of Σ; negative eigenvalues are refused."""
    mu, sigma = np.asarray(mean, np.float64).ravel(), np.asarray(covariance, np.float64)
    if sigma.shape != (len(mu), len(mu)):
        raise ValueError(
            f"covariance has shape {sigma.shape} for a mean of {len(mu)} elements; "
            f"it must be {(len(mu), len(mu))}."
        )
    scale = max(np.abs(sigma).max(), np.finfo(np.float64).tiny)
    values, vectors = np.linalg.eigh(sigma)
    if np.abs(sigma - sigma.T).max() > 1e-6 * scale or values.min() < -1e-6 * scale:
        raise ValueError(
            "covariance must be symmetric with eigenvalues ≥ 0; "
            f"its smallest is {values.min():.6g}."
        )
    return mu, np.clip(values, 0, None), vectors


def _decompose_both(
    mean_a: Numbers, cov_a: Numbers, mean_b: Numbers, cov_b: Numbers
) -> tuple[_Parts, _Parts]:
    a, b = decompose(mean_a, cov_a), decompose(mean_b, cov_b)
    if a[0].shape != b[0].shape:
        raise ValueError(
            f"the Gaussians have {len(a[0])} and {len(b[0])} dimensions; the numbers must be equal."
        )
    return a, b


def _singular(values: np.ndarray) -> bool:
    return bool(values.min() <= values.max() * len(values) * np.finfo(np.float64).eps)
