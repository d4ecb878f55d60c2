"""The speed and memory of this machine: `python -m bench [--what …] [--against diffusers]`.

    overhead   one step of the sampler around a network that does nothing
    networks   images per second: forward, sampling, training; FLOP/s; tracing and compilation
    memory     temporary memory of the sampler at three S; of a train step with and without remat
    peak       memory of a whole process that samples, or trains
    scaling    images per second on 1, 2, 4, … devices, as many images on each
    loop       training steps fed by the training loop, against bare calls of the compiled step
    grid       the cells of an ablation by its one program, against one program for each S
    start      from the start of a new process until its first images are written
    growth     time and memory of metrics, grids, reports, checkpoints and folders by their size

Weights are random and the data are synthetic. `networks` and `peak` measure each of --networks, the
others only the first. `growth` is measured only if it is named. On a shared machine only ratios
within one run are meaningful, so the two sides of a comparison take turns.
"""

import json
import os
import shlex
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.table import Table

from ddim_jax.config import Config, presets
from ddim_jax.devices import setup
from ddim_jax.runtime import run

from .grid import bench_grid
from .growth import bench_growth
from .machine import in_child
from .networks import bench_network
from .page import page
from .peak import bench_peak
from .peer import LIBRARIES, Against, Peer, open_peer
from .rounds import Row, matmul_rate
from .sampler import bench_overhead, bench_sampler_memory
from .scaling import bench_scaling
from .start import bench_start
from .training import bench_loop, bench_training_memory

What = Literal[
    "overhead", "networks", "memory", "peak", "scaling", "loop", "grid", "start", "growth"
]
Dtype = Literal["float32", "bfloat16"]
_APART: tuple[What, ...] = ("start", "peak", "growth")


@dataclass(frozen=True)
class BenchConfig:
    """Measure this machine, print tables, write JSON."""

    what: tuple[What, ...] = (
        "overhead", "networks", "memory", "peak", "scaling", "loop", "grid", "start"
    )  # fmt: skip
    """What to measure."""
    networks: tuple[Literal["digits", "emoji", "cifar10"], ...] = ("digits", "emoji", "cifar10")
    """Presets: 8×8 with 32 channels, 32×32 with 64, and the paper's 35.7M parameters."""
    dtype: tuple[Dtype, ...] = ()
    """Types of activations and products in `networks`; empty: float32, with --report both."""
    against: Against = "nothing"
    """diffusers: the same network with the same weights in PyTorch, in a separate process, eager;
    diffusers-compiled: by torch.compile, which needs a C++ compiler."""
    batch_size: int = 0
    """Images per batch; 0: 128 for 8×8, 16 for 32×32; on accelerators 1,024 and 128 per device."""
    sizes: tuple[int, ...] = (3_125, 12_500, 50_000)
    """n of `growth`: feature vectors of 2,048 numbers, and images of a folder."""
    rounds: int = 5
    """Measurements of each side, in turn; the report has medians, and the median ratio."""
    report: Path | None = None
    """FILE.md: all tables as a page, with the machine and what the measures are."""
    out: Path = Path("bench.json")
    """Where to write the JSON."""

    def check(self) -> None:
        """Raise ValueError if a field is out of range."""
        for name, least in (("batch_size", 0), ("rounds", 1)):
            value = getattr(self, name)
            if value < least:
                flag = name.replace("_", "-")
                raise ValueError(f"--{flag} is {value}; it must be {least} or more.")
        if not self.networks or not self.what:
            raise ValueError(
                "--networks or --what is empty; name at least one, or leave the flag out."
            )
        if not self.sizes or min(self.sizes) < 16:
            raise ValueError(f"--sizes is {self.sizes}; give numbers of 16 or more.")
        for flag, path in (("out", self.out), ("report", self.report)):
            if path and not path.parent.is_dir():
                raise ValueError(
                    f"--{flag} is {path}, in a directory that does not exist; make it, "
                    "or choose another place."
                )

    def config(self, name: str, here: dict[str, Any], dtype: Dtype = "float32") -> Config:
        """A preset with the batch size of the benchmark on a machine."""
        preset = presets()[name]
        default = 128 if preset.model.image_size == 8 else 16
        if here["platform"] != "cpu":
            default *= 8 * here["device count"]
        train = replace(preset.train, batch_size=self.batch_size or default, dtype=dtype)
        return replace(preset, train=train)

    def types(self) -> tuple[Dtype, ...]:
        """--dtype, with its default filled in."""
        return self.dtype or (("float32", "bfloat16") if self.report else ("float32",))


def measure(
    settings: BenchConfig, here: dict[str, Any], console: Console, ask: Peer | None
) -> dict[str, list[Row]]:
    """Measure, and print each table as soon as it is complete."""
    first, rounds = settings.networks[0], settings.rounds
    config = settings.config(first, here)
    measures: dict[str, Any] = {
        "start": lambda: bench_start(config, rounds),
        "growth": lambda: bench_growth(settings.sizes),
        "overhead": lambda: bench_overhead(rounds, ask),
        "memory": lambda: bench_sampler_memory(config) + bench_training_memory(config),
        "scaling": lambda: bench_scaling(config, rounds),
        "loop": lambda: bench_loop(config, rounds),
        "grid": lambda: bench_grid(config, rounds),
    }
    tables: dict[str, list[Row]] = {}

    def add(title: str, rows: list[Row]) -> None:
        tables[title] = rows
        console.print(table(title, rows))

    # First what has processes of its own: a TPU admits one at a time, so this one waits.
    for what in sorted(settings.what, key=lambda what: what not in _APART):
        if what not in ("networks", "peak"):
            alone = what in ("overhead", "growth")
            add(what if alone else f"{what}, {first}", measures[what]())
            continue
        for name in settings.networks:
            for dtype in settings.types() if what == "networks" else ("float32",):
                network = settings.config(name, here, dtype)
                size, shape = network.train.batch_size, network.model.image_shape()
                if what == "peak":
                    add(f"peak, {name}", bench_peak(network, settings.against))
                else:
                    rows = bench_network(network, rounds, ask if dtype == "float32" else None)
                    add(f"{name}, {dtype}, {size} images {shape}", rows)
    return tables


def table(title: str, rows: list[Row]) -> Table:
    """Rows as a table for people."""
    result = Table("measure", "value", "unit", title=title)
    compared = any(row.ratio is not None for row in rows)
    for name in ("diffusers", "times better") if compared else ():
        result.add_column(name)
    for row in rows:
        cells = [row.measure, f"{row.value:,.4g}", row.unit]
        if compared:
            cells.append("" if row.peer is None else f"{row.peer:,.4g}")
            cells.append("" if row.ratio is None else f"{row.ratio:.2f}")
        result.add_row(*cells)
    return result


def command() -> None:
    """Measure what the flags say."""
    # Else this process would take most of a GPU's memory from those that it starts.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    setup()
    import tyro

    settings = tyro.cli(BenchConfig, prog="python -m bench", description=__doc__)
    settings.check()
    console = Console()
    with open_peer(settings.against) as ask:
        here = in_child("bench.machine", *(LIBRARIES if ask else ()))
        console.print(*(f"{name}: {value}" for name, value in here.items()), sep="\n")
        tables = measure(settings, here, console, ask)
        here["matrix products"] = f"{matmul_rate() / 1e9:,.0f} GFLOP/s in float32, at the end"
    report = {
        "settings": asdict(settings),
        "machine": here,
        "measures": {title: [row._asdict() for row in rows] for title, rows in tables.items()},
    }
    text = json.dumps(report, indent=2, default=str, ensure_ascii=False) + "\n"
    settings.out.write_text(text, "utf-8")
    if settings.report:
        written = page(here, tables, shlex.join(["bench", *sys.argv[1:]]))
        settings.report.write_text(written, "utf-8")
        console.print(f"report: {settings.report}")


def main() -> int:
    """The command line; its exit status."""
    return run(command, Path(__file__).parent)


if __name__ == "__main__":
    sys.exit(main())
