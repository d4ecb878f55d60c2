"""Samplers in files: a whole StepTable as .npz, one flag in every command.

A file has the arrays t, sigma, noise, x_0_correction and epsilon_correction, in sampling order, and
a recipe. `--sampler` takes such a file, or the name of a cell: "SIGMA TIMESTEPS [SOLVER] S=NUMBER".
"""

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..diffusion.reverse import StepTable, step_table
from ..diffusion.sigmas import custom
from ..diffusion.solvers import Correction
from ..files import read_arrays, to_json, whole
from .estimates import Estimates
from .grid import Cell, cells

_COLUMNS = ("t", "sigma", "noise", "x_0_correction", "epsilon_correction")
_NAME = re.compile(
    r"(?P<sigma>\S+) (?P<timesteps>\S+)(?: (?P<solver>\S+))? S=(?P<steps>[0-9]{1,9})"
)


def save_sampler(path: Path, table: StepTable, recipe: dict[str, Any]) -> None:
    """Write a table and what it is."""
    with whole(path) as partial:
        columns = {name: np.asarray(getattr(table, name)) for name in _COLUMNS}
        np.savez(partial, **columns, recipe=np.array(to_json(recipe)))  # type: ignore[arg-type]


def load_sampler(path: Path, alpha_bar: np.ndarray) -> tuple[StepTable, dict[str, Any]]:
    """The table and the recipe of a file, checked for a model's ᾱ."""
    arrays = read_arrays(path)
    if arrays is None or not set(_COLUMNS) <= set(arrays):
        raise ValueError(
            f"--sampler {path} is not a sampler file; give an .npz with {', '.join(_COLUMNS)}, as "
            "`sample.py learn` writes it, or a cell such as 'eta=0 quadratic S=10'."
        )
    t, sigma, noise, x_0, epsilon = (arrays[name] for name in _COLUMNS)
    try:
        table = step_table(
            alpha_bar, t[::-1], custom(sigma, noise), lambda *_: Correction(x_0, epsilon)
        )
        recipe = json.loads(str(arrays.get("recipe", "{}")))
    except (ValueError, IndexError) as error:
        raise ValueError(f"--sampler {path} does not fit the model: {error}") from error
    bars = recipe.get("alpha_bar_t")
    if bars is not None and not np.allclose(bars, alpha_bar[t], rtol=1e-6, atol=0):
        raise ValueError(
            f"--sampler {path} was made for another noise schedule, whose ᾱ at t = {t[0]} is "
            f"{bars[0]:.6g} and not {alpha_bar[t[0]]:.6g}."
        )
    return table, recipe


def sampler_cells(
    alpha_bar: np.ndarray, texts: Sequence[str], estimates: Callable[[], Estimates] | None = None
) -> list[Cell]:
    """The cell of each --sampler: a file by its name, or a cell by that of the grid's."""
    made = []
    for text in texts:
        found = _NAME.fullmatch(text)
        if found:
            sigma, timesteps, solver, steps = found.groups()
            made += cells(
                alpha_bar, [sigma], [timesteps], [int(steps)], [solver or "first"], estimates
            )
        else:
            table, _ = load_sampler(Path(text), alpha_bar)
            name, steps = Path(text).stem, len(table.t)
            made.append(
                Cell(f"{name} S={steps}", name, "of its own", steps, table, False, "its own")
            )
    names = [cell.name for cell in made]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"--sampler has {name} twice; give each once, under its own name.")
    return made
