"""Learnable step tables: any parameters give a valid table.

    (1)  sigma = √(1−ᾱ_s) |sin u|,   so that sigma² ≤ 1 − ᾱ_s
    (2)  noise = √(1−ᾱ_s) |w| for s > 0, √(1−ᾱ_t) |w| in the last row; or noise = sigma for s > 0
    (3)  a_k = √ᾱ_s b_k,   e_k = √(1−ᾱ_t) c_k for 1 ≤ k ≤ the number of earlier steps,
         a_0 = −Σ a_k,   e_0 = −Σ e_k

τ is not learned: a network takes integer times, which have no gradient. Learned noise starts
above 0: where it is 0, the scan draws none, and it has no gradient.
"""

from collections.abc import Collection
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from .reverse import StepTable
from .types import Integer

PARTS = ("sigma", "noise", "correction")
_LEAST = 0.05  # of |sin u| and |w| at the start


class TableParameters(NamedTuple):
    """u, w (S,), and b, c (S, K−1) of (1) to (3); None for what is not learned."""

    u: Any = None
    w: Any = None
    b: Any = None
    c: Any = None


def table_parameters(table: StepTable, parts: Collection[str], order: Integer) -> TableParameters:
    """The parameters of a given table, with tiny σ and noise raised; `order` is K.

    >>> from ddim_jax import eta, step_table
    >>> table = step_table([1.0, 0.64, 0.36], [1, 2], eta(1.0))
    >>> found = table_parameters(table, ["sigma"], 1)
    >>> np.allclose(learned_table(table, found).sigma, table.sigma)
    True
    """
    unknown = set(parts) - set(PARTS)
    if unknown or not parts:
        raise ValueError(f"parts are {list(parts)}; choose one or more of {', '.join(PARTS)}.")
    K = int(order)
    if K < 1:
        raise ValueError(f"order is {order}; it must be at least 1.")
    below, above = _scales(table)
    u = w = b = c = None
    if "sigma" in parts:
        u = np.arcsin(np.clip(table.sigma / np.where(below > 0, below, 1), _LEAST, 1))
    if "noise" in parts:
        w = np.maximum(table.noise / np.where(table.s > 0, below, above), _LEAST)
    if "correction" in parts:
        a, e = (
            np.pad(kept, ((0, 0), (0, K - 1 - kept.shape[1])))
            for kept in (numbers[:, 1:K] for numbers in table[-2:])
        )
        b, c = a / np.sqrt(table.alpha_bar_s)[:, None], e / above[:, None]
    return TableParameters(u, w, b, c)


def learned_table(table: StepTable, parameters: TableParameters) -> StepTable:
    """The table with (1) to (3) for the learned parts; the parameters may be traced.

    >>> from ddim_jax import eta, step_table
    >>> table = step_table([1.0, 0.64, 0.36], [1, 2], eta(0.0))
    >>> learned_table(table, TableParameters(u=np.array([np.pi / 2, 0.0]))).sigma.round(3).tolist()
    [0.6, 0.0]
    """
    u, w, b, c = parameters
    # On the host, NumPy keeps the digits of float64.
    on_host = all(isinstance(leaf, np.ndarray) for leaf in parameters if leaf is not None)
    xp: Any = np if on_host else jnp
    below, above = _scales(table)
    if u is not None:
        sigma = below * xp.abs(xp.sin(u))
        table = table._replace(sigma=sigma, noise=xp.where(table.s > 0, sigma, table.noise))
    if w is not None:
        table = table._replace(noise=np.where(table.s > 0, below, above) * xp.abs(w))
    if b is not None:
        earlier = np.arange(len(table.t))[:, None] >= np.arange(1, b.shape[1] + 1)[None]
        scaled = (
            np.sqrt(table.alpha_bar_s)[:, None] * b * earlier,
            above[:, None] * c * earlier,
        )
        corrections = (
            xp.concatenate([-xp.sum(rest, axis=1, keepdims=True), rest], axis=1) for rest in scaled
        )
        table = StepTable(*table[:6], *corrections)
    return table


def _scales(table: StepTable) -> tuple[np.ndarray, np.ndarray]:
    """√(1 − ᾱ_s) and √(1 − ᾱ_t)."""
    return np.sqrt(1 - np.asarray(table.alpha_bar_s)), np.sqrt(1 - np.asarray(table.alpha_bar_t))
