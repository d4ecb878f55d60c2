"""A grid of σ × τ × order × S as cells, each with a table of steps."""

import itertools
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from ..diffusion.reverse import StepTable, step_table
from .grammar import Family, Times, parse_sigma, parse_solver, parse_timesteps


class Cell(NamedTuple):
    """One sampler of a grid; `timesteps` names τ, and the solver unless it is the first order."""

    name: str
    sigma: str
    timesteps: str
    steps: int
    table: StepTable
    rederive: bool  # whether the official code clips x̂_0 here


def cells(
    alpha_bar: np.ndarray,
    sigmas: Iterable[str],
    timesteps: Iterable[str],
    steps: Sequence[int],
    solvers: Iterable[str] = ("first",),
) -> list[Cell]:
    """Every σ at every τ, solver and S; an array of σ or a list of times only at its own S."""
    made = []
    axes = itertools.product(
        map(parse_timesteps, timesteps), map(parse_solver, solvers), map(parse_sigma, sigmas)
    )
    for times, (solver_name, solver), family in axes:
        label = times.name if solver_name == "first" else f"{times.name} {solver_name}"
        for count in _lengths(family, times, steps):
            tau = times.choose(alpha_bar, count)
            table = step_table(alpha_bar, tau, family.schedule, solver, allow_repeats=times.repeats)
            name = f"{family.name} {label} S={count}"
            made.append(Cell(name, family.name, label, count, table, family.rederive))
    names = [cell.name for cell in made]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(
                f"the cell {name} is asked for twice; give each of --sigma, --steps, "
                "--solver and --timesteps once, or a LABEL= to distinguish two σ of one name."
            )
    return made


def _lengths(family: Family, times: Times, steps: Sequence[int]) -> Sequence[int]:
    own = {length for length in (family.length, times.length) if length is not None}
    if len(own) > 1:
        raise ValueError(
            f"--sigma {family.name} has {family.length} rows, one per step, and --timesteps "
            f"{times.name} has {times.length} times; the numbers must be equal."
        )
    return tuple(own) or steps
