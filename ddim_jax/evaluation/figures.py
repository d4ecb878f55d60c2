"""The figures of an ablation's report.

Metrics against S; the solvers of each σ; σ, noise and the solver's multiples by step; x̂_0's drift.
"""

import itertools
import textwrap
from collections.abc import Sequence
from functools import reduce
from operator import getitem
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..images import figure_png
from .tables import short_labels

Cell = dict[str, Any]
# Distinguishable by colour-blind readers.
_COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#8c6d00", "#56b4e9", "#555555")
_MARKERS = "osD^vPX*"
_MOST_NAMES = 6  # in a legend inside a panel
_LINES = ("-", "--", ":", "-.")
CAPTIONS = {
    "metrics": "Each metric against the number of steps, with its interval",
    "solvers": "The solvers of each σ: {metric}, with its interval",
    "steps": "The two standard deviations of every step, for the fewest and the most steps",
    "corrections": "What each solver adds to Eq. 12: the multiples of the newest predictions",
    "drift": "The root mean square of the predicted image, step by step",
}
_AGES = ("the newest prediction", "the one before", "two before", "three before")


class Grid(NamedTuple):
    """The cells of a report by σ, τ and S, as in the paper's tables."""

    sigmas: list[str]
    timesteps: list[str]
    steps: list[int]
    at: dict[tuple[str, str, int], Cell]
    titles: dict[str, str]  # of each τ and solver, by its name in `timesteps`

    def row(self, timesteps: str, steps: int) -> dict[str, Cell]:
        """The cells of one τ and S, by σ."""
        return {
            s: self.at[s, timesteps, steps] for s in self.sigmas if (s, timesteps, steps) in self.at
        }


def grid_of(cells: Sequence[Cell]) -> Grid:
    """The cells, with σ and τ in order of first appearance."""
    at = {(cell["sigma"], cell["timesteps"], cell["steps"]): cell for cell in cells}
    sigmas, _, steps = zip(*at, strict=True)
    titles = {cell["timesteps"]: _title(cell) for cell in cells}
    return Grid(list(dict.fromkeys(sigmas)), list(titles), sorted(set(steps)), at, titles)


def _title(cell: Cell) -> str:
    """The names of τ and, unless it is the first order, of the solver."""
    solver = cell["solver"]
    tau = f"{cell['timesteps'].removesuffix(f' {solver}')} τ"
    return tau if solver == "first" else f"{tau}, {solver}"


def draw_figures(results: dict[str, Any], grid: Grid) -> dict[str, tuple[str, bytes]]:
    """Caption and PNG of each figure; solvers and corrections only where there are any."""
    known = results["metrics"]
    key = next(name for name in ("w2_covariance", "frechet", *known) if name in known)
    _, recipe = short_labels(known)
    captions = CAPTIONS | {"metrics": f"{CAPTIONS['metrics']}{recipe and '. '}{recipe}"}
    figures = {
        "metrics": _metrics_figure(results, grid),
        "solvers": _solvers_figure(results, grid, key),
        "steps": _steps_figure(results, grid),
        "corrections": _corrections_figure(grid),
        "drift": _drift_figure(grid),
    }
    return {
        name: (captions[name].format(metric=results["metrics"][key]), figure_png(figure))
        for name, figure in figures.items()
        if figure is not None
    }


def _finite(values: Any) -> np.ndarray:
    """Numbers to draw: missing or non-finite values become NaN, a gap in a line."""
    array = np.array(values, float)
    return np.where(np.isfinite(array), array, np.nan)


def _panels(
    count: int, most: int, names: Sequence[str], inside: bool = True
) -> tuple[Figure, list[Axes]]:
    """A figure of `count` panels, at most `most` per row, with a legend of the lines' names.

    The legend stands inside every panel; not with many names, or if it is not to be there.
    """
    rows = -(-count // most)
    columns = -(-count // rows)
    figure = Figure(figsize=(8.8, 2.7 * rows + 0.5), layout="constrained")
    axes = [figure.add_subplot(rows, columns, i + 1) for i in range(count)]
    for axis in axes:
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    lines = [
        axes[0].plot([], [], **_style(i), label=_text(name))[0] for i, name in enumerate(names)
    ]
    if not inside or len(names) > _MOST_NAMES:
        figure.legend(handles=lines, loc="outside lower center", ncols=5, frameon=False)
    else:
        for axis in axes:
            axis.legend(
                handles=lines, fontsize=8, framealpha=0.5, edgecolor="none", handlelength=1.3,
                labelspacing=0.25, borderpad=0.2,
            )  # fmt: skip
    return figure, axes


def _style(i: int) -> dict[str, Any]:
    """A look of its own for every line: colour and marker for 56 of them, and dashes."""
    color, marker = _COLORS[i % len(_COLORS)], _MARKERS[i % len(_MARKERS)]
    line = _LINES[i // len(_COLORS) % len(_LINES)]
    return {
        "color": color, "marker": marker, "linestyle": line, "markersize": 4, "linewidth": 1.4,
    }  # fmt: skip


def _text(name: str) -> str:
    return textwrap.fill(name.replace("$", r"\$"), 32)  # a lone $ would begin a formula


def _metrics_figure(results: dict[str, Any], grid: Grid) -> Figure:
    """Each metric against S, a line per σ; one column per τ, or three columns for a single τ."""
    metrics, _ = short_labels(results["metrics"])
    panels = [(key, timesteps) for key in metrics for timesteps in grid.timesteps]
    several = len(grid.timesteps) > 1
    figure, axes = _panels(len(panels), min(len(grid.timesteps), 4) if several else 3, grid.sigmas)
    for axis, (key, timesteps) in zip(axes, panels, strict=True):
        lines = [(sigma, timesteps) for sigma in grid.sigmas]
        _draw_metric(axis, key, lines, grid, key in results["larger_is_better"])
        title = _text(metrics[key])
        axis.set_title(
            f"{title}\n{_text(grid.titles[timesteps])}" if several else title, fontsize=9
        )
    return figure


def _solvers_figure(results: dict[str, Any], grid: Grid, key: str) -> Figure | None:
    """One metric against S: a panel for each σ, a line for each τ and solver."""
    if not any(cell["solver"] != "first" for cell in grid.at.values()):
        return None
    figure, axes = _panels(len(grid.sigmas), 3, list(grid.titles.values()))
    for axis, sigma in zip(axes, grid.sigmas, strict=True):
        lines = [(sigma, timesteps) for timesteps in grid.timesteps]
        _draw_metric(axis, key, lines, grid, key in results["larger_is_better"])
        axis.set_title(_text(sigma), fontsize=9)
    return figure


def _draw_metric(
    axis: Axes, key: str, lines: Sequence[tuple[str, str]], grid: Grid, is_share: bool
) -> None:
    """A line over S for each σ and τ; with a single S, points side by side."""
    drawn: list[float] = []
    for i, line in enumerate(lines):
        places = [(*line, count) for count in grid.steps]
        estimates = [grid.at[place]["metrics"][key] if place in grid.at else {} for place in places]
        value, low, high = (
            _finite([parts.get(name) for parts in estimates]) for name in ("value", "low", "high")
        )
        # Side by side, so that the bars do not overlap.
        x = np.array(grid.steps) * 1.025 ** (i - (len(lines) - 1) / 2)
        x = x if len(grid.steps) > 1 else np.array([i])
        bars = np.nan_to_num(np.maximum(np.stack([value - low, high - value]), 0))
        axis.errorbar(x, value, bars, **_style(i), capsize=2, elinewidth=1)
        drawn += value[~np.isnan(value)].tolist()
    if len(grid.steps) > 1:
        axis.set_xscale("log")
        axis.set_xticks(grid.steps, [str(count) for count in grid.steps])
        axis.set_xticks([], minor=True)
        axis.set_xlabel("S, reverse steps")
    else:
        axis.set_xticks([])
        axis.set_xlim(-1, len(lines))
        axis.set_xlabel(f"S={grid.steps[0]}")
    if not is_share and drawn and min(drawn) > 0 and max(drawn) > 15 * min(drawn):
        axis.set_yscale("log")


def _draw_steps(axis: Axes, cells: dict[str, Cell], path: tuple[str, ...], grid: Grid) -> None:
    """One line per σ over the times of its steps; sampling runs from left to right."""
    for i, sigma in enumerate(grid.sigmas):
        if sigma in cells:
            values = _finite(reduce(getitem, path, cells[sigma]))
            style = _style(i) | ({"marker": ""} if len(values) > 20 else {})
            axis.plot(cells[sigma]["schedule"]["t"], values, **style)
    axis.invert_xaxis()
    axis.set_xlabel("t, noise → data")


def _steps_figure(results: dict[str, Any], grid: Grid) -> Figure:
    """The two standard deviations of the steps, for the baseline's τ at smallest and largest S."""
    (timesteps,) = (
        cell["timesteps"] for cell in results["cells"] if cell["id"] == results["baseline"]
    )
    steps = [count for count in grid.steps if grid.row(timesteps, count)]
    titles = {
        "sigma": "sigma, under the square root in the mean",
        "noise": "noise, which multiplies the fresh Gaussian",
    }
    panels = [(count, name) for count in dict.fromkeys([steps[0], steps[-1]]) for name in titles]
    figure, axes = _panels(len(panels), 2, grid.sigmas)
    for axis, (count, name) in zip(axes, panels, strict=True):
        cells = grid.row(timesteps, count)
        _draw_steps(axis, cells, ("schedule", name), grid)
        axis.set_title(f"{titles[name]}\nS={count}, {_text(grid.titles[timesteps])}", fontsize=9)
    return figure


def _corrections_figure(grid: Grid) -> Figure | None:
    """The multiples against λ, by age of the prediction: fewest and most steps of each solver."""
    forms = {"x_0_correction": r"$\hat{x}_0$", "epsilon_correction": r"$\hat{\epsilon}$"}
    panels = []
    for name, form in itertools.product(grid.timesteps, forms):
        rows = {count: grid.row(name, count) for count in grid.steps}
        steps = [
            count
            for count, row in rows.items()
            if any(table.size for table in _multiples(row, form))
        ]
        panels += [(rows[S], form, S, name) for S in dict.fromkeys(steps[:1] + steps[-1:])]
    if not panels:
        return None
    figure, axes = _panels(len(panels), 2, grid.sigmas, inside=False)
    for axis, (row, form, count, name) in zip(axes, panels, strict=True):
        ages = 0
        for sigma, table in zip(row, _multiples(row, form), strict=True):
            ages = max(ages, table.shape[1])
            for age, column in enumerate(table.T):
                look = _style(grid.sigmas.index(sigma)) | {"linestyle": _LINES[age % len(_LINES)]}
                axis.plot(_log_snr(row[sigma]), column, **look | {"markersize": 2.5})
        looks = [
            axis.plot([], [], color="#555555", linestyle=_LINES[age % len(_LINES)], label=label)[0]
            for age, label in enumerate(_AGES[:ages])
        ]
        axis.legend(handles=looks, fontsize=7, frameon=False)
        axis.set_xlabel(r"$\lambda$, noise → data")
        title = f"{_text(grid.titles[name])}, S={count}: multiples of {forms[form]}"
        axis.set_title(title, fontsize=9)
    return figure


def _multiples(row: dict[str, Cell], form: str) -> list[np.ndarray]:
    """The multiples (S, K) of each cell; (S, 0) where all of them are 0."""
    tables = [np.array(cell["schedule"][form], float) for cell in row.values()]
    return [table if np.any(table) else table[:, :0] for table in tables]


def _log_snr(cell: Cell) -> np.ndarray:
    """λ = ½ ln(ᾱ/(1−ᾱ)) at the start of each step; NaN where it is infinite."""
    bars = np.array(cell["schedule"]["alpha_bar_t"], float)
    with np.errstate(divide="ignore"):
        return _finite(np.log(bars / (1 - bars)) / 2)


def _drift_figure(grid: Grid) -> Figure:
    """The root mean square of x̂_0 over the steps: a panel for each τ and S."""
    panels = [(name, n) for name in grid.timesteps for n in grid.steps if grid.row(name, n)]
    figure, axes = _panels(len(panels), 3, grid.sigmas)
    figure.supylabel(r"root mean square of $\hat{x}_0$", fontsize=10)
    for axis, (timesteps, count) in zip(axes, panels, strict=True):
        _draw_steps(axis, grid.row(timesteps, count), ("x0_rms",), grid)
        axis.set_title(f"S={count}, {_text(grid.titles[timesteps])}", fontsize=9)
    return figure
