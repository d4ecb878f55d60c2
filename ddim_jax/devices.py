"""Devices, processes and their mesh, and JAX's settings at start-up."""

import contextlib
import importlib.metadata
import importlib.util
import os
import warnings
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from .files import file_sha256
from .processes import watch
from .settings import is_number

_AXES = ("data", "fsdp")
_PATIENCE = 7 * 86_400  # seconds that processes wait at the end for the one that writes results


def setup() -> None:
    """Configure JAX; every entry point calls this first, before any array is made.

    Without an accelerator each core becomes a JAX device, and a batch is split over cores as over
    GPUs. XLA uses the cores better this way than as threads of one program. Compiled programs are
    kept in the user's cache directory. Settings in the environment (XLA_FLAGS, JAX_NUM_CPU_DEVICES,
    JAX_COMPILATION_CACHE_DIR) take precedence. Under Slurm, on a TPU pod, or if the variables
    JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID are set, the processes of the job
    connect to each other. Setting only some of the three raises a ValueError.
    """
    settings: Any = jax.config
    split_already = "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
    if not split_already and settings.jax_num_cpu_devices < 1:
        affinity = getattr(os, "sched_getaffinity", None)
        cores = len(affinity(0)) if affinity else os.cpu_count() or 1
        with contextlib.suppress(RuntimeError):  # too late: arrays already exist
            settings.update("jax_num_cpu_devices", cores)
    if settings.jax_compilation_cache_dir is None:
        caches = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
        settings.update("jax_compilation_cache_dir", str(caches / "ddim_jax" / "xla"))
    # A full disk costs time only.
    warnings.filterwarnings("ignore", "Error (reading|writing) persistent compilation cache")
    # An image of a seed is the same whatever the environment says of these.
    settings.update("jax_threefry_partitionable", True)
    settings.update("jax_enable_x64", False)
    # Cache small programs too, so that a second start compiles nothing.
    settings.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    if not jax.distributed.is_initialized():
        _join_processes()
        if jax.distributed.is_initialized():
            watch()


def _join_processes() -> None:
    """Start JAX's distributed runtime if this process is one of several."""
    names = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
    given = {name: os.environ[name] for name in names if os.environ.get(name)}
    if given:
        address, count, index = (given.get(name, "") for name in names)
        numbers = all(map(is_number, (address.rpartition(":")[2], count, index)))
        if not (numbers and int(index) < int(count)):
            raise ValueError(
                f"the environment has {given}; set JAX_COORDINATOR_ADDRESS to host:port of the "
                "first process, JAX_NUM_PROCESSES to their number n, and JAX_PROCESS_ID to one of "
                "0 to n − 1, a different one in each process."
            )
        jax.distributed.initialize(
            address, int(count), int(index), shutdown_timeout_seconds=_PATIENCE
        )
    elif int(os.environ.get("SLURM_STEP_NUM_TASKS") or 1) > 1:
        jax.distributed.initialize(shutdown_timeout_seconds=_PATIENCE)
    elif importlib.util.find_spec("libtpu"):
        try:
            jax.distributed.initialize(shutdown_timeout_seconds=_PATIENCE)
        except ValueError as error:  # what JAX raises if it finds no cluster
            if "coordinator_address" not in str(error):
                raise


def make_mesh(batch_size: int, data: int = 0, fsdp: int = 1) -> Mesh:
    """The devices of all processes as a grid with the axes `data` and `fsdp`.

    A batch is split over both axes, the training state over `fsdp` only. data = 0 takes as many
    devices along `data` as divide the batch. Too few devices, a batch that does not divide evenly,
    or idle devices when there are several processes raise a ValueError.

    >>> 12 % make_mesh(12).size
    0
    """
    devices = jax.devices()
    most = len(devices) // fsdp
    options = [n for n in range(1, most + 1) if batch_size % (n * fsdp) == 0]
    size = f"--mesh.data {data or 'any'} × --mesh.fsdp {fsdp}"
    if data * fsdp > len(devices) or fsdp > len(devices):
        raise ValueError(f"{size} needs more devices than {describe()}; choose smaller numbers.")
    if not options or (data and data not in options):
        raise ValueError(
            f"{size} does not divide a batch of {batch_size} evenly (or its part, with "
            f"--train.accumulate); choose a multiple of {max(data, 1) * fsdp}."
        )
    shape = (data or max(options), fsdp)
    if jax.process_count() > 1 and shape[0] * fsdp < len(devices):
        raise ValueError(
            f"{size} leaves {len(devices) - shape[0] * fsdp} of {describe()} idle with a batch of "
            f"{batch_size}; choose a batch that is a multiple of {len(devices)}, and use all."
        )
    # In the order of the processes, so that each has one contiguous piece of the batch.
    grid = np.array(devices[: shape[0] * fsdp]).reshape(shape)
    return Mesh(grid, _AXES, axis_types=(AxisType.Auto,) * 2)


def local_mesh() -> Mesh:
    """Only the devices of this process, for work that the processes share in another way."""
    devices = np.array(jax.local_devices()).reshape(-1, 1)
    return Mesh(devices, _AXES, axis_types=(AxisType.Auto,) * 2)


def batch_sharding(mesh: Mesh, axis: int = 0) -> NamedSharding:
    """The axis of the images, split over all devices."""
    return NamedSharding(mesh, PartitionSpec(*[None] * axis, _AXES))


def replicated(mesh: Mesh) -> NamedSharding:
    """A copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def state_shardings(state: Any, mesh: Mesh) -> Any:
    """Where each array of a state is placed, as a pytree of NamedSharding.

    An array is split over `fsdp` along its longest dimension that divides evenly; without one, it
    is copied to every device. Shapes alone are enough.

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
    """The global batch from each process's own rows; the transfer is asynchronous."""

    def place(leaf: Any) -> Any:
        return jax.make_array_from_process_local_data(sharding, leaf)

    return jax.tree.map(place, local)


def full_batch(count: int) -> int:
    """The batch size for a number of images: with several processes each device needs a share.

    >>> full_batch(7)
    7
    """
    devices = jax.device_count()
    return count if jax.process_count() == 1 else -(-count // devices) * devices


def surroundings() -> tuple[Any, ...]:
    """What can change the bits of an image, apart from a command's flags and the model.

    Versions, the sources of this package that draw, the devices, and settings of JAX and XLA.
    """
    package = Path(__file__).parent
    drawing = ("sampler.py", "images.py", "diffusion/*.py", "model/*.py")
    sources = sorted(path for pattern in drawing for path in package.glob(pattern))
    names = (
        "enable_x64",
        "threefry_partitionable",
        "default_prng_impl",
        "default_matmul_precision",
    )
    return (
        *(importlib.metadata.version(name) for name in ("jax", "jaxlib", "flax")),
        *map(file_sha256, sources),
        *(getattr(jax.config, f"jax_{name}") for name in names),
        os.environ.get("XLA_FLAGS", ""),
        describe(),
    )


def describe() -> str:
    """The devices, in words.

    >>> describe().split()[0].isdigit()
    True
    """
    devices, processes = jax.devices(), jax.process_count()
    where = f" in {processes} processes" if processes > 1 else ""
    return f"{len(devices)} × {devices[0].device_kind}{where}"
