"""What the tests of the commands share."""

import pytest

from ddim_jax.evaluation.report import write_report
from ddim_jax.evaluation.source import oracle_source
from tests.evaluation.example import example


@pytest.fixture(scope="session")
def gaussian():
    """The oracle of Gaussian data, whose outputs are known exactly."""
    return oracle_source("gaussian")


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """(results, sprites, the directory of their report)."""
    results, sprites = example(
        steps=(5, 10), sigmas={"eta=0": 0.0, "eta=1": 1.0, "sigma-hat": 1.6}, images=10
    )
    directory = tmp_path_factory.mktemp("report") / "ablations" / "new"
    write_report(results, sprites, directory)
    return results, sprites, directory
