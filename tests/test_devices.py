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
    clean = {
        name: value for name, value in os.environ.items() if not name.startswith(("JAX_", "XLA_"))
    }
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env=clean | environment,
        check=True,
        capture_output=True,
        text=True,
    )
    return done.stdout.split()


def test_each_core_becomes_a_device_and_programs_are_cached(tmp_path):
    count, cache = run(XDG_CACHE_HOME=str(tmp_path))
    assert int(count) == len(os.sched_getaffinity(0))
    assert cache == str(tmp_path / "ddim_jax" / "xla")


def test_the_environment_wins():
    flags = {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=3",
        "JAX_COMPILATION_CACHE_DIR": "/somewhere",
    }
    assert run(**flags) == ["3", "/somewhere"]
    assert run(JAX_NUM_CPU_DEVICES="5", JAX_COMPILATION_CACHE_DIR="/somewhere")[0] == "5"


def test_setup_after_arrays_were_made_changes_nothing():
    devices.setup()
    assert jax.device_count() == 8


@pytest.mark.parametrize(
    ("batch", "data", "fsdp", "shape"),
    [(64, 0, 1, (8, 1)), (12, 0, 1, (6, 1)), (7, 0, 1, (7, 1)), (13, 0, 1, (1, 1)), (1, 0, 1, (1, 1)), (64, 0, 4, (2, 4)),
     (64, 2, 2, (2, 2)), (12, 0, 2, (3, 2)), (8, 0, 8, (1, 8))],
)  # fmt: skip
def test_the_mesh_divides_the_batch(batch, data, fsdp, shape):
    mesh = devices.make_mesh(batch, data, fsdp)
    assert tuple(mesh.shape.values()) == shape


@pytest.mark.parametrize(
    ("batch", "data", "fsdp", "message"),
    [(64, 0, 16, "--mesh.data any × --mesh.fsdp 16 needs more devices than the 8 × cpu"), (64, 4, 4, "needs more devices"),
     (10, 3, 1, "--mesh.data 3 × --mesh.fsdp 1 does not divide a batch of 10"), (10, 0, 4, "choose a multiple of 4")],
)  # fmt: skip
def test_a_mesh_that_cannot_be(batch, data, fsdp, message):
    with pytest.raises(ValueError, match=message):
        devices.make_mesh(batch, data, fsdp)


def test_a_state_is_split_along_its_longest_dimension_that_divides():
    mesh = devices.make_mesh(8, 1, 8)
    state = {
        "kernel": np.zeros((3, 3, 16, 32)),
        "in": np.zeros((3, 3, 3, 24)),
        "bias": np.zeros(3),
        "step": np.zeros(()),
    }
    specs = {
        name: tuple(place.spec) for name, place in devices.state_shardings(state, mesh).items()
    }
    assert specs == {
        "kernel": (None, None, None, "fsdp"),
        "in": (None, None, None, "fsdp"),
        "bias": (),
        "step": (),
    }


@pytest.mark.parametrize(
    "environment",
    [{"JAX_COORDINATOR_ADDRESS": "localhost:1"}, {"JAX_NUM_PROCESSES": "2"},
     {"JAX_COORDINATOR_ADDRESS": "localhost", "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "0"},
     {"JAX_COORDINATOR_ADDRESS": "localhost:1", "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "2"}],
)  # fmt: skip
def test_half_an_address_is_refused(monkeypatch, environment):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(
        ValueError, match=r"the environment has .*set JAX_COORDINATOR_ADDRESS to host:port"
    ):
        devices.setup()


@pytest.mark.parametrize(
    ("environment", "arguments"),
    [({"SLURM_STEP_NUM_TASKS": "16"}, [()]), ({"SLURM_STEP_NUM_TASKS": "1"}, []), ({}, []),
     ({"JAX_COORDINATOR_ADDRESS": "node:1234", "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "1"}, [("node:1234", 2, 1)])],
)  # fmt: skip
def test_processes_join_where_there_are_several(monkeypatch, environment, arguments):
    for name in (
        "SLURM_STEP_NUM_TASKS",
        "JAX_COORDINATOR_ADDRESS",
        "JAX_NUM_PROCESSES",
        "JAX_PROCESS_ID",
    ):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    calls = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda *given: calls.append(given))
    devices.setup()
    assert calls == arguments


def test_on_a_tpu_host_without_a_pod_one_process_goes_on(monkeypatch):
    def initialize():
        raise ValueError(message)

    monkeypatch.setattr(devices.importlib.util, "find_spec", lambda name: name == "libtpu")
    monkeypatch.setattr(jax.distributed, "initialize", initialize)
    message = "coordinator_address should be defined."
    devices.setup()
    message = "something else"
    with pytest.raises(ValueError, match="something else"):
        devices.setup()
