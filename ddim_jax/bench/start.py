"""How long a user waits for the first images."""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from ..config import Config, save_config
from ..model import build_unet
from ..training import initial_state, make_optimizer
from ..training.checkpoint import checkpoints, save_checkpoint
from .rounds import Row, in_turn

_COMMAND = Path(__file__).parents[2] / "sample.py"


def bench_start(config: Config, rounds: int) -> list[Row]:
    """`sample.py generate` of a new process, imports and all: with an empty compilation cache, then with a full one.

    Raises:
        ValueError: the package is installed without the repository around it.
    """
    if not _COMMAND.is_file():
        raise ValueError(
            f"--what start runs {_COMMAND}, which is not there; run it from a clone of the repository."
        )
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        run.mkdir()
        with checkpoints(run, keep=1) as manager:
            save_checkpoint(
                manager,
                initial_state(build_unet(config.model, 0)[1], make_optimizer(config.train)),
                config,
            )
        save_config(config, run / "config.json")
        environment = {**os.environ, "JAX_COMPILATION_CACHE_DIR": str(Path(folder) / "xla")}

        def start(*arguments: str) -> float:
            """Seconds until the process says that its images are written; its end is not waited for."""
            began = time.perf_counter()
            with subprocess.Popen(
                [sys.executable, *arguments], env=environment, stdout=subprocess.PIPE
            ) as process:
                assert process.stdout is not None
                said = process.stdout.readline()
                found = time.perf_counter() - began
            if not said or process.returncode:
                raise RuntimeError(
                    f"{' '.join(arguments)} failed with {process.returncode}; its message is above."
                )
            return found

        def generate() -> float:
            return start(
                str(_COMMAND), "generate", str(run), "--out", str(Path(folder) / "images.png")
            )

        cold = generate()
        cached, bare = in_turn(
            rounds, generate, lambda: start("-c", "import jax; print(jax.devices())")
        )
    return [Row("first 64 images (S=50) of a new process, empty cache", cold, "s"),
            Row("the same, programs cached", float(np.median(cached)), "s"),
            Row("a process that only starts JAX", float(np.median(bare)), "s")]  # fmt: skip
