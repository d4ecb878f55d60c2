"""Devices and processes, their mesh, and the JAX settings that every entry point wants, in one place."""

import contextlib
import ctypes
import gc
import importlib.util
import os
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

_AXES = ("data", "fsdp")


def setup() -> None:
    """Configure JAX; the first thing of every entry point, before any array is made.

    On a host without an accelerator each core becomes a JAX device, so that a batch is split over them as over several
    GPUs: XLA then uses both cores better than one program with two threads does. Compiled programs are kept in the
    user's cache directory, outside any run. What the environment already says (XLA_FLAGS, JAX_NUM_CPU_DEVICES,
    JAX_COMPILATION_CACHE_DIR) stays. Under Slurm, on a TPU pod, or where JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and
    JAX_PROCESS_ID are set, the processes of the job find each other.

    Raises:
        ValueError: only some of these three variables, or values that make no sense.
    """
    settings: Any = jax.config
    split_already = "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
    if not split_already and settings.jax_num_cpu_devices < 1:
        cores = (
            len(os.sched_getaffinity(0))
            if hasattr(os, "sched_getaffinity")
            else os.cpu_count() or 1
        )
        with contextlib.suppress(
            RuntimeError
        ):  # arrays were made before: the devices are what they are
            settings.update("jax_num_cpu_devices", cores)
    if settings.jax_compilation_cache_dir is None:
        cache = (
            Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "ddim_jax" / "xla"
        )
        settings.update("jax_compilation_cache_dir", str(cache))
    # Small programs, too: a second start compiles nothing.
    settings.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    _keep_freed_memory()
    # Python looks for unreachable cycles of objects less often: with its own thresholds a start takes half a second more.
    gc.set_threshold(20_000, 20, 100)
    if not jax.distributed.is_initialized():
        _join_processes()


def _keep_freed_memory() -> None:
    """Let glibc's malloc keep what XLA frees after each call: a training step on a CPU else spends a sixth on page faults."""
    trim_threshold, mmap_max, arena_max = -1, -4, -8  # malloc.h
    with contextlib.suppress(OSError, AttributeError):  # another C library
        mallopt = ctypes.CDLL(None).mallopt
        for option, value in ((arena_max, 1), (mmap_max, 0), (trim_threshold, -1)):
            mallopt(option, value)


def _join_processes() -> None:
    """Start JAX's distributed runtime where this process is one of several."""
    names = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
    given = {name: os.environ[name] for name in names if os.environ.get(name)}
    if given:
        address, count, index = (given.get(name, "") for name in names)
        if not (
            address.rpartition(":")[2].isdigit()
            and count.isdigit()
            and index.isdigit()
            and int(index) < int(count)
        ):
            raise ValueError(
                f"the environment has {given}; set JAX_COORDINATOR_ADDRESS to host:port of the first process, JAX_NUM_PROCESSES "
                "to their number n and JAX_PROCESS_ID to one of 0 to n − 1, another in each process."
            )
        jax.distributed.initialize(address, int(count), int(index))
    elif int(os.environ.get("SLURM_STEP_NUM_TASKS") or 1) > 1:
        jax.distributed.initialize()
    elif importlib.util.find_spec("libtpu"):
        try:
            jax.distributed.initialize()
        except ValueError as error:  # what JAX says where it finds no cluster
            if "coordinator_address" not in str(error):
                raise


def make_mesh(batch_size: int, data: int = 0, fsdp: int = 1) -> Mesh:
    """The devices of all processes as a grid with the axes `data` and `fsdp`.

    A batch is split over both axes, the training state over `fsdp` only.

    Args:
        batch_size: images that the devices work on together, which must divide evenly.
        data: devices along `data`; 0: as many as there are and the batch divides into.
        fsdp: devices along `fsdp`.

    Returns:
        The mesh.

    Raises:
        ValueError: too few devices, a batch that does not divide, or devices of another process left without work.

    >>> 12 % make_mesh(12).size
    0
    """
    devices = jax.devices()
    options = [n for n in range(1, len(devices) // fsdp + 1) if batch_size % (n * fsdp) == 0]
    size = f"--mesh.data {data or 'any'} × --mesh.fsdp {fsdp}"
    if data * fsdp > len(devices) or fsdp > len(devices):
        raise ValueError(
            f"{size} needs more devices than the {describe()} that there are; choose smaller numbers."
        )
    if not options or (data and data not in options):
        raise ValueError(f"{size} does not divide a batch of {batch_size} evenly (its part, with --train.accumulate); "
                         f"choose a multiple of {max(data, 1) * fsdp}.")  # fmt: skip
    shape = (data or max(options), fsdp)
    if jax.process_count() > 1 and shape[0] * fsdp < len(devices):
        raise ValueError(
            f"{size} leaves {len(devices) - shape[0] * fsdp} of {describe()} idle with a batch of {batch_size}; "
            f"choose a batch that is a multiple of {len(devices)}, and a mesh of as many."
        )
    # In the order of the processes, so that each has one piece of the batch.
    return Mesh(
        np.array(devices[: shape[0] * fsdp]).reshape(shape), _AXES, axis_types=(AxisType.Auto,) * 2
    )


def batch_sharding(mesh: Mesh, axis: int = 0) -> NamedSharding:
    """One dimension, that of the images, split over all devices."""
    return NamedSharding(mesh, PartitionSpec(*[None] * axis, _AXES))


def replicated(mesh: Mesh) -> NamedSharding:
    """A copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def state_shardings(state: Any, mesh: Mesh) -> Any:
    """Where each array of a state lies: split over `fsdp` along its longest dimension that divides, else a copy everywhere.

    Args:
        state: a pytree of arrays, or of their shapes.
        mesh: from `make_mesh`.

    Returns:
        The same pytree of NamedSharding.

    >>> tuple(state_shardings({"kernel": np.ones((3, 3, 8, 16))}, make_mesh(1))["kernel"].spec)
    (None, None, None, 'fsdp')
    """
    parts = mesh.shape["fsdp"]

    def place(leaf: Any) -> NamedSharding:
        divisible = [axis for axis, length in enumerate(leaf.shape) if length % parts == 0]
        if not divisible:
            return replicated(mesh)
        longest = max(divisible, key=lambda axis: (leaf.shape[axis], axis))
        return NamedSharding(mesh, PartitionSpec(*[None] * longest, "fsdp"))

    return jax.tree.map(place, state)


def process_rows(batch_size: int) -> slice:
    """The rows of a batch that this process reads.

    >>> process_rows(12)
    slice(0, 12, None)
    """
    share = batch_size // jax.process_count()
    return slice(jax.process_index() * share, (jax.process_index() + 1) * share)


def to_global(local: Any, sharding: NamedSharding) -> Any:
    """The batch of which each process holds its rows, as arrays over all devices; the transfer goes on in the background."""
    return jax.tree.map(lambda leaf: jax.make_array_from_process_local_data(sharding, leaf), local)


def full_batch(count: int) -> int:
    """The batch size for that many images: of several processes every device must have a share.

    >>> full_batch(7)
    7
    """
    return (
        count if jax.process_count() == 1 else -(-count // jax.device_count()) * jax.device_count()
    )


def describe() -> str:
    """What the computation runs on, for a person.

    >>> describe().split()[0].isdigit()
    True
    """
    devices, processes = jax.devices(), jax.process_count()
    return f"{len(devices)} × {devices[0].device_kind}" + (
        f" in {processes} processes" if processes > 1 else ""
    )
