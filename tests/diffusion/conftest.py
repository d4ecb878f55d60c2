import numpy as np
import pytest


@pytest.fixture(scope="session")
def gaussian():
    """A mean of (2, 2, 1) images, and a covariance with correlations and one null direction."""
    root = np.random.default_rng(0).normal(size=(4, 3))
    return np.array([0.5, -0.3, 0.0, 0.2]), root @ root.T / 3
