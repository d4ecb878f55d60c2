"""Devices, their mesh, and the JAX settings that every entry point wants, in one place."""

import contextlib
import os
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec


def setup() -> None:
    """Configure JAX; the first thing of every entry point, before any array is made.

    On a host without an accelerator each core becomes a JAX device, so that a batch is split over them as over several
    GPUs: XLA then uses both cores better than one program with two threads does. Compiled programs are kept in the
    user's cache directory, outside any run. What the environment already says (XLA_FLAGS, JAX_NUM_CPU_DEVICES,
    JAX_COMPILATION_CACHE_DIR) stays.
    """
    settings: Any = jax.config
    split_already = "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
    if not split_already and settings.jax_num_cpu_devices < 1:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        with contextlib.suppress(RuntimeError):  # arrays were made before: the devices are what they are
            settings.update("jax_num_cpu_devices", cores)
    if settings.jax_compilation_cache_dir is None:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "ddim_jax" / "xla"
        settings.update("jax_compilation_cache_dir", str(cache))


def data_mesh(batch_size: int) -> Mesh:
    """A mesh with the axis `data` over as many devices as divide the batch evenly.

    >>> 12 % data_mesh(12).size
    0
    """
    devices = jax.devices()
    count = max(n for n in range(1, len(devices) + 1) if batch_size % n == 0)
    return Mesh(np.array(devices[:count]), ("data",), axis_types=(AxisType.Auto,))


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The first dimension split over the devices."""
    return NamedSharding(mesh, PartitionSpec("data"))


def replicated(mesh: Mesh) -> NamedSharding:
    """A copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def describe() -> str:
    """What the computation runs on, for a person.

    >>> describe().split()[0].isdigit()
    True
    """
    devices = jax.devices()
    return f"{len(devices)} × {devices[0].device_kind}"
