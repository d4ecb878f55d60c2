"""The speed and memory of this machine: `python -m bench [--what …] [--against diffusers]`.

    overhead   one step of the sampler around a network that does nothing
    networks   images per second: forward, sampling, training; FLOP/s; tracing and compilation
    memory     temporary memory of the sampler at three S; of a train step with and without remat
    loop       training steps fed by the training loop, against bare calls of the compiled step
    grid       the cells of an ablation by its one program, against one program for each S
    start      from the start of a new process until its first images are written

Weights are random and the data are synthetic. `networks` measures each of --networks, the others
only the first. On a shared machine only ratios within one run are meaningful, so the two sides of
a comparison take turns.
"""

import contextlib
import json
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import jax
from rich.console import Console
from rich.table import Table

from ddim_jax.config import Config, presets
from ddim_jax.devices import describe, setup
from ddim_jax.runtime import run

from .grid import bench_grid
from .networks import bench_network
from .peer import Peer, diffusers_peer
from .rounds import Row, matmul_rate
from .sampler import bench_overhead, bench_sampler_memory
from .start import bench_start
from .training import bench_loop, bench_training_memory

What = Literal["overhead", "networks", "memory", "loop", "grid", "start"]


@dataclass(frozen=True)
class BenchConfig:
    """Measure this machine, print tables, write JSON."""

    what: tuple[What, ...] = ("overhead", "networks", "memory", "loop", "grid", "start")
    """What to measure."""
    networks: tuple[Literal["digits", "emoji", "cifar10"], ...] = ("digits", "emoji", "cifar10")
    """Presets: 8×8 with 32 channels, 32×32 with 64, and the paper's 35.7M parameters."""
    against: Literal["nothing", "diffusers"] = "nothing"
    """diffusers: the same network with the same weights in PyTorch, in a separate process."""
    batch_size: int = 0
    """Images per batch; 0: 128 for 8×8, 16 for 32×32."""
    rounds: int = 5
    """Measurements of each side, in turn; the report has medians, and the median ratio."""
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
        if not self.out.parent.is_dir():
            raise ValueError(
                f"--out is {self.out}, in a directory that does not exist; make it, "
                "or choose another place."
            )

    def config(self, name: str) -> Config:
        """A preset with the batch size of the benchmark."""
        preset = presets()[name]
        size = self.batch_size or (128 if preset.model.image_size == 8 else 16)
        return replace(preset, train=replace(preset.train, batch_size=size))


def measure(settings: BenchConfig, console: Console, ask: Peer | None) -> dict[str, list[Row]]:
    """Measure, and print each table as soon as it is complete."""
    first, rounds = settings.networks[0], settings.rounds
    config = settings.config(first)
    machine = f"{describe()}, jax {jax.__version__}, "
    machine += f"matrix products {matmul_rate() / 1e9:,.0f} GFLOP/s"
    measures: dict[str, Any] = {
        "overhead": lambda: bench_overhead(rounds, ask),
        "memory": lambda: bench_sampler_memory(config) + bench_training_memory(config),
        "loop": lambda: bench_loop(config, rounds),
        "grid": lambda: bench_grid(config, rounds),
        "start": lambda: bench_start(config, rounds),
    }
    tables: dict[str, list[Row]] = {}

    def add(title: str, rows: list[Row]) -> None:
        tables[title] = rows
        console.print(table(f"{title}: {machine}", rows))

    for what in settings.what:
        if what == "networks":
            for name in settings.networks:
                network = settings.config(name)
                size, shape = network.train.batch_size, network.model.image_shape()
                add(f"{name}, {size} images {shape}", bench_network(network, rounds, ask))
        else:
            add(what if what == "overhead" else f"{what}, {first}", measures[what]())
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
    setup()
    import tyro

    settings = tyro.cli(BenchConfig, prog="python -m bench", description=__doc__)
    settings.check()
    peer = diffusers_peer() if settings.against == "diffusers" else contextlib.nullcontext()
    with peer as ask:
        tables = measure(settings, Console(), ask)
    report = {
        "settings": asdict(settings),
        "device": describe(),
        "jax": jax.__version__,
        "measures": {title: [row._asdict() for row in rows] for title, rows in tables.items()},
    }
    text = json.dumps(report, indent=2, default=str, ensure_ascii=False) + "\n"
    settings.out.write_text(text, "utf-8")


def main() -> int:
    """The command line; its exit status."""
    return run(command, Path(__file__).parent)


if __name__ == "__main__":
    sys.exit(main())
