import pytest


@pytest.fixture(scope="module", autouse=True)
def _optimised(optimised):
    """Tolerances of a few roundings hold for what users run."""
