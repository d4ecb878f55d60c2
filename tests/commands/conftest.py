import pytest


@pytest.fixture(scope="session")
def noisy_run(tiny_run):
    return tiny_run
