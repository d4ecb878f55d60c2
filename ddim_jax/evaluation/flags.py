"""The flags that commands share, with one grammar and one set of defaults."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from math import isfinite
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import tyro
from jax.sharding import Mesh
from rich.console import Console

from ..data.dataset import class_index
from ..devices import describe, full_batch, make_mesh
from ..progress import progress
from ..sampler import CLIPS, Plan, in_batches, on_mesh
from ..settings import MANY, SEED, Range, at_least, check_ranges
from .estimates import kept_estimates
from .grid import Cell, cells, concerns
from .samplers import sampler_cells
from .source import FLOAT32, OracleName, Precision, Source, oracle_source, run_source

STEPS = 50
COUNT = Range(lambda value: value is None or 1 <= value <= MANY, f"1 or more, up to {MANY:,}")


@dataclass(frozen=True)
class SourceFlags:
    """The model to open."""

    run: tyro.conf.Positional[Path | None] = None
    """The run directory that train.py wrote; omit it with --oracle."""
    oracle: OracleName | None = None
    """An exact denoiser instead: of a Gaussian or a mixture fitted to digits, or of a data set."""
    checkpoint: str = "latest"
    """latest, best (the lowest validation loss of those kept), or a step number."""

    def check(self) -> None:
        """Raise a ValueError if a field is out of range, or does not fit another field."""
        check_ranges(self)
        _refuse_beside_sampler(self)
        if (self.run is None) == (self.oracle is None):
            raise ValueError(f"RUN is {self.run} and --oracle {self.oracle}; give one of the two.")

    def open(self) -> Source:
        """The run or the oracle."""
        if self.oracle is not None:
            return oracle_source(self.oracle)
        assert self.run is not None  # one of the two is there
        return run_source(self.run, self.checkpoint, self.precision())

    def precision(self) -> Precision:
        """How the network computes."""
        return FLOAT32


@dataclass(frozen=True)
class DrawFlags(SourceFlags):
    """How images are drawn, apart from the steps."""

    clip: Literal["official", "none", "x0", "rederive"] = "official"
    """Clip x̂_0: none, x0 (ε̂ kept), rederive (ε̂ recomputed), official (rederive with hat only)."""
    seed: Annotated[int, SEED] = 0
    """Seed of the noise, 0 to 2³²−1. Image i has its own noise, independent of the other images."""
    batch_size: Annotated[int, at_least(1, MANY)] = 64
    """Images per batch; affects images only by rounding. On accelerators use 500 or more."""
    label: tuple[str, ...] = ()
    """Classes by name or index, which the images take in turn; empty: no label, or all classes if
    the model was trained without label dropout."""
    guidance: float = 1.0
    """Classifier-free guidance scale; 1: no guidance. Others take two network calls per step."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of the network's activations and products; the images and Eq. 12 stay float32."""
    matmul_precision: Literal["default", "high", "highest"] = "highest"
    """Precision of the network's products; default may mean TF32 or bfloat16 on accelerators."""

    def precision(self) -> Precision:
        """How the network computes."""
        return Precision(self.dtype, self.matmul_precision)

    def check(self) -> None:
        """Raise a ValueError if a field is out of range, or does not fit another field."""
        super().check()
        if self.oracle and self.precision() != FLOAT32:
            flag, value = ("dtype", self.dtype) if self.dtype != "float32" else (
                "matmul-precision", self.matmul_precision)  # fmt: skip
            raise ValueError(
                f"--{flag} is {value}, but an oracle has no network; leave it out with --oracle."
            )
        if not isfinite(self.guidance):
            raise ValueError(f"--guidance is {self.guidance:g}; give a finite scale, such as 3.")
        if self.guidance != 1 and not self.label:
            raise ValueError(
                f"--guidance is {self.guidance:g} without --label; give the target classes."
            )

    def labels(self, source: Source) -> tuple[int, ...]:
        """The classes that the images take in turn; none without labels."""
        if self.label and not source.num_classes:
            raise ValueError(
                f"--label is {self.label[0]}, but {source.name} is unconditional; leave --label "
                "out."
            )
        if self.guidance != 1 and not source.has_no_label:
            raise ValueError(
                f"--guidance is {self.guidance:g}, but {source.name} was trained with "
                "--train.label-dropout 0 and cannot draw without a label; leave --guidance out."
            )
        if not (self.label or source.has_no_label):
            return tuple(range(source.num_classes))
        return tuple(class_index(label, source.classes, source.num_classes) for label in self.label)

    def clip_index(self, cell: Cell, source: Source) -> int:
        """The index in CLIPS of a cell's clipping.

        The official code clips with σ̂ only. Data that leave [−1, 1] are not clipped.
        """
        if self.clip != "official":
            return CLIPS.index(self.clip)
        return CLIPS.index("rederive" if cell.rederive and source.bounded else "none")


@dataclass(frozen=True)
class SamplerFlags(DrawFlags):
    """One sampler: σ, τ and S."""

    sigma: str = "eta=0"
    """σ: eta=VALUE, ddpm, hat, analytic[=η], [LABEL=]FILE, or
    [LABEL=]MODULE:FUNCTION[(numbers)]."""
    timesteps: str = ""
    """τ: uniform, quadratic, trailing, linspace, logsnr, karras, optimal, official-uniform,
    official-quadratic, a FILE, or times as in 1,21,41; default quadratic, trailing if ᾱ_T = 0."""
    steps: Annotated[int | None, COUNT] = None
    """S, the number of reverse steps; default 50, or the length of --sigma FILE or --timesteps."""
    solver: str = "first"
    """Solver: first, adams=2, adams=3, dpmpp=2, deis=3, ipndm=4, or MODULE:FUNCTION[(numbers)]."""
    sampler: str = ""
    """σ, τ, S and solver: FILE.npz of `sample.py learn`, or a cell as "eta=0 quadratic S=10"."""

    def cell(self, source: Source, console: Console) -> Cell:
        """The sampler that the flags describe."""
        (cell,) = chosen_cells(self, source, (self.steps or STEPS,), console)
        if self.steps not in (None, cell.steps):
            raise ValueError(
                f"--steps is {self.steps}, and --sigma {self.sigma} or --timesteps "
                f"{self.timesteps} has {cell.steps}; leave --steps out."
            )
        return cell

    def ready(self, size: int, console: Console) -> "Ready":
        """Everything that drawing `size` images at once needs."""
        source, size = self.open(), full_batch(size)
        cell, mesh = self.cell(source, console), make_mesh(size)
        clip = np.int32(self.clip_index(cell, source))
        scale = None if self.guidance == 1 else np.float32(self.guidance)
        plan = Plan(cell.table, np.uint32(self.seed), clip, scale)
        params = on_mesh(source.params, mesh)
        return Ready(source, cell, plan, params, mesh, size, self.labels(source))


class Ready(NamedTuple):
    """A source and a sampler, the weights on the devices, and the batch size."""

    source: Source
    cell: Cell
    plan: Plan
    params: Any
    mesh: Mesh
    size: int
    labels: tuple[int, ...]

    def describe(self) -> str:
        """The sampler and its devices, in words."""
        cell, where = self.cell, f"{self.mesh.size} of {describe()}"
        labels = ""
        if self.labels:
            scale = 1 if self.plan.guidance is None else self.plan.guidance
            labels = f"labels {' '.join(map(str, self.labels))}, guidance {scale:g}, "
        steps = f"S={cell.steps} {cell.timesteps}, {cell.sigma}"
        return f"{labels}{steps}, seed={self.plan.seed}, {self.source.precision} on {where}"

    def draw(self, call: Any, count: int, doing: str, console: Console) -> Iterator[Any]:
        """call(params, indices) of the images 0 … count−1, a batch at a time, with progress."""
        for concern in concerns(self.source.alpha_bar, self.source.kind, [self.cell]):
            console.print(f"warning: {concern}")
        parts = in_batches(lambda indices: call(self.params, indices), count, self.size)
        with progress(console, -(-count // self.size), "batches") as show:
            for part in parts:
                yield part
                show(doing)


def chosen_cells(
    flags: Any, source: Source, steps: tuple[int, ...], console: Console
) -> list[Cell]:
    """The cells of --sampler, or else of the grid of --sigma, --timesteps and --solver."""
    estimates = partial(kept_estimates, source, console)

    def several(value: str | tuple[str, ...]) -> tuple[str, ...]:
        return value if isinstance(value, tuple) else (value,)

    if flags.sampler:
        return sampler_cells(source.alpha_bar, several(flags.sampler), estimates)
    solver = several(getattr(flags, "solver", "first"))
    axes = several(flags.sigma), several(flags.timesteps), steps, solver
    return cells(source.alpha_bar, *axes, estimates)


def _refuse_beside_sampler(flags: Any) -> None:
    """Refuse what --sampler replaces."""
    defaults = type(flags)
    for name in ("sigma", "timesteps", "steps", "solver") if getattr(flags, "sampler", "") else ():
        if getattr(flags, name, None) != getattr(defaults, name, None):
            raise ValueError(f"--{name} is given beside --sampler, which replaces it; give one.")


def check_arguments(arguments: list[str]) -> None:
    """Refuse an empty --out, and report the new name of a flag from an earlier version."""
    for i, argument in enumerate(arguments):
        name, given, value = argument.partition("=")
        if name == "--out" and (not value if given else arguments[i + 1 : i + 2] == [""]):
            raise ValueError("--out is empty; give a path, or leave it out for the default.")
        if name == "--eta":
            raise ValueError(f"--eta is now --sigma eta={value or 'VALUE'}.")
        if name in ("--sigma-hat", "--no-sigma-hat", "--sigma_hat"):
            raise ValueError("--sigma-hat is now --sigma hat, in every command.")


def check_png(out: Path) -> None:
    """Refuse an output file that is not a PNG."""
    if out.suffix != ".png":
        raise ValueError(f"--out is {out}; its name must end in .png.")
