import os
import subprocess
import sys

import jax
import pytest

from ddim_jax import devices

PROGRAM = """
from ddim_jax import devices
devices.setup(); devices.setup()
import jax
print(jax.device_count(), jax.config.jax_compilation_cache_dir)
"""


def run(**environment):
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("JAX_", "XLA_"))}
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=clean | environment, check=True, capture_output=True, text=True)
    return done.stdout.split()


def test_each_core_becomes_a_device_and_programs_are_cached(tmp_path):
    count, cache = run(XDG_CACHE_HOME=str(tmp_path))
    assert int(count) == len(os.sched_getaffinity(0))
    assert cache == str(tmp_path / "ddim_jax" / "xla")


def test_the_environment_wins():
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=3", "JAX_COMPILATION_CACHE_DIR": "/somewhere"}
    assert run(**flags) == ["3", "/somewhere"]
    assert run(JAX_NUM_CPU_DEVICES="5", JAX_COMPILATION_CACHE_DIR="/somewhere")[0] == "5"


def test_setup_after_arrays_were_made_changes_nothing():
    devices.setup()
    assert jax.device_count() == 8


@pytest.mark.parametrize(("batch", "size"), [(64, 8), (12, 6), (7, 7), (13, 1), (1, 1)])
def test_the_mesh_divides_the_batch(batch, size):
    assert devices.data_mesh(batch).size == size
