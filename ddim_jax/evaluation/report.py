"""The report of an ablation: numbers for programs, tables and figures for people, and one page that shows the images.

Everything is computed from the results and the sprites alone, so the same input gives the same bytes.
"""

import base64
import csv
import io
import json
import re
import textwrap
from collections.abc import Iterable, Sequence
from html import escape
from importlib.resources import files
from math import floor, isfinite, log, log10
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

# DDIM paper, arXiv:2010.02502, Table 1, the CIFAR-10 half.
_PAPER_STEPS = (10, 20, 50, 100, 1000)
_PAPER_FID = {
    "eta=0": (13.36, 6.84, 4.67, 4.16, 4.04),
    "eta=0.2": (14.04, 7.11, 4.77, 4.25, 4.09),
    "eta=0.5": (16.66, 8.35, 5.25, 4.46, 4.29),
    "eta=1": (41.07, 18.36, 8.01, 5.78, 4.73),
    "sigma-hat": (367.43, 133.37, 32.72, 9.99, 3.17),
}
_PAPER_TITLE = "The paper's Table 1: FID of CIFAR-10, 50k samples, quadratic τ (another network, data and metric: not comparable)"
_COLORS = (
    "#0072b2",
    "#d55e00",
    "#009e73",
    "#cc79a7",
    "#8c6d00",
    "#56b4e9",
    "#555555",
)  # told apart by colour-blind readers
_MARKERS = "osD^vPX"
_MISSING = "–"


class _Grid(NamedTuple):
    """The cells by their place in the paper's layout."""

    sigmas: list[str]
    kinds: list[str]
    steps: list[int]
    at: dict[tuple[str, str, int], dict[str, Any]]


def write_report(results: dict[str, Any], sprites: dict[str, np.ndarray], directory: Path) -> None:
    """Write results.json, results.csv, table.md, metrics.png, steps.png, drift.png and index.html.

    Each file is replaced as a whole, so a reader never sees half of one, and the same input gives the same bytes.

    Args:
        results: settings, versions and cells, as an ablation collects them. A cell that is not sampled yet may lack all but
            `id`, `sigma`, `timesteps` and `steps`; numbers that are not finite are null in JSON.
        sprites: cell id → uint8 (K, H, W, C), C = 1 or 3, the first K images of the cell; cells without images are left out.
        directory: where to; it is made.

    Raises:
        ValueError: no cells, two cells in one place, a baseline or a sprite that is no cell, or sprites of unequal shapes.
    """
    as_given = _json(results, indent=1) + "\n"
    results = {
        "larger_is_better": [],
        **results,
        "cells": [_complete(cell) for cell in results["cells"]],
    }
    _check(results, sprites)
    grid = _grid(results["cells"])
    figures = {"metrics": _png(_metrics_figure(results, grid)), "steps": _png(_steps_figure(results, grid)),
               "drift": _png(_drift_figure(grid))}  # fmt: skip
    directory.mkdir(parents=True, exist_ok=True)
    texts = {"results.json": as_given, "results.csv": _csv(results), "table.md": _markdown(results, grid),
             "index.html": _page(results, grid, sprites, figures)}  # fmt: skip
    contents = {name: text.encode() for name, text in texts.items()} | {
        f"{name}.png": png for name, png in figures.items()
    }
    for name, content in contents.items():
        temporary = directory / f".{name}.tmp"
        temporary.write_bytes(content)
        temporary.replace(directory / name)


def _complete(cell: dict[str, Any]) -> dict[str, Any]:
    """A cell with all keys: what is not measured yet is empty."""
    schedule: dict[str, list[float]] = {"t": [], "s": [], "sigma": [], "noise": []}
    empty: dict[str, Any] = {
        "metrics": {},
        "difference": {},
        "seconds": None,
        "network_calls": None,
        "schedule": schedule,
    }
    return empty | {"x0_rms": []} | cell


def _check(results: dict[str, Any], sprites: dict[str, np.ndarray]) -> None:
    ids = [cell["id"] for cell in results["cells"]]
    if not ids:
        raise ValueError(
            "the results have no cells; an ablation needs one σ schedule and one number of steps."
        )
    if len(
        {(cell["sigma"], cell["timesteps"], cell["steps"]) for cell in results["cells"]} | set(ids)
    ) != 2 * len(ids):
        raise ValueError(
            f"two of the cells {ids} have one name or one σ, τ and S; each needs its own."
        )
    if results["baseline"] not in ids:
        raise ValueError(f"baseline is {results['baseline']!r}; it must be one of the cells {ids}.")
    if unknown := sprites.keys() - set(ids):
        raise ValueError(f"sprites are given for {sorted(unknown)}, not among the cells {ids}.")
    shapes = {images.shape for images in sprites.values()}
    if len(shapes) > 1 or any(len(shape) != 4 or shape[3] not in (1, 3) for shape in shapes):
        raise ValueError(
            f"the sprites have the shapes {sorted(shapes)}; all must have one (K, H, W, C), C = 1 or 3."
        )


def _grid(cells: Iterable[dict[str, Any]]) -> _Grid:
    at = {(cell["sigma"], cell["timesteps"], cell["steps"]): cell for cell in cells}
    return _Grid(
        list(dict.fromkeys(s for s, _, _ in at)),
        list(dict.fromkeys(k for _, k, _ in at)),
        sorted({n for *_, n in at}),
        at,
    )


# Numbers and files for programs


def _plain(value: Any) -> Any:
    """A value as JSON has it: NumPy's numbers as Python's, what is not finite as None, and what it does not know as text."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [_plain(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float):
        return value if isfinite(value) else None
    return value if value is None or isinstance(value, bool | int | str) else str(value)


def _json(value: Any, indent: int | None = None) -> str:
    return json.dumps(_plain(value), indent=indent, allow_nan=False)


def _csv(results: dict[str, Any]) -> str:
    parts = {"value": "", "low": "_low", "high": "_high"}
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    columns = [key + suffix for key in results["metrics"] for suffix in parts.values()]
    writer.writerow(
        ["id", "sigma", "timesteps", "steps", "n", *columns, "seconds", "network_calls"]
    )
    for cell in results["cells"]:
        values = [
            cell["metrics"].get(key, {}).get(part) for key in results["metrics"] for part in parts
        ]
        row = [cell["id"], cell["sigma"], cell["timesteps"], cell["steps"], results["n"], *values]
        writer.writerow([*row, cell["seconds"], cell["network_calls"]])
    return out.getvalue()


# Text for people


def _number(value: Any) -> str:
    """Four significant digits."""
    if value is None or not isfinite(value):
        return _MISSING if value is None else str(value)
    if value == 0 or not 1e-4 <= abs(value) < 1e6:
        return "0" if value == 0 else f"{value:.3e}"
    return f"{value:.{max(0, 3 - floor(log10(abs(value))))}f}"


def _interval(estimate: dict[str, Any]) -> str:
    return f"[{_number(estimate['low'])}, {_number(estimate['high'])}]" if "low" in estimate else ""


def _estimate(estimate: dict[str, Any] | None) -> str:
    return f"{_number(estimate['value'])} {_interval(estimate)}".strip() if estimate else _MISSING


def _paper_table(grid: _Grid) -> list[list[str]]:
    """Header and rows of what the paper has for the rows and columns of the grid; empty where it has nothing."""
    steps = [n for n in grid.steps if n in _PAPER_STEPS]
    sigmas = [sigma for sigma in grid.sigmas if sigma in _PAPER_FID]
    rows = [
        [sigma, *(f"{_PAPER_FID[sigma][_PAPER_STEPS.index(n)]:.2f}" for n in steps)]
        for sigma in sigmas
    ]
    return [["", *(f"S={n}" for n in steps)], *rows] if steps and rows else []


def _summary(results: dict[str, Any]) -> str:
    """How the grid was computed, in one line."""
    return (
        f"{len(results['cells'])} cells, n={results['n']:,} images a cell, seed {results['seed']}, on {results['device']}; "
        f"{results['compilations']} compilation{'s' * (results['compilations'] != 1)}, {results['wall_seconds']:,.0f} s"
    )


def _source(results: dict[str, Any]) -> str:
    return f"Run {results['run']}" + (f", oracle {results['oracle']}" if results["oracle"] else "")


def _better(results: dict[str, Any], key: str) -> str:
    return "larger" if key in results["larger_is_better"] else "smaller"


def _markdown(results: dict[str, Any], grid: _Grid) -> str:
    def table(rows: Sequence[Sequence[str]]) -> str:
        lines = [
            "| " + " | ".join(" ".join(text.split()).replace("|", "\\|") for text in row) + " |"
            for row in rows
        ]
        return "\n".join([lines[0], "|---" * len(rows[0]) + "|", *lines[1:]])

    parts = [
        f"# {results['name']}",
        f"{_source(results)}. {_summary(results)}. Baseline: {results['baseline']}.",
    ]
    for key, label in results["metrics"].items():
        for kind in grid.kinds:
            rows = [["", *(f"S={n}" for n in grid.steps)]]
            for sigma in grid.sigmas:
                cells = (grid.at.get((sigma, kind, n), {"metrics": {}}) for n in grid.steps)
                rows.append([sigma, *(_estimate(cell["metrics"].get(key)) for cell in cells)])
            parts += [f"## {label}, {kind} τ ({_better(results, key)} is better)", table(rows)]
    if paper := _paper_table(grid):
        parts += [f"## {_PAPER_TITLE}", table(paper)]
    return "\n\n".join(parts) + "\n"


# Figures


def _png(figure: Figure) -> bytes:
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=144, metadata={"Software": None})
    return out.getvalue()


def _finite(values: Sequence[Any]) -> np.ndarray:
    """Numbers to draw: what is missing or not finite is NaN, a gap in a line."""
    array = np.array(values, float)
    return np.where(np.isfinite(array), array, np.nan)


def _panels(count: int, most: int, grid: _Grid) -> tuple[Figure, list[Axes]]:
    """A figure of `count` panels, at most so many a row, with one legend of the σ families."""
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
    return {
        "color": _COLORS[i % len(_COLORS)],
        "marker": _MARKERS[i % len(_MARKERS)],
        "markersize": 4,
        "linewidth": 1.4,
    }


def _text(name: str) -> str:
    return textwrap.fill(name.replace("$", r"\$"), 44)  # a lone $ would begin a formula


def _metrics_figure(results: dict[str, Any], grid: _Grid) -> Figure:
    """Each metric against S, a line a σ family; one column a τ, or three where there is one τ."""
    panels = [(key, kind) for key in results["metrics"] for kind in grid.kinds] or [
        ("", kind) for kind in grid.kinds
    ]
    figure, axes = _panels(len(panels), len(grid.kinds) if len(grid.kinds) > 1 else 3, grid)
    for axis, (key, kind) in zip(axes, panels, strict=True):
        seen = []
        for i, sigma in enumerate(grid.sigmas):
            cells = [
                grid.at.get((sigma, kind, n), {"metrics": {}})["metrics"].get(key, {})
                for n in grid.steps
            ]
            value = _finite([cell.get("value") for cell in cells])
            low, high = (_finite([cell.get(end) for cell in cells]) for end in ("low", "high"))
            x = np.array(grid.steps) * 1.025 ** (
                i - (len(grid.sigmas) - 1) / 2
            )  # beside one another, so that bars are seen
            bars = np.nan_to_num(np.maximum(np.stack([value - low, high - value]), 0))
            axis.errorbar(x, value, bars, **_style(i), capsize=2, elinewidth=1)
            seen += [y for y in value if not np.isnan(y)]
        axis.set_xscale("log")
        axis.set_xticks(grid.steps, [str(n) for n in grid.steps])
        axis.set_xticks([], minor=True)
        if seen and min(seen) > 0 and max(seen) > 15 * min(seen):
            axis.set_yscale("log")
        axis.set_xlabel("S, reverse steps")
        axis.set_title(
            _text(f"{results['metrics'].get(key, 'no metrics yet')}, {kind} τ"), fontsize=9
        )
    return figure


def _draw_steps(
    axis: Axes, cells: dict[str, list[float]], times: dict[str, list[int]], grid: _Grid
) -> None:
    """One line a σ family over the times of its steps; sampling runs from left to right."""
    for i, sigma in enumerate(grid.sigmas):
        values = _finite(cells.get(sigma, []))
        if len(values):
            axis.plot(
                times[sigma], values, **_style(i) | ({"marker": ""} if len(values) > 20 else {})
            )
    axis.invert_xaxis()
    axis.set_xlabel("t, noise → data")


def _at(grid: _Grid, kind: str, steps: int) -> dict[str, dict[str, Any]]:
    return {
        sigma: grid.at[sigma, kind, steps]
        for sigma in grid.sigmas
        if (sigma, kind, steps) in grid.at
    }


def _steps_figure(results: dict[str, Any], grid: _Grid) -> Figure:
    """The two standard deviations of the steps, for the fewest and the most steps of the baseline's τ."""
    kind = next(cell["timesteps"] for cell in results["cells"] if cell["id"] == results["baseline"])
    steps = [n for n in grid.steps if _at(grid, kind, n)]
    panels = [
        (n, name) for n in dict.fromkeys([steps[0], steps[-1]]) for name in ("sigma", "noise")
    ]
    figure, axes = _panels(len(panels), 2, grid)
    titles = {
        "sigma": "sigma, under the root of the mean",
        "noise": "noise, times the fresh Gaussian",
    }
    for axis, (n, name) in zip(axes, panels, strict=True):
        schedules = {sigma: cell["schedule"] for sigma, cell in _at(grid, kind, n).items()}
        _draw_steps(
            axis,
            {s: v[name] for s, v in schedules.items()},
            {s: v["t"] for s, v in schedules.items()},
            grid,
        )
        axis.set_title(f"{titles[name]}\nS={n}, {_text(kind)} τ", fontsize=9)
    return figure


def _drift_figure(grid: _Grid) -> Figure:
    """The root mean square of x̂_0 over the steps: a panel for each τ and S."""
    panels = [(kind, n) for kind in grid.kinds for n in grid.steps if _at(grid, kind, n)]
    figure, axes = _panels(len(panels), 3, grid)
    figure.supylabel(r"root mean square of $\hat{x}_0$", fontsize=10)
    for axis, (kind, n) in zip(axes, panels, strict=True):
        cells = _at(grid, kind, n)
        _draw_steps(
            axis,
            {s: c["x0_rms"] for s, c in cells.items()},
            {s: c["schedule"]["t"] for s, c in cells.items()},
            grid,
        )
        axis.set_title(f"S={n}, {_text(kind)} τ", fontsize=9)
    return figure


# The page


def _data_uri(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode()


def _sprite_sheet(images: UInt8[np.ndarray, "K H W C"]) -> bytes:
    """All images of a cell in one PNG, one below the other."""
    count, height, width, channels = images.shape
    out = io.BytesIO()
    sheet = images.reshape(count * height, width, channels)
    Image.fromarray(sheet[..., 0] if channels == 1 else sheet).save(out, "PNG", optimize=True)
    return out.getvalue()


def _verdict(results: dict[str, Any], cell: dict[str, Any], key: str) -> str:
    """Baseline, better or worse, where the interval of the paired difference leaves out 0, or nothing."""
    if cell["id"] == results["baseline"]:
        return "baseline"
    low, high = (cell["difference"].get(key, {}).get(end) for end in ("low", "high"))
    if low is None or high is None or not (low > 0 or high < 0):
        return ""
    return "better" if (low > 0) == (key in results["larger_is_better"]) else "worse"


def _shares(results: dict[str, Any], key: str) -> dict[str, float]:
    """Cell id → where its value lies between the smallest (0) and the largest (1) of the grid, by logarithm where it can."""
    values = {cell["id"]: cell["metrics"].get(key, {}).get("value") for cell in results["cells"]}
    finite = {
        name: value for name, value in values.items() if value is not None and isfinite(value)
    }
    if finite and min(finite.values()) > 0:
        finite = {name: log(value) for name, value in finite.items()}
    low, high = min(finite.values(), default=0), max(finite.values(), default=0)
    return {
        name: (value - low) / (high - low) if high > low else 0.0 for name, value in finite.items()
    }


def _view(results: dict[str, Any], grid: _Grid, sprites: dict[str, np.ndarray]) -> dict[str, Any]:
    """What the page shows, its numbers as text."""
    shares = {key: _shares(results, key) for key in results["metrics"]}

    def shown(cell: dict[str, Any], key: str, estimate: dict[str, Any]) -> dict[str, Any]:
        gap = cell["difference"].get(key, {})
        texts = {
            "value": _number(estimate["value"]),
            "interval": _interval(estimate),
            "verdict": _verdict(results, cell, key),
        }
        return {
            **texts,
            "difference": _number(gap.get("value")),
            "gap": _interval(gap),
            "share": shares[key].get(cell["id"], 0),
        }

    cells = {}
    for cell in results["cells"]:
        name = cell["id"]
        metrics = {
            key: shown(cell, key, estimate)
            for key, estimate in cell["metrics"].items()
            if key in shares
        }
        cost = (
            [f"{cell['network_calls']:,} network calls"]
            if cell["network_calls"] is not None
            else []
        )
        cost += [f"{cell['seconds']:,.1f} s"] if cell["seconds"] is not None else []
        place = {key: cell[key] for key in ("sigma", "timesteps", "steps")}
        sprite = _data_uri(_sprite_sheet(sprites[name])) if name in sprites else None
        cells[name] = {**place, "metrics": metrics, "cost": ", ".join(cost), "sprite": sprite}
    labels = {
        key: [label, f"{_better(results, key)} is better"]
        for key, label in results["metrics"].items()
    }
    lists = {
        part: {key: str(value) for key, value in results[part].items()}
        for part in ("settings", "versions")
    }
    shape = next(iter(sprites.values())).shape[:3] if sprites else (0, 0, 0)
    return {"name": results["name"], "source": _source(results), "summary": _summary(results), "baseline": results["baseline"],
            "sigmas": grid.sigmas, "kinds": grid.kinds, "steps": grid.steps, "metrics": labels, "cells": cells, "shape": shape,
            "paper": {"title": _PAPER_TITLE, "rows": _paper_table(grid)}, **lists}  # fmt: skip


def _page(
    results: dict[str, Any], grid: _Grid, sprites: dict[str, np.ndarray], figures: dict[str, bytes]
) -> str:
    """The viewer with its data in it: the script sets all names and numbers as text, never as HTML."""
    data = _json(_view(results, grid, sprites)).replace(
        "<", "\\u003c"
    )  # no </script> inside a string
    parts = {
        "title": escape(results["name"]),
        "data": data,
        **{name: _data_uri(png) for name, png in figures.items()},
    }
    template = files("ddim_jax.evaluation").joinpath("viewer.html").read_text("utf-8")
    return re.sub(
        r"\{\{(\w+)\}\}", lambda match: parts[match[1]], template
    )  # one pass: what is filled in is not read again
