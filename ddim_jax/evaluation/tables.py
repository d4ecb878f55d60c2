"""Estimates and tables as text, in the same form for the console, Markdown and the page."""

from collections.abc import Sequence
from math import floor, isfinite, log10
from typing import Any

from rich.table import Table

MISSING = "–"


def number(value: Any, digits: int = 4) -> str:
    """A number with the given significant digits.

    >>> number(0.39651), number(1234567.0), number(None), number(float("inf"))
    ('0.3965', '1.235e+06', '–', 'inf')
    """
    if value is None or not isfinite(value):
        return MISSING if value is None else str(value)
    if value == 0 or not 1e-4 <= abs(value) < 1e6:
        return "0" if value == 0 else f"{value:.{digits - 1}e}"
    return f"{value:.{max(0, digits - 1 - floor(log10(abs(value))))}f}"


def estimate(parts: dict[str, Any] | None) -> str:
    """A value ± half the width of its interval, with the same decimals.

    >>> estimate({"value": 0.56045, "low": 0.4704, "high": 0.6505})
    '0.560 ± 0.090'
    >>> estimate({"value": 0.98, "low": 0.93, "high": 1.0})  # a share cannot be above 1
    '0.980 +0.020 −0.050'
    >>> estimate({"value": 2.0}), estimate(None)
    ('2.000', '–')
    """
    if not parts:
        return MISSING
    value, low, high = (parts.get(name) for name in ("value", "low", "high"))
    if value is None or low is None or high is None:
        return number(value)
    margin = (high - low) / 2
    if not (isfinite(value) and isfinite(margin)) or margin == 0:
        return f"{number(value)} ± {number(margin)}"
    # Two digits of the margin set the number of decimals.
    decimals = max(0, 1 - floor(log10(margin)))
    if decimals > 6 or abs(value) >= 1e6:
        return f"{value:.3e} ± {margin:.1e}"
    if (low == 0 or high == 1) and abs(high + low - 2 * value) > 1e-6 * margin:
        return f"{value:.{decimals}f} +{high - value:.{decimals}f} −{value - low:.{decimals}f}"
    return f"{value:.{decimals}f} ± {margin:.{decimals}f}"


def short_labels(labels: dict[str, str]) -> tuple[dict[str, str], str]:
    """Labels without the features and the n that several of them share, and these, said once.

    >>> labels = {"f": "FID, pixels, n=8 against 9", "k": "KID, pixels, n=8 against 9", "w": "W2²"}
    >>> short_labels(labels)
    ({'f': 'FID', 'k': 'KID', 'w': 'W2²'}, 'FID, KID: pixels, n=8 against 9.')
    """
    heads, users = {}, dict[str, list[str]]()
    for key, label in labels.items():
        heads[key], _, recipe = label.partition(", ")
        if " n=" in recipe:
            users.setdefault(recipe, []).append(key)
    shared = {recipe: keys for recipe, keys in users.items() if len(keys) > 1}
    short = labels | {key: heads[key] for keys in shared.values() for key in keys}
    said = [
        f"{', '.join(short[key] for key in keys)}: {recipe}." for recipe, keys in shared.items()
    ]
    return short, " ".join(said)


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, whose first row is the header.

    >>> print(markdown([["", "S=5"], ["eta=0", "1"]]))
    |  | S=5 |
    |---|---|
    | eta=0 | 1 |
    """
    lines = [
        "| " + " | ".join(" ".join(text.split()).replace("|", "\\|") for text in row) + " |"
        for row in rows
    ]
    return "\n".join([lines[0], "|---" * len(rows[0]) + "|", *lines[1:]])


_TEX = {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "±": r"$\pm$", "−": "$-$", MISSING: "--", **{letter: f"\\{letter}" for letter in "&%$#_{}"},
}  # fmt: skip


def latex(rows: Sequence[Sequence[str]]) -> str:
    r"""A LaTeX table (package booktabs), whose first row is the header.

    >>> print(latex([["", "S=5"], ["a_b", "1.0 ± 0.1"]]))
    \begin{tabular}{lr}
    \toprule
     & S=5 \\
    \midrule
    a\_b & 1.0 $\pm$ 0.1 \\
    \bottomrule
    \end{tabular}
    """
    escaped = [["".join(_TEX.get(c, c) for c in " ".join(t.split())) for t in row] for row in rows]
    head, *body = [" & ".join(row) + r" \\" for row in escaped]
    lines = [rf"\begin{{tabular}}{{l{'r' * (len(rows[0]) - 1)}}}", r"\toprule", head, r"\midrule"]
    return "\n".join([*lines, *body, r"\bottomrule", r"\end{tabular}"])


def console_table(title: str, rows: Sequence[Sequence[str]]) -> Table:
    """The same table for a terminal."""
    table = Table(*rows[0], title=title)
    for row in rows[1:]:
        table.add_row(*row)
    return table
