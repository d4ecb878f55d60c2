"""The report of an ablation: JSON and CSV, tables, figures, and a page with the images.

Its bytes depend only on the results and the sprites.
"""

import base64
import csv
import io
import re
from collections.abc import Iterator
from html import escape
from importlib.resources import files
from math import isfinite, log
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from ..files import to_json, write
from .figures import CAPTIONS, Grid, draw_figures, grid_of
from .paper import paper_tables
from .tables import estimate, latex, markdown, short_labels

Results = dict[str, Any]


def write_report(results: Results, sprites: dict[str, np.ndarray], directory: Path) -> None:
    """Write results.json, results.csv, table.md, table.tex, index.html, and the figures.

    `results` has the settings, versions and cells that `ablate` collects; non-finite
    numbers are null in JSON. `sprites` has the first images, uint8 (K, H, W, C), of each cell.
    """
    _check(results, sprites)
    grid = grid_of(results["cells"])
    figures = draw_figures(results, grid)
    contents: dict[str, str | bytes] = {
        "results.json": to_json(results, indent=1) + "\n",
        "results.csv": _csv(results),
        "table.md": _markdown(results, grid),
        "table.tex": _latex(results, grid),
        "index.html": _page(results, grid, sprites, figures),
        **{f"{name}.png": png for name, (_, png) in figures.items()},
    }
    for name in CAPTIONS.keys() - figures.keys():  # of an earlier grid of this name
        (directory / f"{name}.png").unlink(missing_ok=True)
    for name, content in contents.items():
        write(directory / name, content)


def _check(results: Results, sprites: dict[str, np.ndarray]) -> None:
    ids = [cell["id"] for cell in results["cells"]]
    if not ids:
        raise ValueError("the results have no cells; an ablation needs one σ and one S.")
    places = {(cell["sigma"], cell["timesteps"], cell["steps"]) for cell in results["cells"]}
    if len(places) < len(ids) or len(set(ids)) < len(ids):
        raise ValueError(f"two of the cells {ids} have one name or one σ, τ and S.")
    if results["baseline"] not in ids:
        raise ValueError(f"baseline is {results['baseline']!r}; it must be one of the cells {ids}.")
    if sprites.keys() != set(ids):
        raise ValueError(f"sprites are given for {sorted(sprites)}; give them for {ids}.")
    shapes = {images.shape for images in sprites.values()}
    if len(shapes) > 1 or any(len(shape) != 4 or shape[3] not in (1, 3) for shape in shapes):
        raise ValueError(
            f"the sprites have the shapes {sorted(shapes)}; all must have one (K, H, W, C), "
            "C = 1 or 3."
        )


def _csv(results: Results) -> str:
    parts = {"value": "", "low": "_low", "high": "_high"}
    columns = [key + suffix for key in results["metrics"] for suffix in parts.values()]
    place = ["id", "sigma", "timesteps", "steps"]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([*place, "n", *columns, "seconds", "network_calls"])
    for cell in results["cells"]:
        values = [cell["metrics"][key].get(part) for key in results["metrics"] for part in parts]
        row = [*(cell[name] for name in place), results["n"], *values]
        writer.writerow([*row, cell["seconds"], cell["network_calls"]])
    return out.getvalue()


def _markdown(results: Results, grid: Grid) -> str:
    parts = [
        f"# {results['name']}",
        f"{_source(results)}. {_summary(results)}. Baseline: {results['baseline']}.",
        *(f"Warning: {text}." for text in results.get("warnings", ())),
    ]
    parts += [_markdown_tables(results, grid, key) for key in results["metrics"]]
    for title, rows in paper_tables(results, grid):
        parts += [f"## {title}", markdown(rows)]
    return "\n\n".join(parts) + "\n"


def _markdown_tables(results: Results, grid: Grid, key: str) -> str:
    tables = _tables(results, grid, key)
    return "\n\n".join(f"## {title}\n\n{markdown(rows)}" for title, rows in tables)


def _tables(results: Results, grid: Grid, key: str) -> Iterator[tuple[str, list[list[str]]]]:
    """A title and the rows of σ × S, for each τ and solver."""
    better = _better(results, key)
    for timesteps, title in grid.titles.items():
        rows = [["", *(f"S={count}" for count in grid.steps)]]
        for sigma in grid.sigmas:
            cells = [grid.at.get((sigma, timesteps, count)) for count in grid.steps]
            rows.append([sigma, *(estimate(cell and cell["metrics"][key]) for cell in cells)])
        yield f"{results['metrics'][key]}, {title}{better and f' ({better})'}", rows


def _latex(results: Results, grid: Grid, *keys: str) -> str:
    """The tables of some metrics, or of all; each title is a comment above its table."""
    tables = (table for key in keys or results["metrics"] for table in _tables(results, grid, key))
    return "\n".join(f"% {' '.join(title.split())}\n{latex(rows)}\n" for title, rows in tables)


def _summary(results: Results) -> str:
    """How the grid was computed, in one line."""
    plural = "s" * (results["compilations"] != 1)
    return (
        f"{len(results['cells'])} cells, n={results['n']:,} images per cell, seed "
        f"{results['seed']}, on {results['device']}; {results['compilations']} "
        f"compilation{plural}, {results['wall_seconds']:,.0f} s"
    )


def _source(results: Results) -> str:
    return f"Oracle {results['oracle']}" if results["oracle"] else f"Run {results['run']}"


def _better(results: Results, key: str) -> str:
    """Which values are better; empty for a mere difference from the baseline."""
    if key == "change":
        return ""
    return f"{'larger' if key in results['larger_is_better'] else 'smaller'} is better"


def _page(
    results: Results,
    grid: Grid,
    sprites: dict[str, np.ndarray],
    figures: dict[str, tuple[str, bytes]],
) -> str:
    """The viewer with its data filled in; its script inserts them as text, never as HTML."""
    # With < escaped, no string can close the script tag.
    data = to_json(_view(results, grid, sprites)).replace("<", "\\u003c")
    pictures = "\n".join(
        f'  <figure><figcaption>{escape(caption)}</figcaption><img id="figure-{name}" '
        f'src="{_data_uri(png)}" alt="{escape(caption)}"></figure>'
        for name, (caption, png) in figures.items()
    )
    parts = {"title": escape(results["name"]), "data": data, "figures": pictures}
    template = files("ddim_jax.evaluation").joinpath("viewer.html").read_text("utf-8")
    # In one pass, so that inserted text is not substituted again.
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], template)


def _view(results: Results, grid: Grid, sprites: dict[str, np.ndarray]) -> dict[str, Any]:
    """The data of the page, with numbers as text."""
    shares = {key: _shares(results, key) for key in results["metrics"]}

    def shown(cell: dict[str, Any], key: str) -> dict[str, Any]:
        gap = cell.get("difference", {}).get(key)
        value, difference = (
            estimate(parts).partition(" ") for parts in (cell["metrics"][key], gap)
        )
        return {
            "value": value[0],
            "interval": value[2],
            "verdict": _verdict(results, cell, key),
            "difference": difference[0],
            "gap": difference[2],
            "share": shares[key].get(cell["id"], 0),
        }

    cells = {
        cell["id"]: {
            **{name: cell[name] for name in ("sigma", "timesteps", "steps")},
            "metrics": {key: shown(cell, key) for key in results["metrics"]},
            "cost": f"{cell['network_calls']:,} network calls, {cell['seconds']:,.1f} s",
            "sprite": _data_uri(_sprite_sheet(sprites[cell["id"]])),
        }
        for cell in results["cells"]
    }
    short, recipe = short_labels(results["metrics"])
    labels = {key: [label, _better(results, key)] for key, label in short.items()}
    files = ["results.json", "results.csv", "table.md", "table.tex"]
    # index.html is at RUN/ablations/NAME.
    links = ({"configuration of the run": "../../config.json"} if results["run"] else {}) | {
        file: file for file in files
    }
    return {
        "name": results["name"],
        "source": _source(results),
        "summary": ". ".join(
            [_summary(results), *(f"Warning: {text}" for text in results.get("warnings", ()))]
        ),
        "baseline": results["baseline"],
        "sigmas": grid.sigmas,
        "kinds": grid.titles,
        "steps": grid.steps,
        "metrics": labels,
        "recipe": recipe,
        "cells": cells,
        "shape": next(iter(sprites.values())).shape[:3],
        "latex": {key: _latex(results, grid, key) for key in results["metrics"]},
        "markdown": {key: _markdown_tables(results, grid, key) for key in results["metrics"]},
        "links": links,
        "paper": [{"title": title, "rows": rows} for title, rows in paper_tables(results, grid)],
        **{
            part: {key: str(value) for key, value in results[part].items()}
            for part in ("settings", "versions")
        },
    }


def _verdict(results: Results, cell: dict[str, Any], key: str) -> str:
    """The word baseline; better or worse if the interval of the paired difference excludes 0."""
    if cell["id"] == results["baseline"]:
        return "baseline"
    gap = cell["difference"].get(key, {})
    if not (gap.get("low", 0) > 0 or gap.get("high", 0) < 0):
        return ""
    return "better" if (gap["low"] > 0) == (key in results["larger_is_better"]) else "worse"


def _shares(results: Results, key: str) -> dict[str, float]:
    """Each cell's position from the smallest value (0) to the largest (1); log scale if all > 0."""
    values = {cell["id"]: cell["metrics"][key]["value"] for cell in results["cells"]}
    finite = {name: value for name, value in values.items() if isfinite(value)}
    if finite and min(finite.values()) > 0:
        finite = {name: log(value) for name, value in finite.items()}
    low, high = min(finite.values(), default=0), max(finite.values(), default=0)
    return {name: (value - low) / ((high - low) or 1) for name, value in finite.items()}


def _data_uri(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode()


def _sprite_sheet(images: UInt8[np.ndarray, "K H W C"]) -> bytes:
    """All images of a cell in one PNG, one below the other."""
    count, height, width, channels = images.shape
    sheet = images.reshape(count * height, width, channels)
    out = io.BytesIO()
    Image.fromarray(sheet[..., 0] if channels == 1 else sheet).save(out, "PNG", optimize=True)
    return out.getvalue()
