"""Kills at random moments of trainings and ablations: `python -m bench.kills [number] [seed]`.

After each kill the newest checkpoint must be whole, its step no smaller than before, and the files
of cells readable; at the end the training and the ablation must come to their ends.
"""

import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from ddim_jax import commands
from ddim_jax.files import read_arrays
from ddim_jax.training import load_run
from ddim_jax.training.checkpoint import latest_step

_TRAIN = """--model.channels 8 --model.groups 2 --model.multipliers 1 --model.attention-resolutions
--train.batch-size 16 --train.decay constant --train.sample-every 0 --train.evaluate-images 0
--train.validate-images 16 --train.checkpoint-every 5 --train.log-every 5"""
_ABLATE = "--sigma eta=0 eta=1 hat --steps 2 3 5 --num-images 256 --batch-size 8"


def start(name: str, arguments: list[str], said: Path) -> int:
    """train.py or sample.py in a fork; its process."""
    pid = os.fork()
    if pid:
        return pid
    with open(said, "ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.argv = [f"{name}.py", *arguments]
    os._exit(getattr(commands, name)())


def holds(check: Callable[[], bool]) -> bool:
    """Whether a check holds, in a fork of its own: JAX must not start in this process."""
    pid = os.fork()
    if pid == 0:
        try:
            os._exit(0 if check() else 1)
        except BaseException as error:
            print(type(error).__name__, error, flush=True)
            os._exit(2)
    return os.waitpid(pid, 0)[1] == 0


def main() -> None:
    """Kill, check, and print the counts."""
    number, seed = map(int, [*sys.argv[1:], "100", "0"][:2])
    chance, place = random.Random(seed), Path(tempfile.mkdtemp())
    out, said, lost, before, kills = place / "run", place / "said.txt", 0, -1, [0, 0]
    ablated, trained = _ABLATE.split(), [*_TRAIN.split(), "--out", str(out), "--train.steps"]
    for k in range(number):
        ablation = k % 3 == 2 and latest_step(out) is not None
        flags = ["ablate", str(out), *ablated, "--name", str(k)] if ablation else [*trained, "9999"]
        pid = start("sample" if ablation else "train", flags, said)
        time.sleep(chance.uniform(2, 14))
        if os.waitpid(pid, os.WNOHANG)[0]:
            print(f"{k}: ended by itself: {said.read_text()[-300:]}")
            continue
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        kills[ablation] += 1
        step = latest_step(out)
        good = (step is None and before < 0) or ((step or 0) >= before and holds(
            lambda: bool(load_run(out)) and all(
                read_arrays(file) is not None
                for file in (out / "ablations").rglob("[0-9]*.npz")
            )
        ))  # fmt: skip
        before = -1 if step is None else step
        lost += not good
        print(f"{k}: {'ablation' if ablation else 'training'} killed, step {step}, "
              f"{'whole' if good else 'LOST'}", flush=True)  # fmt: skip
    ends = []
    for name, flags in (("train", [*trained, str(before + 5)]),
                        ("sample", ["ablate", str(out), *ablated])):  # fmt: skip
        ends.append(os.waitpid(start(name, flags, said), 0)[1])
    print(f"{kills[0]} trainings and {kills[1]} ablations killed, {lost} lost; ends {ends}")
    shown = said.read_text("utf-8", "replace")
    print(f"errors: {shown.count('error: ')}, tracebacks: {shown.count('Traceback')}")
    shutil.rmtree(place)


if __name__ == "__main__":
    main()
