"""A grid of σ × τ × order × S as cells, each with a table of steps."""

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..diffusion.reverse import StepTable, step_table
from ..diffusion.solvers import Solver
from .estimates import Estimates
from .grammar import Family, Times, parse_sigma, parse_solver, parse_timesteps

_VISIBLE = 0.02  # ᾱ at the start of τ from which its mean is seen in the samples
_LARGE = 1000.0  # factor on an error of ε̂ in x̂_0 from which it matters


class Cell(NamedTuple):
    """One sampler of a grid; `timesteps` names τ, and the solver unless it is the first order."""

    name: str
    sigma: str
    timesteps: str
    steps: int
    table: StepTable
    rederive: bool  # whether the official code clips x̂_0 here
    solver: str = "first"


def cells(
    alpha_bar: np.ndarray,
    sigmas: Iterable[str],
    timesteps: Iterable[str],
    steps: Sequence[int],
    solvers: Iterable[str] = ("first",),
    estimates: Callable[[], Estimates] | None = None,
) -> list[Cell]:
    """Every σ at every τ, solver and S; an array of σ or a list of times only at its own S.

    τ is "" for the default: quadratic, the paper's for CIFAR-10, or trailing, which visits T, where
    ᾱ_T = 0. `estimates` gives those of the model, if a σ or τ needs them.
    """
    default = "trailing" if alpha_bar[-1] == 0 else "quadratic"
    axes = itertools.product(
        _named_apart(parse_timesteps, [name or default for name in timesteps], estimates),
        map(parse_solver, solvers),
        _named_apart(parse_sigma, sigmas, estimates),
    )
    made = [
        _cell(alpha_bar, family, times, solver, count)
        for times, solver, family in axes
        for count in _lengths(family, times, steps)
    ]
    names = [cell.name for cell in made]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(
                f"the cell {name} is asked for twice; give each of --sigma, --steps, "
                "--solver and --timesteps once, or a LABEL= to distinguish two σ of one name."
            )
    return made


def _cell(
    alpha_bar: np.ndarray, family: Family, times: Times, solver: tuple[str, Solver], count: int
) -> Cell:
    label = times.name if solver[0] == "first" else f"{times.name} {solver[0]}"
    name = f"{family.name} {label} S={count}"
    tau = times.choose(alpha_bar, count)
    try:
        table = step_table(alpha_bar, tau, family.schedule, solver[1], allow_repeats=times.repeats)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    return Cell(name, family.name, label, count, table, family.rederive, solver[0])


def _named_apart(parse: Callable[..., Any], texts: Iterable[str], estimates: Any) -> list[Any]:
    """What the texts name; files of one base name are called by their whole paths."""
    found = [(text, parse(text, estimates)) for text in texts]
    names = [made.name for _, made in found]
    return [
        made._replace(name=text)
        if names.count(made.name) > 1 and Path(text).name == made.name
        else made
        for text, made in found
    ]


def concerns(alpha_bar: np.ndarray, kind: str, cells: Iterable[Cell]) -> list[str]:
    """Why the images of cells may be wrong although every step is right, each reason once."""
    found = ((cell, text) for cell in cells for text in _concerns(alpha_bar, kind, cell))
    return list(dict.fromkeys(f"S={cell.steps}: {text}" for cell, text in found))


def _concerns(alpha_bar: np.ndarray, kind: str, cell: Cell) -> Iterator[str]:
    first, start = int(cell.table.t[0]), float(cell.table.alpha_bar_t[0])
    T = len(alpha_bar) - 1
    if alpha_bar[T] == 0 and first < T:
        yield (
            f"τ starts at t = {first}, but the model was trained to start at T = {T}, where "
            "ᾱ_T = 0: use --timesteps trailing"
        )
    elif start > _VISIBLE:
        yield (
            f"τ starts at t = {first}, where ᾱ is {start:.2g}: images there are not noise, and the "
            "samples' mean will be wrong; use --timesteps trailing, more steps, or a longer β"
        )
    if kind == "epsilon" and 0 < start < 1 / _LARGE**2:
        yield (
            f"τ starts at t = {first}, where ᾱ is {start:.2g}: an error of ε̂ is multiplied by "
            f"1/√ᾱ = {start**-0.5:,.0f}; use --clip rederive, or another τ"
        )


def _lengths(family: Family, times: Times, steps: Sequence[int]) -> Sequence[int]:
    own = {length for length in (family.length, times.length) if length is not None}
    if len(own) > 1:
        raise ValueError(
            f"--sigma {family.name} has {family.length} rows, one per step, and --timesteps "
            f"{times.name} has {times.length} times; the numbers must be equal."
        )
    return tuple(own) or steps
