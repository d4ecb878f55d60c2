"""Fixtures. Shapes and types are checked at every call."""

import contextlib
import io
import os
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import jaxtyping

# Not the pytest plugin's hook: that imports NumPy before tests/__init__.py has set its threads.
jaxtyping.install_import_hook("ddim_jax", "beartype.beartype")

import jax  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402

ROOT = Path(__file__).parent.parent


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config):
    """The whole suite on a worker per core, at most 4; tests that are named start sooner alone."""
    option, worker = config.option, "PYTEST_XDIST_WORKER" in os.environ
    whole = config.args_source is config.ArgsSource.TESTPATHS and not option.keyword
    if worker or not whole or option.collectonly or option.usepdb:
        return
    if getattr(option, "numprocesses", 0) is None:  # xdist is there, and -n is not
        option.numprocesses, option.dist = min(os.cpu_count() or 1, 4), "worksteal"


@pytest.fixture
def optimised():
    """Programs compiled as users' are: for a claim on bits, or on the rounding of a network."""
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


@pytest.fixture(scope="session")
def command():
    """train.py or sample.py in this process: (name, *arguments) → (exit status, stdout, stderr)."""

    def call(name, *arguments):
        from ddim_jax import commands

        out, err = io.StringIO(), io.StringIO()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("sys.argv", [f"{name}.py", *map(str, arguments)])
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                try:
                    status = getattr(commands, name)()
                except SystemExit as exit:  # tyro's own refusals
                    status = exit.code
        return status, out.getvalue(), err.getvalue()

    return call


@pytest.fixture
def counted_steps(monkeypatch):
    """Training of which only what is around its steps is real."""
    from tests.training import count_steps

    monkeypatch.setattr("ddim_jax.training.loop.prepare_step", count_steps)


@pytest.fixture
def without_figures(monkeypatch):
    """Reports without figures, where these are not tested: they take seconds."""
    monkeypatch.setattr("ddim_jax.evaluation.report.draw_figures", lambda *_: {})


@pytest.fixture(scope="session")
def inception_file(tmp_path_factory):
    """A stand-in for Inception's weights."""
    from tests.model.by_rule import write_by_rule

    path = tmp_path_factory.mktemp("inception") / "by_rule.pth"
    write_by_rule(path)
    return path


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory):
    """A run directory at step 3: weights far from zero, so that its images are not mere noise."""
    return save_tiny_run(tmp_path_factory.mktemp("runs") / "tiny")


@pytest.fixture
def copy_of_run(tiny_run, tmp_path):
    """A run to write into."""
    return shutil.copytree(tiny_run, tmp_path / "copy")


def save_tiny_run(out, num_steps=1000):
    """Write the run of `tiny_run`, with T = num_steps."""
    from ddim_jax.config import presets, save_config
    from ddim_jax.model import build_unet
    from ddim_jax.training import initial_state, make_optimizer
    from ddim_jax.training.checkpoint import checkpoints, save_checkpoint

    def fill(leaf):
        return leaf + 0.05 * np.sin(np.arange(leaf.size, dtype=np.float32)).reshape(leaf.shape)

    config = tiny_config(presets()["digits"], out)
    config = replace(config, diffusion=replace(config.diffusion, num_steps=num_steps))
    params = jax.tree.map(fill, build_unet(config.model, config.seed)[1])
    state = jax.jit(partial(initial_state, optimizer=make_optimizer(config.train)))(params)
    with checkpoints(out, keep=1) as manager:
        save_checkpoint(manager, state._replace(step=np.int32(3)), config)
    save_config(config, out / "config.json")
    return out


def tiny_config(config, out, **settings):
    """A preset cut down to one level of four channels, three steps and one device."""
    model = {
        "channels": 4,
        "groups": 2,
        "multipliers": (1,),
        "blocks": 1,
        "attention_resolutions": (),
        "dropout": 0.0,
    }
    train = {
        "steps": 3,
        "warmup_steps": 1,
        "decay": "constant",  # a step is the same program for any number of steps
        "batch_size": 16,
        "sample_every": 0,
        "sample_images": 4,
        "sample_steps": 4,
        "evaluate_images": 0,
        "validate_images": 0,
        "checkpoint_every": 2,
        "log_every": 1,
    }
    return replace(
        config,
        out=str(out),
        model=replace(config.model, **model),
        train=replace(config.train, **train | settings),
        mesh=replace(config.mesh, data=1),
    )
