import os
import subprocess
import sys

import jax
import numpy as np
import pytest

from ddim_jax import devices

PROGRAM = """
from ddim_jax import devices
devices.setup(); devices.setup()
import jax
print(jax.device_count(), jax.config.jax_compilation_cache_dir)
"""


def run(**environment):
    ours = {name for name in os.environ if name.startswith(("JAX_", "XLA_"))}
    clean = {name: os.environ[name] for name in os.environ.keys() - ours}
    command = [sys.executable, "-c", PROGRAM]
    return subprocess.check_output(command, env=clean | environment, text=True).split()


def test_each_core_becomes_a_device_and_programs_are_cached(tmp_path):
    count, cache = run(XDG_CACHE_HOME=str(tmp_path))
    assert int(count) == len(os.sched_getaffinity(0))
    assert cache == str(tmp_path / "ddim_jax" / "xla")


def test_the_environment_wins():
    flags = "--xla_force_host_platform_device_count=3"
    assert run(XLA_FLAGS=flags, JAX_COMPILATION_CACHE_DIR="/somewhere") == ["3", "/somewhere"]
    assert run(JAX_NUM_CPU_DEVICES="5")[0] == "5"


def test_setup_after_arrays_were_made_changes_nothing():
    devices.setup()
    assert jax.device_count() == 8


@pytest.mark.parametrize(
    ("batch", "data", "fsdp", "shape"),
    [
        (64, 0, 1, (8, 1)),
        (12, 0, 1, (6, 1)),
        (7, 0, 1, (7, 1)),
        (13, 0, 1, (1, 1)),
        (1, 0, 1, (1, 1)),
        (64, 0, 4, (2, 4)),
        (64, 2, 2, (2, 2)),
        (12, 0, 2, (3, 2)),
        (8, 0, 8, (1, 8)),
    ],
)
def test_the_mesh_divides_the_batch(batch, data, fsdp, shape):
    mesh = devices.make_mesh(batch, data, fsdp)
    assert tuple(mesh.shape.values()) == shape


@pytest.mark.parametrize(
    ("batch", "data", "fsdp", "message"),
    [
        (64, 0, 16, "--mesh.data any × --mesh.fsdp 16 needs more devices than 8 × cpu"),
        (64, 4, 4, "needs more devices"),
        (10, 3, 1, "--mesh.data 3 × --mesh.fsdp 1 does not divide a batch of 10"),
        (10, 0, 4, "choose a multiple of 4"),
    ],
)
def test_a_mesh_that_cannot_be(batch, data, fsdp, message):
    with pytest.raises(ValueError, match=message):
        devices.make_mesh(batch, data, fsdp)


def test_a_state_is_split_along_its_longest_dimension_that_divides():
    mesh = devices.make_mesh(8, 1, 8)
    shapes = {"kernel": (3, 3, 16, 32), "in": (3, 3, 3, 24), "bias": (3,), "step": ()}
    state = {name: np.zeros(shape) for name, shape in shapes.items()}
    places = devices.state_shardings(state, mesh)
    assert {name: tuple(place.spec) for name, place in places.items()} == {
        "kernel": (None, None, None, "fsdp"),
        "in": (None, None, None, "fsdp"),
        "bias": (),
        "step": (),
    }


JOB = {
    "JAX_COORDINATOR_ADDRESS": "node:1234",
    "JAX_NUM_PROCESSES": "2",
    "JAX_PROCESS_ID": "1",
}


@pytest.mark.parametrize(
    "environment",
    [
        {"JAX_COORDINATOR_ADDRESS": "localhost:1"},
        {"JAX_NUM_PROCESSES": "2"},
        JOB | {"JAX_COORDINATOR_ADDRESS": "localhost"},
        JOB | {"JAX_PROCESS_ID": "2"},
        JOB | {"JAX_NUM_PROCESSES": "²"},  # a digit that `int` does not read
    ],
)
def test_half_an_address_is_refused(monkeypatch, environment):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    message = r"the environment has .*set JAX_COORDINATOR_ADDRESS to host:port"
    with pytest.raises(ValueError, match=message):
        devices.setup()


@pytest.mark.parametrize(
    ("environment", "arguments"),
    [
        ({"SLURM_STEP_NUM_TASKS": "16"}, [()]),
        ({"SLURM_STEP_NUM_TASKS": "1"}, []),
        ({}, []),
        (JOB, [("node:1234", 2, 1)]),
    ],
)
def test_processes_join_where_there_are_several(monkeypatch, environment, arguments):
    for name in ("SLURM_STEP_NUM_TASKS", *JOB):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    calls = []

    def initialize(*given, shutdown_timeout_seconds):
        # One process writes results while the others wait for it.
        assert shutdown_timeout_seconds > 86_400
        calls.append(given)

    monkeypatch.setattr(jax.distributed, "initialize", initialize)
    devices.setup()
    assert calls == arguments


def test_on_a_tpu_host_without_a_pod_one_process_goes_on(monkeypatch):
    def initialize(**waiting):
        raise ValueError(message)

    monkeypatch.setattr(devices.importlib.util, "find_spec", lambda name: name == "libtpu")
    monkeypatch.setattr(jax.distributed, "initialize", initialize)
    message = "coordinator_address should be defined."
    devices.setup()
    message = "something else"
    with pytest.raises(ValueError, match="something else"):
        devices.setup()
