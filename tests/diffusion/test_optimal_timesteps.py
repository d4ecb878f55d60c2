"""The τ of least cost, against exhaustive search."""

import itertools

import numpy as np
import pytest

from ddim_jax import (
    elbo_costs,
    eta,
    optimal_timesteps,
)
from ddim_jax.diffusion.timesteps import TIMESTEPS

MEAN = np.array([0.3, -0.2, 0.1])
COVARIANCE = np.array([[0.5, 0.2, 0.0], [0.2, 0.3, -0.1], [0.0, -0.1, 0.2]])


@pytest.mark.parametrize("T", [1, 5, 14])
def test_optimal_times_equal_exhaustive_search(T):
    rng = np.random.default_rng(T)
    cost = rng.exponential(size=(T + 1, T + 1))
    cost[rng.random(cost.shape) < 0.05] = np.inf

    def total(tau):
        return sum(cost[s, t] for s, t in zip([0, *tau], tau, strict=False))

    for S in range(1, T + 1):
        every = [(*inner, T) for inner in itertools.combinations(range(1, T), S - 1)]
        least = min(map(total, every))
        if least == np.inf:
            with pytest.raises(ValueError, match="infinite"):
                optimal_timesteps(cost, S)
        else:
            tau = optimal_timesteps(cost, S)
            assert len(tau) == S
            assert total(tau) == least


def test_optimal_times_cost_no_more_than_others(alpha_bar):
    values = np.linalg.eigvalsh(COVARIANCE)
    c = alpha_bar[1:, None] * values + 1 - alpha_bar[1:, None]
    errors = np.concatenate([[0], ((1 - alpha_bar[1:, None]) * values / c).sum(1)])
    cost = elbo_costs(alpha_bar, errors, 3)

    def total(tau):
        return cost[[0, *tau[:-1]], tau].sum()

    best = total(optimal_timesteps(cost, 10))
    rng = np.random.default_rng(0)
    for _ in range(1000):
        tau = np.append(np.sort(rng.choice(np.arange(1, 1000), 9, replace=False)), 1000)
        assert total(tau) >= best
    named = {name: total(choose(alpha_bar, 10)) for name, choose in TIMESTEPS.items()}
    assert all(best <= cost for cost in named.values())
    # As published: at few steps the gain over even spacing is large.
    assert named["linspace"] - best > 5


def test_costs_and_times_refuse_what_they_cannot_read(alpha_bar):
    with pytest.raises(ValueError, match=r"cost has shape \(3, 2\)"):
        optimal_timesteps(np.zeros((3, 2)), 1)
    with pytest.raises(ValueError, match="cost has NaN"):
        optimal_timesteps(np.full((3, 3), np.nan), 1)
    with pytest.raises(ValueError, match="S is 3 reverse steps; choose 1 to T = 2"):
        optimal_timesteps(np.zeros((3, 3)), 3)
    with pytest.raises(ValueError, match="x_0_errors are"):
        elbo_costs(alpha_bar, np.zeros(3), 1)
    assert np.isposinf(elbo_costs(alpha_bar, np.zeros(1001), 1, eta(0.0))[1:]).all()
