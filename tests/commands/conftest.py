import shutil

import pytest


@pytest.fixture
def copy_of_run(tiny_run, tmp_path):
    """A run to write into."""
    return shutil.copytree(tiny_run, tmp_path / "copy")


@pytest.fixture(scope="session")
def noisy_run(tiny_run):
    return tiny_run
