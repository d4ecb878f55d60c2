"""How long a user waits for the first images."""

import json
import logging
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np

from ddim_jax.config import Config, config_from_dict, save_config
from ddim_jax.model import build_unet
from ddim_jax.training import initial_state, make_optimizer
from ddim_jax.training.checkpoint import checkpoints, save_checkpoint

from .machine import in_child
from .rounds import Row, in_turn

_COMMAND = Path(__file__).parents[1] / "sample.py"


def bench_start(config: Config, rounds: int) -> list[Row]:
    """`sample.py generate` in a new process, imports included: with an empty and a full cache."""
    with tempfile.TemporaryDirectory() as folder:
        run, images = Path(folder) / "run", Path(folder) / "images.png"
        run.mkdir()
        in_child("bench.start", json.dumps(asdict(config)), str(run))
        environment = {**os.environ, "JAX_COMPILATION_CACHE_DIR": str(Path(folder) / "xla")}

        def start(*arguments: str | Path) -> float:
            """Seconds until the process prints that it is done, without waiting for its exit."""
            command = [sys.executable, *arguments]
            began = time.perf_counter()
            with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE) as process:
                assert process.stdout is not None
                line = process.stdout.readline()
                elapsed = time.perf_counter() - began
            if not line or process.returncode:
                raise RuntimeError(
                    f"{' '.join(map(str, arguments))} failed with {process.returncode}; "
                    "its message is above."
                )
            return elapsed

        def generate() -> float:
            return start(_COMMAND, "generate", run, "--out", images)

        def bare() -> float:
            return start("-c", "import jax; print(jax.devices())")

        cold = generate()
        cached, only_jax = in_turn(rounds, generate, bare)
    return [
        Row("first 64 images (S=50) of a new process, empty cache", cold, "s"),
        Row("the same, programs cached", float(np.median(cached)), "s"),
        Row("a process that only starts JAX", float(np.median(only_jax)), "s"),
    ]


def save_run(config: Config, run: Path) -> None:
    """A run at its first step."""
    logging.getLogger("absl").setLevel(logging.ERROR)  # Orbax warns that there are no metrics
    params = build_unet(config.model, 0)[1]
    with checkpoints(run, keep=1) as manager:
        save_checkpoint(manager, initial_state(params, make_optimizer(config.train)), config)
    save_config(config, run / "config.json")


if __name__ == "__main__":
    save_run(config_from_dict(json.loads(sys.argv[1])), Path(sys.argv[2]))
    print("{}")
