"""A grid of σ × τ × S as cells, each of them a table of steps."""

import csv
import dataclasses
import importlib
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax.numpy as jnp
import numpy as np

from ..diffusion.prediction import Denoiser, Prediction, carry, clip_x0
from ..diffusion.reverse import StepTable, step_table
from ..diffusion.sigmas import Sigmas, SigmaSchedule, custom, eta, sigma_hat
from ..diffusion.timesteps import (
    linspace_timesteps,
    quadratic_timesteps,
    trailing_timesteps,
    uniform_timesteps,
)

Kind = Literal["uniform", "quadratic", "trailing", "linspace"]
SEQUENCES: dict[Kind, Callable[[int, int], np.ndarray]] = {
    "uniform": uniform_timesteps,
    "quadratic": quadratic_timesteps,
    "trailing": trailing_timesteps,
    "linspace": linspace_timesteps,
}
CLIPS = ("none", "x0", "rederive")
PAPER_ETAS = (0.0, 0.2, 0.5, 1.0)  # Table 1, with σ̂


class Family(NamedTuple):
    """A named σ schedule; `length` is the S that it is for, None: any."""

    name: str
    schedule: SigmaSchedule
    rederive: bool = False  # whether the official code clips x̂_0 with it
    length: int | None = None


class Cell(NamedTuple):
    """One sampler of a grid."""

    name: str
    family: Family
    kind: Kind
    steps: int
    table: StepTable


@dataclasses.dataclass(frozen=True)
class GridFlags:
    """Which samplers are compared; without --eta, --sigma-hat and --sigma it is the paper's Table 1."""

    eta: tuple[float, ...] = ()
    """η of the paper's family: 0 is DDIM, 1 is DDPM."""
    sigma_hat: bool = False
    """Add σ̂, DDPM's larger noise."""
    sigma: tuple[str, ...] = ()
    """Your own: FILE.npy, .csv or .json with σ (and noise) by step, noisiest first, or MODULE:FUNCTION, Steps → Sigmas."""
    steps: tuple[int, ...] = ()
    """S, one or more; empty: 10 20 50 100 1000, and on a CPU 5 10 20 50."""
    timesteps: tuple[Kind, ...] = ("quadratic",)
    """Sub-sequences τ; quadratic is the paper's for CIFAR-10."""

    def families(self) -> list[Family]:
        """The σ schedules.

        Raises:
            ValueError: a file or a function that gives no σ.
        """
        default = not (self.eta or self.sigma_hat or self.sigma)
        families = [
            Family(f"eta={value:g}", eta(value)) for value in (PAPER_ETAS if default else self.eta)
        ]
        if default or self.sigma_hat:
            families.append(Family("sigma-hat", sigma_hat(), rederive=True))
        return families + [_own(name) for name in self.sigma]

    def cells(self, alpha_bar: np.ndarray, steps: tuple[int, ...]) -> list[Cell]:
        """Every σ at every τ and S; a σ that came as an array is at its own S only.

        Raises:
            ValueError: a σ, τ or S out of range, or a cell asked for twice.
        """
        cells = []
        for kind in self.timesteps:
            for family in self.families():
                for count in steps if family.length is None else (family.length,):
                    table = step_table(
                        alpha_bar, SEQUENCES[kind](len(alpha_bar) - 1, count), family.schedule
                    )
                    cells.append(
                        Cell(f"{family.name} {kind} S={count}", family, kind, count, table)
                    )
        names = [cell.name for cell in cells]
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise ValueError(
                f"the cell {twice} is asked for twice; give each of --eta, --sigma, --steps, --timesteps once."
            )
        return cells


def clipped(denoise: Denoiser, mode: Any, alpha_bar: np.ndarray) -> Denoiser:
    """A Denoiser with its x̂_0 clipped or not: a traced choice among CLIPS, so that it compiles once for all.

    Args:
        denoise: called once a step, whatever the mode.
        mode: index into CLIPS, a scalar.
        alpha_bar: ᾱ_0 … ᾱ_T.
    """

    def chosen(x_t: Any, t: Any) -> Prediction:
        plain = denoise(x_t, t)
        kept, followed = (
            clip_x0(lambda *_: plain, rederive, alpha_bar)(x_t, t) for rederive in (False, True)
        )
        leaves = zip(plain, kept, followed, strict=True)
        return Prediction(
            *(
                jnp.where(mode == 2, two, jnp.where(mode == 1, one, none))
                for none, one, two in leaves
            )
        )

    return carry(chosen, alpha_bar, getattr(denoise, "kind", None))


def _own(name: str) -> Family:
    """A σ schedule out of a file, or a Python function."""
    path = Path(name)
    if path.suffix in (".npy", ".csv", ".json"):
        columns = _read(path)
        return Family(path.name, custom(*columns), length=len(columns[0]))
    module, colon, function = name.partition(":")
    if not colon:
        raise ValueError(
            f"--sigma is {name}; give FILE.npy, FILE.csv, FILE.json, or MODULE:FUNCTION."
        )
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        schedule = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise ValueError(
            f"--sigma is {name}, which cannot be imported ({error}); give MODULE:FUNCTION."
        ) from error

    def checked(steps: Any) -> Sigmas:
        found = schedule(steps)
        if not isinstance(found, Sigmas):
            raise ValueError(
                f"--sigma {name} gave a {type(found).__name__}; it must map Steps to Sigmas(sigma, noise)."
            )
        return found

    return Family(name, checked)


def _read(path: Path) -> tuple[np.ndarray, ...]:
    """σ, or σ and noise: an array (S,) or (S, 2), two CSV columns, or a JSON list or {"sigma": […], "noise": […]}."""
    try:
        if path.suffix == ".npy":
            values: Any = np.load(path, allow_pickle=False)
        elif path.suffix == ".csv":
            with open(path, newline="") as file:
                values = [[float(number) for number in row] for row in csv.reader(file) if row]
        else:
            values = json.loads(path.read_text())
        if isinstance(values, dict):
            columns = [
                np.asarray(values[key], np.float64) for key in ("sigma", "noise") if key in values
            ]
        else:
            array = np.asarray(values, np.float64)
            columns = [array] if array.ndim == 1 else list(array.T)
    except OSError as error:
        raise ValueError(
            f"--sigma {path} cannot be read ({error.strerror or error}); give the path of an array of σ."
        ) from error
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"--sigma {path} holds no array of numbers ({error}); give one σ a step."
        ) from error
    if len(columns) not in (1, 2) or any(column.ndim != 1 or not len(column) for column in columns):
        shapes = [column.shape for column in columns]
        raise ValueError(
            f"--sigma {path} has columns of shape {shapes}; give σ, or σ and noise, a row a step."
        )
    return tuple(columns)
