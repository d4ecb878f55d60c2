"""The figures of an ablation's report: metrics against S, σ and noise by step, drift of x̂_0."""

import io
import textwrap
from collections.abc import Sequence
from functools import reduce
from operator import getitem
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

Cell = dict[str, Any]
# Distinguishable by colour-blind readers.
_COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#8c6d00", "#56b4e9", "#555555")
_MARKERS = "osD^vPX"


class Grid(NamedTuple):
    """The cells of a report by σ, τ and S, as in the paper's tables."""

    sigmas: list[str]
    timesteps: list[str]
    steps: list[int]
    at: dict[tuple[str, str, int], Cell]

    def row(self, timesteps: str, steps: int) -> dict[str, Cell]:
        """The cells of one τ and S, by σ."""
        return {
            s: self.at[s, timesteps, steps] for s in self.sigmas if (s, timesteps, steps) in self.at
        }


def grid_of(cells: Sequence[Cell]) -> Grid:
    """The cells, with σ and τ in order of first appearance."""
    at = {(cell["sigma"], cell["timesteps"], cell["steps"]): cell for cell in cells}
    sigmas, timesteps, steps = zip(*at, strict=True)
    return Grid(list(dict.fromkeys(sigmas)), list(dict.fromkeys(timesteps)), sorted(set(steps)), at)


def draw_figures(results: dict[str, Any], grid: Grid) -> dict[str, bytes]:
    """The PNGs metrics, steps and drift."""
    figures = {
        "metrics": _metrics_figure(results, grid),
        "steps": _steps_figure(results, grid),
        "drift": _drift_figure(grid),
    }
    return {name: _png(figure) for name, figure in figures.items()}


def _png(figure: Figure) -> bytes:
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=144, metadata={"Software": None})
    return out.getvalue()


def _finite(values: Sequence[Any]) -> np.ndarray:
    """Numbers to draw: missing or non-finite values become NaN, a gap in a line."""
    array = np.array(values, float)
    return np.where(np.isfinite(array), array, np.nan)


def _panels(count: int, most: int, grid: Grid) -> tuple[Figure, list[Axes]]:
    """A figure of `count` panels, at most `most` per row, with one legend of the σ families."""
    rows = -(-count // most)
    columns = -(-count // rows)
    figure = Figure(figsize=(10.8, 2.9 * rows + 0.5), layout="constrained")
    axes = [figure.add_subplot(rows, columns, i + 1) for i in range(count)]
    for axis in axes:
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    lines = [
        axes[0].plot([], [], **_style(i), label=_text(sigma))[0]
        for i, sigma in enumerate(grid.sigmas)
    ]
    figure.legend(handles=lines, loc="outside lower center", ncols=6, frameon=False)
    return figure, axes


def _style(i: int) -> dict[str, Any]:
    color, marker = _COLORS[i % len(_COLORS)], _MARKERS[i % len(_MARKERS)]
    return {"color": color, "marker": marker, "markersize": 4, "linewidth": 1.4}


def _text(name: str) -> str:
    return textwrap.fill(name.replace("$", r"\$"), 44)  # a lone $ would begin a formula


def _metrics_figure(results: dict[str, Any], grid: Grid) -> Figure:
    """Each metric against S, a line per σ; one column per τ, or three columns for a single τ."""
    metrics = results["metrics"]
    panels = [(key, timesteps) for key in metrics for timesteps in grid.timesteps]
    several = len(grid.timesteps) > 1
    figure, axes = _panels(len(panels), len(grid.timesteps) if several else 3, grid)
    for axis, (key, timesteps) in zip(axes, panels, strict=True):
        _draw_metric(axis, key, timesteps, grid, key in results["larger_is_better"])
        axis.set_title(_text(f"{metrics[key]}, {timesteps} τ"), fontsize=9)
    return figure


def _draw_metric(axis: Axes, key: str, timesteps: str, grid: Grid, is_share: bool) -> None:
    drawn: list[float] = []
    for i, sigma in enumerate(grid.sigmas):
        places = ((sigma, timesteps, count) for count in grid.steps)
        estimates = [grid.at[place]["metrics"][key] if place in grid.at else {} for place in places]
        value, low, high = (
            _finite([parts.get(name) for parts in estimates]) for name in ("value", "low", "high")
        )
        # Side by side, so that the bars do not overlap.
        x = np.array(grid.steps) * 1.025 ** (i - (len(grid.sigmas) - 1) / 2)
        bars = np.nan_to_num(np.maximum(np.stack([value - low, high - value]), 0))
        axis.errorbar(x, value, bars, **_style(i), capsize=2, elinewidth=1)
        drawn += value[~np.isnan(value)].tolist()
    axis.set_xscale("log")
    axis.set_xticks(grid.steps, [str(count) for count in grid.steps])
    axis.set_xticks([], minor=True)
    if not is_share and drawn and min(drawn) > 0 and max(drawn) > 15 * min(drawn):
        axis.set_yscale("log")
    axis.set_xlabel("S, reverse steps")


def _draw_steps(axis: Axes, cells: dict[str, Cell], path: tuple[str, ...], grid: Grid) -> None:
    """One line per σ over the times of its steps; sampling runs from left to right."""
    for i, sigma in enumerate(grid.sigmas):
        if sigma in cells:
            values = _finite(reduce(getitem, path, cells[sigma]))  # type: ignore[arg-type]
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
    figure, axes = _panels(len(panels), 2, grid)
    for axis, (count, name) in zip(axes, panels, strict=True):
        cells = grid.row(timesteps, count)
        _draw_steps(axis, cells, ("schedule", name), grid)
        axis.set_title(f"{titles[name]}\nS={count}, {_text(timesteps)} τ", fontsize=9)
    return figure


def _drift_figure(grid: Grid) -> Figure:
    """The root mean square of x̂_0 over the steps: a panel for each τ and S."""
    panels = [(name, n) for name in grid.timesteps for n in grid.steps if grid.row(name, n)]
    figure, axes = _panels(len(panels), 3, grid)
    figure.supylabel(r"root mean square of $\hat{x}_0$", fontsize=10)
    for axis, (timesteps, count) in zip(axes, panels, strict=True):
        _draw_steps(axis, grid.row(timesteps, count), ("x0_rms",), grid)
        axis.set_title(f"S={count}, {_text(timesteps)} τ", fontsize=9)
    return figure
