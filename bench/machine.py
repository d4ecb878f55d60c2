"""What a measurement ran on, and the memory that a process has needed."""

import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax

from ddim_jax.devices import describe, setup

# Those that convolutions and matrix products make use of.
_SETS = ("avx", "avx2", "fma", "avx512f", "avx512_vnni", "avx512_bf16", "amx_tile", "amx_bf16",
         "asimd", "asimdhp", "bf16", "sve", "sve2", "i8mm")  # fmt: skip


def processor(cpuinfo: Path = Path("/proc/cpuinfo")) -> tuple[str, tuple[str, ...]]:
    """The model of the processor, and its instruction sets where the system names them."""
    fields: dict[str, str] = {}
    if cpuinfo.exists():
        for line in cpuinfo.read_text("utf-8").splitlines():
            name, _, value = line.partition(":")
            fields.setdefault(name.strip(), value.strip())
    model = fields.get("model name") or platform.processor() or platform.machine()
    numbers = [f"{name} {fields[name]}" for name in ("cpu family", "model") if name in fields]
    known = (fields.get("flags") or fields.get("Features") or "").split()
    # Virtual machines hide the model's name ("AMD EPYC"); its numbers tell the generation.
    text = f"{model} ({', '.join(numbers)})" if numbers else model
    return text, tuple(name for name in _SETS if name in known)


def versions(*more: str) -> dict[str, str]:
    """Of Python, and of the libraries that matter."""
    libraries = ("jax", "jaxlib", "flax", "numpy", *more)
    return {"python": platform.python_version()} | {
        name: importlib.metadata.version(name) for name in libraries
    }


def machine(*more: str) -> dict[str, Any]:
    """Everything about the place of a measurement, for the report."""
    model, sets = processor()
    setup()
    load = f"{os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "an unknown number of"
    # PyTorch's threads wait for each other: beside other work it falls more than JAX does.
    return {
        "processor": model,
        "instruction sets": " ".join(sets) or "not named by this system",
        "devices": describe(),
        "versions": ", ".join(f"{name} {found}" for name, found in versions(*more).items()),
        "platform": jax.default_backend(),
        "device count": jax.device_count(),
        "load": f"{load} processes before the start, {os.cpu_count()} cores",
    }


def in_child(module: str, *arguments: str) -> dict[str, Any]:
    """What a module prints as JSON in a process of its own; a TPU admits one process at a time."""
    command = [sys.executable, "-m", module, *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command[:4])} failed; its message is above.")
    return json.loads(done.stdout.splitlines()[-1])


def peak_bytes(process: int | str = "self") -> int:
    """The largest resident memory so far of a process that runs."""
    status = Path(f"/proc/{process}/status")
    for line in status.read_text("utf-8").splitlines() if status.exists() else ():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    if process != "self":
        raise ValueError("the memory of another process is read from /proc, which only Linux has.")
    import resource  # not on Windows

    # Not first: Linux counts what the parent process needed, too.
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024)


if __name__ == "__main__":
    print(json.dumps(machine(*sys.argv[1:])))
