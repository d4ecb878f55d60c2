"""The grammar of σ, τ and the solver on the command line.

    σ     eta=0.5 | ddpm | hat | analytic[=η][,last=Y|off][,bounded=on|off]
          | [LABEL=]FILE | [LABEL=]MODULE:FUNCTION[(numbers)]
    τ     uniform | quadratic | … | official-quadratic | optimal | FILE | 1,21,…
    order first | adams=2 | dpmpp=2 | deis=3 | ipndm=4 | MODULE:FUNCTION[(numbers)]

A FUNCTION maps Steps to Sigmas, or for a solver (Steps, sigma) to a Correction. If numbers are
given, it is called with them and must return such a function, as `eta` does. MODULE is an
importable name, or the path of a Python file. A FILE is .npy, .csv or .json: σ, or σ and noise,
one row per step, noisiest first; or the times of τ.
"""

import csv
import inspect
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..diffusion.likelihood import elbo_costs
from ..diffusion.sigmas import SIGMAS, Sigmas, SigmaSchedule, analytic, custom, eta, sigma_hat
from ..diffusion.solvers import SOLVERS, Correction, Solver
from ..diffusion.timesteps import TIMESTEPS, official_timesteps, optimal_timesteps
from .estimates import Estimates
from .own import called, own_function

_FILES = (".npy", ".csv", ".json")
_FUNCTION = re.compile(r"(?P<module>[^()]+):(?P<function>\w+)(?:\((?P<numbers>.*)\))?")


class Family(NamedTuple):
    """A named σ schedule; `length` is the only S that it fits, or None."""

    name: str
    schedule: SigmaSchedule
    rederive: bool = False  # whether the official code clips x̂_0 with it
    length: int | None = None


class Times(NamedTuple):
    """A named τ: a function (ᾱ, S) → times, and the only S that it fits, or None."""

    name: str
    choose: Callable[[Any, int], np.ndarray]
    length: int | None = None
    repeats: bool = False  # whether a time may be visited twice, as in the official code


def parse_sigma(text: str, estimates: Callable[[], Estimates] | None = None) -> Family:
    """A σ schedule by its name on the command line; `estimates` are those of the model.

    >>> parse_sigma("eta=0.50").name, parse_sigma("hat").name, parse_sigma("ddim_jax:eta(0.3)").name
    ('eta=0.5', 'sigma-hat', 'ddim_jax:eta(0.3)')
    """
    first, equals, rest = text.partition("=")
    if first in SIGMAS:
        return _named_family(first, rest if equals else None)
    if re.match("analytic(=|,|$)", text):
        return _analytic(text, estimates)
    label, source = re.findall(r"(?s)^(?:([^=:()]+)=)?(.*)$", text)[0]
    path = Path(source)
    if path.suffix in _FILES:
        columns = _sigma_columns(path)
        return Family(label or path.name, custom(*columns), length=len(columns[0]))
    found = _FUNCTION.fullmatch(source)
    if not found:
        takes = ", ".join(f"{key}=VALUE" if _takes_number(key) else key for key in SIGMAS)
        takes += ", analytic=VALUE"
        raise ValueError(
            f"--sigma is {text}; give {takes}, or your own as [LABEL=]FILE ({', '.join(_FILES)}) "
            "or [LABEL=]MODULE:FUNCTION, with (numbers) where the function needs them."
        )
    return Family(label or source, _own_schedule(source, **found.groupdict()))


def _named_family(name: str, value: str | None) -> Family:
    make = SIGMAS[name]
    label = make.__name__.replace("_", "-")
    if not _takes_number(name):
        if value is not None:
            raise ValueError(
                f"--sigma is {name}={value}; {name} takes no value, and no label may be called so."
            )
        return Family(label, make(), rederive=make is sigma_hat)
    try:
        number = float(value or "")
    except ValueError as error:
        given = name if value is None else f"{name}={value}"
        raise ValueError(
            f"--sigma is {given}; give {name}=NUMBER (no label may be called {name})."
        ) from error
    return Family(f"{label}={number:g}", make(number))


def _analytic(text: str, estimates: Callable[[], Estimates] | None) -> Family:
    """Analytic-DPM with the mean of an η, 1 by default, bounded as in the published tables."""
    found = re.fullmatch(
        r"analytic(?:=(?P<eta>[0-9.eE+-]+))?(?:,last=(?P<last>off|[0-9.eE+-]+))?"
        r"(?:,bounded=(?P<bounded>on|off))?",
        text,
    )
    try:
        parts = found.groupdict() if found else {"eta": "none"}
        value = float(parts["eta"] or 1)
        last = None if parts["last"] == "off" else float(parts["last"] or 1)
    except ValueError as error:
        raise ValueError(
            f"--sigma is {text}; give analytic[=η][,last=Y|off][,bounded=on|off], such as "
            "analytic=1,last=2."
        ) from error
    mean, bounded = eta(value), parts["bounded"] != "off"

    def schedule(steps: Any) -> Sigmas:
        if estimates is None:
            raise ValueError(f"--sigma is {text}, which needs a model's estimates; not here.")
        power = estimates().epsilon_power
        return analytic(mean, power, bounded=bounded, last_noise=last)(steps)

    return Family(re.sub("^analytic(?=,|$)", "analytic=1", text), schedule)


def _takes_number(name: str) -> bool:
    return bool(inspect.signature(SIGMAS[name]).parameters)


def _own_schedule(source: str, module: str, function: str, numbers: str | None) -> SigmaSchedule:
    schedule = own_function(f"--sigma is {source}", module, function, numbers)

    def checked(steps: Any) -> Sigmas:
        sigmas = called(f"--sigma {source}", schedule, steps)
        if not isinstance(sigmas, Sigmas):
            raise ValueError(
                f"--sigma {source} gave a {type(sigmas).__name__}; it must map Steps to "
                "Sigmas(sigma, noise); a function that returns such a function needs (numbers)."
            )
        return sigmas

    return checked


def parse_solver(text: str) -> tuple[str, Solver]:
    """A solver and its name.

    >>> parse_solver("adams=2")[0], parse_solver("first")[0]
    ('adams=2', 'first')
    """
    name, equals, order = text.partition("=")
    if name in SOLVERS:
        if (name == "first") == bool(equals) or (equals and not re.fullmatch("[0-9]", order)):
            raise ValueError(
                f"--solver is {text[:40]}; give first, or {name}=ORDER such as adams=2, up to 9."
            )
        return text, SOLVERS[name](*([int(order)] if equals else []))
    found = _FUNCTION.fullmatch(text)
    if not found:
        names = ", ".join(name if name == "first" else f"{name}=ORDER" for name in SOLVERS)
        raise ValueError(f"--solver is {text}; give {names}, or your own MODULE:FUNCTION.")
    solver = own_function(f"--solver is {text}", **found.groupdict())

    def checked(steps: Any, sigma: Any) -> Correction:
        correction = called(f"--solver {text}", solver, steps, sigma)
        if not isinstance(correction, Correction):
            raise ValueError(
                f"--solver {text} gave a {type(correction).__name__}; it must map (Steps, sigma) "
                "to Correction(x_0, epsilon)."
            )
        return correction

    return text, checked


def parse_timesteps(text: str, estimates: Callable[[], Estimates] | None = None) -> Times:
    """A τ by its name, as a file, or as the times themselves; `estimates` are the model's.

    >>> parse_timesteps("1,101,301").choose(None, 3).tolist()
    [1, 101, 301]
    """
    if text in TIMESTEPS:
        return Times(text, TIMESTEPS[text])
    if text == "optimal" and estimates is not None:
        return Times(text, lambda alpha_bar, S: _optimal(alpha_bar, S, estimates()))
    official, _, kind = text.partition("-")
    if official == "official" and kind in ("uniform", "quadratic"):
        return Times(text, lambda bars, S: official_timesteps(len(bars) - 1, S, kind), repeats=True)
    path = Path(text)
    if path.suffix in _FILES:
        values = np.asarray(_read("timesteps", path), np.float64).ravel()
        name = path.name
    else:
        try:
            values, name = np.array([int(part) for part in text.split(",")], np.float64), text
        except ValueError as error:
            raise ValueError(
                f"--timesteps is {text}; give {', '.join(TIMESTEPS)}, optimal, "
                f"official-uniform, official-quadratic, a FILE "
                f"({', '.join(_FILES)}) of times, or times such as 1,21,41."
            ) from error
    times = values.astype(np.int64)
    if not np.array_equal(times, values):
        raise ValueError(
            f"--timesteps {text} has {values[times != values][0]}; times are integers."
        )
    return Times(name, lambda alpha_bar, S: times, len(times))


def _optimal(alpha_bar: np.ndarray, S: int, estimates: Estimates) -> np.ndarray:
    """The τ of the least ELBO cost for η = 1."""
    cost = elbo_costs(alpha_bar, np.nan_to_num(estimates.x_0_error), estimates.dimension)
    return optimal_timesteps(cost, S)


def _sigma_columns(path: Path) -> list[np.ndarray]:
    """σ, or σ and noise: (S,) or (S, 2), two CSV columns, or {"sigma": […], "noise": […]}."""
    values = _read("sigma", path)
    if isinstance(values, dict):
        if set(values) not in ({"sigma"}, {"sigma", "noise"}):
            raise ValueError(
                f"--sigma {path} has the keys {sorted(values)}; give sigma, or sigma and noise."
            )
        columns = [values[key] for key in ("sigma", "noise") if key in values]
    else:
        columns = [values] if values.ndim == 1 else list(values.T)
    if len(columns) not in (1, 2) or any(column.ndim != 1 or not len(column) for column in columns):
        shapes = [column.shape for column in columns]
        raise ValueError(
            f"--sigma {path} has columns of shape {shapes}; give σ, or σ and noise, by step."
        )
    return columns


def _read(flag: str, path: Path) -> Any:
    """The numbers in a file, as an array, or as a dict of arrays."""
    try:
        if path.suffix == ".npy":
            values: Any = np.load(path, allow_pickle=False)
        elif path.suffix == ".csv":
            with open(path, newline="", encoding="utf-8") as file:
                values = [[float(number) for number in row] for row in csv.reader(file) if row]
        else:
            values = json.loads(path.read_text("utf-8"))
        if isinstance(values, dict):
            return {key: np.asarray(column, np.float64) for key, column in values.items()}
        return np.asarray(values, np.float64)
    except OSError as error:
        raise ValueError(
            f"--{flag} {path} cannot be read ({error.strerror or error}); give an array file."
        ) from error
    except (ValueError, TypeError, RecursionError) as error:
        raise ValueError(f"--{flag} {path} is not an array of numbers ({error}).") from error
