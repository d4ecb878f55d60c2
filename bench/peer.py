"""The process that does the same work in PyTorch."""

import contextlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

Peer = Callable[..., dict[str, Any]]
Against = Literal["nothing", "diffusers", "diffusers-compiled"]
LIBRARIES = ("torch", "diffusers", "accelerate")


def open_peer(against: Against) -> contextlib.AbstractContextManager[Peer | None]:
    """The peer that --against names."""
    if against == "nothing":
        return contextlib.nullcontext()
    return diffusers_peer(against)


@contextlib.contextmanager
def diffusers_peer(against: Against) -> Iterator[Peer]:
    """ask(call, **arguments) → the answer of diffusers_peer.py, which may use `torch.compile`.

    ValueError if there is no PyTorch, or no C++ compiler for it.
    """
    missing = [name for name in LIBRARIES if importlib.util.find_spec(name) is None]
    if missing:
        raise ValueError(
            f"--against is {against}, and {' and '.join(missing)} cannot be found; "
            "pip install 'ddim_jax[against]'."
        )
    compiler = os.environ.get("CXX") or ("clang++" if sys.platform == "darwin" else "g++")
    compiled = against == "diffusers-compiled"
    if compiled and not shutil.which(compiler):
        raise ValueError(
            f"--against is {against}, and the C++ compiler that torch.compile needs, "
            f"{compiler}, cannot be found; install it, or name another in CXX."
        )
    script = Path(__file__).with_name("diffusers_peer.py")
    command = [sys.executable, str(script), *(["compiled"] if compiled else [])]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
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
