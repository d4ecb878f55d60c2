"""The sampler as a loop in NumPy: Eq. 12, then the solver's multiples of all predictions so far."""

import numpy as np


def loop(table, x, predict, known=(), noise=None):
    """x after all rows; `predict(i, x)` gives (x̂_0, ε̂); `known` are earlier ones, newest first."""
    known = list(known)
    for i in np.flatnonzero(np.asarray(table.t) > np.asarray(table.s)):
        known.insert(0, predict(i, x))
        x_0, epsilon = known[0]
        a_s = table.alpha_bar_s[i]
        x = np.sqrt(a_s) * x_0 + np.sqrt(max(1 - a_s - table.sigma[i] ** 2, 0)) * epsilon
        if noise is not None:
            x = x + table.noise[i] * noise[i]
        for a, (x_0, _) in zip(table.x_0_correction[i], known, strict=False):
            x = x + a * x_0
        for e, (_, epsilon) in zip(table.epsilon_correction[i], known, strict=False):
            x = x + e * epsilon
    return x
