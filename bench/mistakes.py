"""Wrong command lines, each flag of each command: `python -m bench.mistakes RUN [first] [last]`.

RUN is any small run. Each line runs in a fork of one process that has imported everything. Counted
are tracebacks, lines that do not end, exit statuses other than 1 and 2, errors of more than one
line, and, as a list to look at, lines that were accepted.
"""

import contextlib
import dataclasses
import os
import signal
import sys
import tempfile
import time
import typing
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ddim_jax import commands
from ddim_jax.config import presets
from ddim_jax.evaluation import load_commands
from ddim_jax.training.import_export import ExportConfig, ImportConfig

_LIMIT = 30.0  # seconds
_INTEGERS = ("x", "-1", "1.5", "²", "1" + "0" * 12, "9" * 5000)
_FLOATS = ("x", "nan", "-1e400")
_PATHS = ("/dev/null/x{0}", "{tmp}/" + "a" * 300 + "{0}", "/proc/x{0}", "{tmp}/directory{0}")
_OTHERS = {
    "sigma": ("eta=inf", "eta=nan", "eta=²", "eta=" + "9" * 5000, "nope", "{tmp}/junk.npy",
              "{tmp}/none.csv", "{tmp}/junk.json", "os:nope", "{tmp}/bad.py:f", "math:sqrt"),
    "timesteps": ("nope", "1,x", "1,²", "3,2,1", "1,99999", "9" * 5000, "{tmp}/junk.json", ","),
    "solver": ("nope", "adams", "adams=²", "adams=99", "first=1", "os:nope", "adams=" + "9" * 5000),
    "sampler": ("nope", "eta=0 quadratic S=²", "{tmp}/junk.npz", "eta=nan quadratic S=5",
                "eta=0 quadratic S=" + "9" * 5000, "eta=0 nope S=5", "eta=0 quadratic S=0"),
    "start": ("nope", "eta=0 quadratic S=²", "{tmp}/junk.npz", "eta=0 quadratic S=3"),
    "checkpoint": ("²", "-1", "9" * 5000, "nope", ""),
    "label": ("nope", "²", "-1", "9" * 5000),
    "against": ("nope", "digits@x", "{tmp}/junk.npz", "folder:", "{tmp}", "tfds:", "emoji@test"),
    "source": ("nope", "folder:", "tfds:", "tfds:no/such:1", "folder:{tmp}", "folder:/dev/null"),
    "name": ("a/b", "..", "cells", "a" * 300),
    "baseline": ("nope",),
    "inception": ("{tmp}/junk.npz", "/dev/null", "{tmp}/none"),
    "inception-sha256": ("nope",),
    "archive": ("{tmp}/none", "/dev/zero", "{tmp}/junk.npz"),
    "archive-sha256": ("nope",),
    "data-dir": ("/dev/null",),
    "multipliers": ("0", "x", "-1", "9" * 30),
    "attention-resolutions": ("0", "x", "-1", "9" * 30),
}  # fmt: skip
_NEEDS = {"inception": ["--features", "inception"], "guidance": ["--label", "1"],
          "archive": ["--data.source", "cifar10"], "against": ["--num-images", "8"],
          "data-dir": ["--data.source", "cifar10"]}  # fmt: skip


def lines() -> Iterator[list[str]]:
    """Every line: train.py or sample.py, and arguments with {tmp} and {run} to be filled in."""
    yield from ([name, *rest] for name in ("train", "sample") for rest in (
        ["--nope"], ["nope"], ["--seed"], ["{tmp}/junk.json"], ["{tmp}/deep.json"], ["/dev/null"],
        ["{tmp}"], ["{run}"], [""],
    ))  # fmt: skip
    for flag, value in _wrong(presets()["digits"]):
        yield ["train", "--dry-run", f"--{flag}", value, *_NEEDS.get(flag.split(".")[-1], [])]
    for value in ("", *_PATHS):
        value = value.replace("{0}", "")
        yield ["train", "--out", value, "--train.steps", "1"]
        yield ["train", "export", "{run}", value]
        yield ["train", "import", value, "{tmp}/new"]
    for config in (ImportConfig, ExportConfig):
        name = "import" if config is ImportConfig else "export"
        places = {"import": ["{tmp}/junk.npz", "{tmp}/new"], "export": ["{run}", "{tmp}/new"]}
        for flag, value in _wrong(config(Path(), Path())):
            yield ["train", name, *places[name], f"--{flag}", value]
    for command, (kind, _) in load_commands().items():
        few = [] if command == "classifier" else ["--steps", "2"]
        for flag, value in _wrong(kind()):
            here = [] if flag == "steps" else few
            suffix = ".npz" if flag == "save-statistics" else ".png" * (command != "reconstruct")
            value = value.replace("{0}", suffix)
            yield ["sample", command, "{run}", *here, f"--{flag}", value, *_NEEDS.get(flag, [])]
        yield ["sample", command, "{tmp}/none"]
        yield ["sample", command]
        yield ["sample", command, "{run}", "--oracle", "digits"]
        yield ["sample", command, "--oracle", "nope"]


def _wrong(config: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Wrong values for every flag of a configuration, by its type."""
    for name, hint in typing.get_type_hints(type(config)).items():
        value, flag = getattr(config, name), name.replace("_", "-")
        if dataclasses.is_dataclass(value):
            yield from _wrong(value, f"{prefix}{flag}.")
            continue
        if name in ("run", "weights", "folder") or (prefix + flag == "out" and prefix):
            continue
        values = _OTHERS.get(flag)
        if values is None:
            text = str(hint)
            values = (
                ("nope",) if "Literal" in text or "bool" in text
                else _INTEGERS if "int" in text else _FLOATS if "float" in text else _PATHS
            )  # fmt: skip
        yield from ((prefix + flag, value) for value in values)


def attempt(arguments: list[str], place: Path) -> tuple[str, str]:
    """How a line ends, and what it said."""
    said = place / "said.txt"
    pid = os.fork()
    if pid == 0:
        with open(said, "wb") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        os.chdir(place)
        sys.argv = [f"{arguments[0]}.py", *arguments[1:]]
        status: Any = 99
        try:
            status = getattr(commands, arguments[0])()
        except SystemExit as error:
            status = error.code
        except BaseException:
            sys.excepthook(*sys.exc_info())
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status or 0)
    deadline = time.monotonic() + _LIMIT
    while (ended := os.waitpid(pid, os.WNOHANG))[0] == 0:
        if time.monotonic() > deadline:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            return "no end", said.read_text("utf-8", "replace")
        time.sleep(0.02)
    status, text = os.waitstatus_to_exitcode(ended[1]), said.read_text("utf-8", "replace")
    errors = text[text.find("error: ") :]
    if "Traceback" in text:
        return "traceback", text
    if status == 0:
        return "accepted", text
    if status not in (1, 2):
        return f"status {status}", text
    return ("more lines" if status == 1 and errors.count("\n") != 1 else "refused"), text


def main() -> None:
    """Run the lines from `first` to `last`, print what is not a refusal, and the counts."""
    model, first, last = Path(sys.argv[1]).resolve(), *map(int, [*sys.argv[2:], "0", "99999"][:2])
    counts: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        for file in ("junk.npy", "junk.npz", "junk.json", "bad.py"):
            (place / file).write_text("junk(")
        (place / "deep.json").write_text("[" * 100_000)
        for suffix in ("", ".png", ".npz"):
            (place / f"directory{suffix}").mkdir()
        for number, line in enumerate(lines()):
            if not first <= number < last:
                continue
            filled = [part.replace("{tmp}", name).replace("{run}", str(model)) for part in line]
            end, text = attempt(filled, place)
            counts[end] += 1
            if end != "refused":
                shown = " ".join(part[:60] for part in line)
                said = "" if end == "accepted" else "\n    " + text.strip()[-400:]
                print(f"{number} {end}: {shown}{said}", flush=True)
    print(dict(counts), sum(counts.values()))


if __name__ == "__main__":
    main()
