"""The sampler's exact output distribution for Gaussian data, and distances between Gaussians.

For x_0 ~ N(μ, Σ) the optimal denoiser is affine in x_t (`gaussian_oracle`). So are Eq. 12 and a
solver's correction. Hence the sampler's output is Gaussian, and its mean and covariance follow step
by step from those of x_T ~ N(0, I). All steps share the eigenvectors of Σ. For an eigenvalue λ:

    (1)  x̂_0 = μ + p (x_t − √ᾱ_t μ),   ε̂ = q (x_t − √ᾱ_t μ),
         p = √ᾱ_t λ/c,   q = √(1−ᾱ_t)/c,   c = ᾱ_t λ + 1 − ᾱ_t
    (2)  x_s = √ᾱ_s μ + Σ_k (g_k (x_{t_k} − √ᾱ_{t_k} μ) + a_k μ) + noise · z,
         g_k = a_k p_k + e_k q_k,   and for k = 0 also + √ᾱ_s p + √(1−ᾱ_s−sigma²) q

The state is x_{t_0}, …, x_{t_{K−1}}, newest first. A step shifts it and puts x_s in front.
Means are (D,) or an image of D elements, covariances (D, D). Everything is NumPy float64.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float64

from .forward import direction_scale
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
    center = mu @ vectors
    # Stacked, both corrections have the same K.
    rows = StepTable(*(np.asarray(leaf[0], np.float64) for leaf in stack_tables([table])))
    bars = np.asarray(alpha_bar, np.float64)[rows.t.astype(int)]
    root = np.sqrt(np.maximum(1 - rows.alpha_bar_s - rows.sigma**2, 0))
    state = _start(np, len(mu), max(1, rows.x_0_correction.shape[1]))
    for i in np.flatnonzero(rows.active):
        row = StepTable(*(leaf[i] for leaf in rows))._replace(alpha_bar_t=bars[i])
        state = _advance(np, state, row, root[i], eigenvalues, center)
    m, P = state[0][:, 0], state[1][:, 0, 0]
    return Moments(vectors @ m, (vectors * P) @ vectors.T)


class GaussianErrors(NamedTuple):
    """W2² of the sampler's output to the data in its two parts, and KL(output ‖ data) in nats."""

    mean: Any
    covariance: Any
    kl: Any


def gaussian_errors(
    mean: Numbers, covariance: Numbers, alpha_bar: Numbers
) -> Callable[[StepTable], GaussianErrors]:
    """A function of a table: how far `propagate_gaussian` is from the data.

    The table may be traced, and the result has gradients with respect to σ, noise and corrections.
    The table may not have repeats, and both corrections have the same K. Output and data share
    their eigenvectors, so W2² is the sum of (m − μ)² + (√P − √λ)² over them.

    >>> from ddim_jax import eta, step_table
    >>> errors = gaussian_errors([0.0], [[1.0]], [1.0, 0.64])
    >>> round(float(errors(step_table([1.0, 0.64], [1], eta(0.0))).covariance), 4)  # (0.8 − 1)²
    0.04
    """
    mu, eigenvalues, vectors = decompose(mean, covariance)
    # A copy: JAX may remember the array as it was once converted to float32.
    center, bars = mu @ vectors, np.array(alpha_bar, np.float64)

    def errors(table: StepTable) -> GaussianErrors:
        K = max(1, *(leaf.shape[1] for leaf in table[-2:]))
        rows = StepTable(*map(jnp.asarray, table))
        rows = rows._replace(alpha_bar_t=jnp.asarray(bars)[rows.t])
        root = direction_scale(rows.alpha_bar_s, rows.sigma)
        values, data = (jnp.asarray(part, rows.noise.dtype) for part in (eigenvalues, center))

        def step(state, inputs):
            row, below = inputs
            return _advance(jnp, state, row, below, values, data), None

        start = jax.tree.map(lambda leaf: jnp.asarray(leaf, data.dtype), _start(np, len(mu), K))
        (m, P, *_), _ = jax.lax.scan(step, start, (rows, root))
        offset, variance = m[:, 0] - data, P[:, 0, 0]
        spread = jnp.sum((jnp.sqrt(variance) - jnp.sqrt(values)) ** 2)
        ratio = variance / values
        kl = 0.5 * jnp.sum(ratio - 1 - jnp.log(ratio) + offset**2 / values)
        return GaussianErrors(jnp.sum(offset**2), spread, kl)

    return errors


def _start(xp: Any, D: int, K: int) -> tuple[Any, ...]:
    """In each eigendirection the moments of the state (x_{t_k})_k, and √ᾱ, p and q at its times."""
    P = xp.zeros((D, K, K))
    P[:, 0, 0] = 1
    return xp.zeros((D, K)), P, xp.zeros(K), xp.zeros((D, K)), xp.zeros((D, K))


def _advance(xp: Any, state: Any, row: StepTable, root: Any, values: Any, center: Any) -> Any:
    """One step of (2), in NumPy or JAX; root is √(1 − ᾱ_s − sigma²)."""
    m, P, signal, p, q = state
    a_t, a_s, K = row.alpha_bar_t, row.alpha_bar_s, len(signal)
    c = a_t * values + 1 - a_t

    def newest(value, others):
        return xp.concatenate([value[..., None], others[..., : K - 1]], axis=-1)

    signal = newest(xp.sqrt(a_t), signal)
    p, q = newest(xp.sqrt(a_t) * values / c, p), newest(xp.sqrt(1 - a_t) / c, q)
    a, e = (xp.zeros(K) if not leaf.shape[0] else leaf for leaf in row[-2:])
    gain = a[None] * p + e[None] * q
    gain = newest(gain[:, 0] + xp.sqrt(a_s) * p[:, 0] + root * q[:, 0], gain[:, 1:])
    mean = xp.sum(gain * m, axis=1) + (xp.sqrt(a_s) + xp.sum(a) - gain @ signal) * center
    across = xp.einsum("dk,dkj->dj", gain, P)
    variance = xp.sum(across * gain, axis=1) + row.noise**2
    top = newest(variance, across)
    rest = xp.concatenate([across[:, : K - 1, None], P[:, : K - 1, : K - 1]], axis=2)
    return newest(mean, m), xp.concatenate([top[:, None], rest], axis=1), signal, p, q


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
