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
    """ask(call, **arguments) → the answer of diffusers_peer.py; ValueError if it has no PyTorch."""
    libraries = ("torch", "diffusers", "accelerate")
    missing = [name for name in libraries if importlib.util.find_spec(name) is None]
    if missing:
        raise ValueError(
            f"--against is diffusers, and {' and '.join(missing)} cannot be found; "
            "pip install 'ddim_jax[against]'."
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
                raise RuntimeError(f"the diffusers process ended at {call}; its message is above.")
            return json.loads(line)

        yield ask
        questions.close()
