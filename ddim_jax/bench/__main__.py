"""What the machine does with this code: `python -m ddim_jax.bench [--what …] [--networks …] [--against diffusers]`.

    overhead   a step of the sampler around a network that does nothing
    networks   images a second forward, sampling and training; FLOP/s beside matrix products; tracing and compilation
    memory     temporary memory of the sampler for three S, and of a train step with and without rematerialisation
    loop       training through the loop's feeding, against bare calls of the compiled step
    grid       an ablation's cells by its one program, against each S by a program of its own
    start      a new process until its first images are written

Weights are random and data made up. `networks` measures each of --networks, the others the first of them. Only ratios within
one run mean anything on a shared machine, so the sides of a comparison take turns.
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

from ..cli import run
from ..config import Config, presets
from ..devices import describe, setup
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
    """Measure this machine, print a table, write JSON."""

    what: tuple[What, ...] = ("overhead", "networks", "memory", "loop", "grid", "start")
    """What to measure."""
    networks: tuple[Literal["digits", "emoji", "cifar10"], ...] = ("digits", "emoji", "cifar10")
    """Presets: 8×8 with 32 channels, 32×32 with 64, and the paper's 35.7M parameters for CIFAR-10."""
    against: Literal["nothing", "diffusers"] = "nothing"
    """diffusers: the same network with the same weights in PyTorch, in turn, in a process of its own."""
    batch_size: int = 0
    """Images a batch; 0: 128 of 8×8, 16 of 32×32."""
    rounds: int = 5
    """Measurements of each side, taken in turn; the table has medians, and medians of the ratios of each round."""
    out: Path = Path("bench.json")
    """Where the JSON goes."""

    def check(self) -> None:
        """Raise ValueError if a field is out of range."""
        for name, least in (("batch_size", 0), ("rounds", 1)):
            if getattr(self, name) < least:
                raise ValueError(
                    f"--{name.replace('_', '-')} is {getattr(self, name)}; it must be {least} or more."
                )
        if not self.networks or not self.what:
            raise ValueError(
                "--networks and --what are empty; name at least one of each, or leave the flags out."
            )
        if not self.out.parent.is_dir():
            raise ValueError(
                f"--out is {self.out}, in no directory that there is; make it, or choose another place."
            )

    def config(self, name: str) -> Config:
        """A preset with the batch size of the benchmark."""
        named = presets()[name]
        size = self.batch_size or (128 if named.model.image_size == 8 else 16)
        return replace(named, train=replace(named.train, batch_size=size))


def measure(settings: BenchConfig, console: Console, ask: Peer | None) -> dict[str, list[Row]]:
    """The rows of each thing measured, each printed when it is there."""
    first = settings.networks[0]
    config, rounds = settings.config(first), settings.rounds
    machine = (
        f"{describe()}, jax {jax.__version__}, matrix products {matmul_rate() / 1e9:,.0f} GFLOP/s"
    )
    measures: dict[str, Any] = {
        "overhead": lambda: bench_overhead(rounds, ask),
        "memory": lambda: bench_sampler_memory(config) + bench_training_memory(config),
        "loop": lambda: bench_loop(config, rounds),
        "grid": lambda: bench_grid(config, rounds),
        "start": lambda: bench_start(config, rounds),
    }
    found: dict[str, list[Row]] = {}
    for what in settings.what:
        if what == "networks":
            for name in settings.networks:
                some = settings.config(name)
                title = f"{name}, {some.train.batch_size} images {some.model.image_shape()}"
                found[title] = bench_network(some, rounds, ask)
                console.print(table(f"{title}: {machine}", found[title]))
        else:
            title = what if what == "overhead" else f"{what}, {first}"
            found[title] = measures[what]()
            console.print(table(f"{title}: {machine}", found[title]))
    return found


def table(title: str, rows: list[Row]) -> Table:
    """Rows for a person."""
    made = Table("measure", "value", "unit", title=title)
    compared = any(row.ratio is not None for row in rows)
    for name in ("diffusers", "times better") if compared else ():
        made.add_column(name)
    for row in rows:
        shown = [row.measure, f"{row.value:,.4g}", row.unit]
        if compared:
            shown += [
                f"{row.peer:,.4g}" if row.peer is not None else "",
                f"{row.ratio:.2f}" if row.ratio is not None else "",
            ]
        made.add_row(*shown)
    return made


def main() -> None:
    """The command line."""
    setup()
    import tyro

    settings = tyro.cli(BenchConfig, prog="python -m ddim_jax.bench", description=__doc__)
    settings.check()
    peer = diffusers_peer() if settings.against == "diffusers" else contextlib.nullcontext()
    with peer as ask:
        found = measure(settings, Console(), ask)
    report = {
        "settings": asdict(settings),
        "device": describe(),
        "jax": jax.__version__,
        "measures": {title: [row._asdict() for row in rows] for title, rows in found.items()},
    }
    settings.out.write_text(json.dumps(report, indent=2, default=str, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    sys.exit(run(main))
