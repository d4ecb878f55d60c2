"""The suite runs strict, on 8 simulated CPU devices, and shares compiled programs between processes."""

import os
import tempfile

_cache = tempfile.mkdtemp(prefix="ddim_jax_tests_")
# In the environment also for the commands that tests start.
os.environ["JAX_COMPILATION_CACHE_DIR"] = _cache
os.environ["JAX_PLATFORMS"] = "cpu"
# Most of the suite's time is XLA's compilation of programs that run a few times. Where the rounding of the program that users
# run is tested, the fixture `optimised` brings its optimisations back.
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
# Eigenvalues of many small matrices, 20 to 40 times faster without threads that wait for each other. NumPy reads this when it
# is imported, which is why the import hook is not the pytest plugin's: that imports NumPy before any conftest.
os.environ["OPENBLAS_NUM_THREADS"] = "1"

import shutil  # noqa: E402
from pathlib import Path  # noqa: E402

import jaxtyping  # noqa: E402

jaxtyping.install_import_hook(
    "ddim_jax", "beartype.beartype"
)  # shapes and types are checked at every call

import jax  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")

ROOT = Path(__file__).parent.parent


def pytest_sessionfinish():
    shutil.rmtree(_cache, ignore_errors=True)


@pytest.fixture(scope="module")
def optimised():
    """The programs of a module compiled as users' are."""
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)


@pytest.fixture
def float64():
    """Float64 in JAX, where a property should hold to more digits than float32 has."""
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="session")
def alpha_bar():
    """ᾱ of DDPM's linear schedule, computed without the package."""
    return np.concatenate([[1.0], np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))])


@pytest.fixture
def command(monkeypatch, capsys):
    """Call train.py or sample.py in this process: (name, *arguments) → (exit status, standard output, standard error)."""

    def call(name, *arguments):
        monkeypatch.syspath_prepend(str(ROOT))
        monkeypatch.setattr("sys.argv", [f"{name}.py", *map(str, arguments)])
        from ddim_jax.cli import run

        try:
            status = run(__import__(name).main)
        except SystemExit as exit:  # tyro's own refusals
            status = exit.code
        out, err = capsys.readouterr()
        return status, out, err

    return call


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory):
    """A run directory with a trained tiny model of digits."""
    from rich.console import Console

    from ddim_jax.config import presets
    from ddim_jax.training import train

    out = tmp_path_factory.mktemp("runs") / "tiny"
    config = tiny_config(presets()["digits"], out)
    with open(os.devnull, "w") as null:
        train(config, Console(file=null))
    return out


def tiny_config(config, out, **settings):
    from dataclasses import replace

    model = replace(
        config.model, channels=4, groups=2, multipliers=(1,), blocks=1, attention_resolutions=()
    )
    values = {"steps": 3, "warmup_steps": 1, "batch_size": 16, "sample_images": 4, "sample_steps": 4, "sample_every": 0,
              "evaluate_images": 0, "validate_images": 0, "checkpoint_every": 2, "log_every": 1, **settings}  # fmt: skip
    return replace(config, out=str(out), model=model, train=replace(config.train, **values))
