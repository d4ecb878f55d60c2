"""The process that does the same work in PyTorch."""

import contextlib
import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

Peer = Callable[..., dict[str, Any]]


@contextlib.contextmanager
def diffusers_peer() -> Iterator[Peer]:
    """ask(call, **arguments) → what diffusers_peer.py answers.

    Raises:
        ValueError: PyTorch or diffusers is not installed.
    """
    absent = [
        name
        for name in ("torch", "diffusers", "accelerate")
        if importlib.util.find_spec(name) is None
    ]
    if absent:
        raise ValueError(
            f"--against is diffusers, and {' and '.join(absent)} cannot be found; pip install 'ddim_jax[against]'."
        )
    script = Path(__file__).with_name("diffusers_peer.py")
    with subprocess.Popen(
        [sys.executable, script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        questions, answers = process.stdin, process.stdout
        assert questions is not None
        assert answers is not None

        def ask(call: str, **arguments: Any) -> dict[str, Any]:
            print(json.dumps({"call": call, **arguments}, default=str), file=questions, flush=True)
            line = answers.readline()
            if not line:
                raise RuntimeError(
                    f"the process of diffusers ended at {call}; its message is above."
                )
            return json.loads(line)

        yield ask
        questions.close()
