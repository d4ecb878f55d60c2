"""`sample.py likelihood`: bits/dim of a model under any σ, τ and S, and of its ODE.

The bound in bits/dim is (L_T + Σ L_s + L_0)/(d ln 2), from one draw of x_t for each image and step.
The rate is L_T + Σ L_s, the distortion L_0. Data without 256 levels, such as those of `--oracle
gaussian`, have a density; its bits are for bins as wide as a level.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import jax
import numpy as np
from rich.console import Console

from ..devices import describe
from ..diffusion.likelihood import Elbo, bits_per_dim
from ..files import make_directory, to_json, write
from ..images import save_figure
from ..settings import MANY, SEED, at_least
from .bits import Split, bits, elbos, has_elbo, interval_of, ode_nats, splits
from .flags import COUNT, SourceFlags, chosen_cells
from .grid import Cell
from .paper import ANALYTIC_DPM, DDPM_BITS
from .source import Source
from .tables import console_table, estimate, markdown


@dataclass(frozen=True)
class Config(SourceFlags):
    """Bits/dim of test and training images: the ELBO of each σ, τ and S, and the ODE's density."""

    out: Path | None = None
    """Directory for table.md, results.json and steps.png; default: RUN/likelihood."""
    sigma: tuple[str, ...] = ("eta=1", "hat")
    """One or more σ with noise in every step, as in generate; for eta=0 use --ode."""
    timesteps: tuple[str, ...] = ("",)
    """One or more τ, as in generate."""
    steps: tuple[int, ...] = ()
    """One or more S; empty: 10 50 100 1000, or on a CPU 10 50."""
    sampler: tuple[str, ...] = ()
    """A list of samplers instead: FILE.npz, or a cell as "eta=1 quadratic S=10"."""
    num_images: Annotated[int | None, COUNT] = None
    """Images of each split; default 10,000, or on a CPU 256."""
    ode: bool = False
    """Also the density of the ODE (η = 0 in small steps): 2 T network calls and derivatives."""
    stride: Annotated[int, at_least(2)] = 2
    """Times that one step of the ODE spans, an even number; 20 takes a tenth of the calls."""
    seed: Annotated[int, SEED] = 0
    """Seed of all noise, 0 to 2³²−1."""
    batch_size: Annotated[int, at_least(1, MANY)] = 64
    """Images per batch; changes results only by rounding."""


def run(config: Config, console: Console) -> None:
    """Measure bits/dim; write a table, a JSON file and a figure of the terms by step."""
    config.check()
    if config.stride % 2:
        raise ValueError(f"--stride is {config.stride}; it must be even.")
    source, cpu = config.open(), jax.default_backend() == "cpu"
    T = len(source.alpha_bar) - 1
    steps = config.steps or tuple(S for S in (10, 50, 100, 1000)[: 2 if cpu else 4] if S <= T)
    grid = chosen_cells(config, source, steps or (T,), console)
    for cell in grid:
        if not has_elbo(cell):
            raise ValueError(
                f"{cell.name} has steps without noise or with corrections, and no finite ELBO; "
                "give a σ with noise in every step, such as eta=1, and --ode for η = 0."
            )
        if cell.sigma.startswith("analytic") and "last=off" not in cell.sigma:
            console.print(
                f"warning: {cell.sigma} limits the noise of the last noisy step, which suits FID "
                f"and worsens an ELBO: {cell.sigma},last=off does not"
            )
    directory = config.out or source.directory / "likelihood"
    make_directory(directory, directory)
    results = []
    for split in splits(source, config.num_images or (256 if cpu else 10_000)):
        terms = elbos(source, split, grid, config.seed, config.batch_size, console)
        results += [
            _entry(source, split, cell, part) for cell, part in zip(grid, terms, strict=True)
        ]
        if config.ode:
            nats = ode_nats(source, split, config.seed, config.batch_size, config.stride, console)
            of_images = bits_per_dim(nats, source.image_shape, density=True)
            entry = {"split": split.name, "n": len(nats), "cell": "ODE"}
            results.append(entry | {"bits": interval_of(of_images)})
    if jax.process_index() == 0:
        _write(config, source, results, directory, console)


def _entry(source: Source, split: Split, cell: Cell, terms: Elbo) -> dict[str, Any]:
    """The results of one cell and split."""
    entry = {"split": split.name, "n": len(split.images), "cell": cell.name, "sigma": cell.sigma}
    entry |= {"timesteps": cell.timesteps, "steps": cell.steps}
    entry |= {name: interval_of(values) for name, values in bits(source, terms).items()}
    inner = cell.table.active & (cell.table.s > 0)
    by_step = bits_per_dim(-terms.steps.mean(axis=0, dtype=np.float64), source.image_shape)
    return entry | {"t": cell.table.t[inner], "by_step": by_step[: int(inner.sum())]}


def _write(
    config: Config, source: Source, results: list[dict[str, Any]], directory: Path, console: Console
) -> None:
    """Write table.md, results.json and steps.png, and print the table."""
    data, published = source.data.source, source.data.source == "cifar10"
    rows = [["split", "σ τ S", "bits/dim", "rate", "distortion"]]
    for entry in results:
        values = (estimate(entry.get(name)) for name in ("bits", "rate", "distortion"))
        rows.append([entry["split"], entry["cell"], *values])
    if published:
        rows = [[*row, text] for row, text in zip(rows, _literature(results), strict=True)]
    width = "256 levels" if source.bounded else "density, in bins of a level's width"
    counts = ", ".join(dict.fromkeys(f"{e['n']:,} {e['split']}" for e in results))
    title = (
        f"Likelihood of {source.name}: {counts} images of {data}, {width}, seed {config.seed}, "
        f"float32 on {describe()}. −log₂ p per dimension with a 95 % interval of the mean; the "
        "ELBO is an upper bound of it."
    )
    settings = asdict(config) | {"out": directory, "checkpoint": source.step}
    content = {"settings": settings, "data": data, "results": results, "device": describe()}
    if published:
        content["published"] = {"ddpm": DDPM_BITS, "analytic_dpm": ANALYTIC_DPM}
    write(directory / "results.json", to_json(content, indent=2) + "\n")
    write(directory / "table.md", f"{title}\n\n{markdown(rows)}\n")
    _save_steps(results, directory / "steps.png")
    console.print(console_table(title, rows))
    console.print(f"{directory}: table.md, results.json, steps.png")


def _literature(results: Sequence[dict[str, Any]]) -> list[str]:
    """A column of CIFAR-10's published numbers: of Analytic-DPM's weights, and of DDPM's."""
    column = ["published, other weights"]
    for entry in results:
        found = ANALYTIC_DPM.get(entry.get("sigma", ""), {}).get(entry.get("steps", 0))
        linspace = entry.get("timesteps") == "linspace"
        ode = entry["cell"] == "ODE"
        column.append(str(DDPM_BITS["ODE"] if ode else found if linspace and found else ""))
    return column


def _save_steps(results: Sequence[dict[str, Any]], path: Path) -> None:
    """L_s of every cell against t, for the first split."""
    from matplotlib.figure import Figure  # half a second to import

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for entry in results:
        if entry["split"] == results[0]["split"] and len(entry.get("t", ())):
            axes.plot(entry["t"], entry["by_step"], "o-", markersize=3, label=entry["cell"])
    axes.set(xscale="log", yscale="log", xlabel="t", ylabel="$L_s$ of the step from t, bits/dim")
    axes.legend(fontsize="small")
    save_figure(figure, path)
