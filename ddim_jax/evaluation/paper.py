"""Published numbers, to be shown beside measured ones.

DDIM, arXiv:2010.02502, Table 1, the CIFAR-10 half: FID of 50,000 samples, quadratic τ, with the
35.7M weights. The ranges include values that other papers measured with the same weights.
"""

from typing import Any

from .tables import estimate

STEPS = (10, 20, 50, 100, 1000)
FID = {
    "eta=0": (13.36, 6.84, 4.67, 4.16, 4.04),
    "eta=0.2": (14.04, 7.11, 4.77, 4.25, 4.09),
    "eta=0.5": (16.66, 8.35, 5.25, 4.46, 4.29),
    "eta=1": (41.07, 18.36, 8.01, 5.78, 4.73),
    "sigma-hat": (367.43, 133.37, 32.72, 9.99, 3.17),
}
# (σ, S) → least and largest published value
RANGE = {
    ("eta=0", 10): (13.36, 13.74), ("eta=0", 20): (6.84, 7.55), ("eta=0", 50): (4.67, 4.78),
    ("eta=0", 1000): (3.95, 4.04), ("eta=1", 10): (41.07, 42.03), ("eta=1", 20): (18.36, 20.23),
    ("sigma-hat", 20): (133.37, 137.3), ("sigma-hat", 50): (32.6, 32.72),
    ("sigma-hat", 1000): (3.16, 3.17),
}  # fmt: skip
OTHER_TITLE = (
    "The paper's Table 1: FID of CIFAR-10, 50k samples, quadratic τ "
    "(another network, data and metric: not comparable)"
)
FID_TITLE = (
    "FID beside the paper's Table 1 and the range of its repeats; "
    "in brackets, how far from the paper in standard errors of ours"
)


def paper_table(results: dict[str, Any], grid: Any) -> tuple[str, list[list[str]]]:
    """A title and rows for the σ and S that the paper has, no rows if there are none.

    FID of 50,000 images of CIFAR-10 at quadratic τ stands beside the paper's.
    """
    steps = [count for count in grid.steps if count in STEPS]
    sigmas = [sigma for sigma in grid.sigmas if sigma in FID]
    if not (steps and sigmas):
        return OTHER_TITLE, []
    header = ["", *(f"S={count}" for count in steps)]
    ours = [name for name in grid.timesteps if name.endswith("quadratic")]
    comparable = (results.get("data"), results["n"]) == ("cifar10", 50_000)
    if not (comparable and results["metrics"].get("frechet", "").startswith("FID") and ours):
        return OTHER_TITLE, [header, *([s, *(_paper(s, count) for count in steps)] for s in sigmas)]
    rows = [header]
    for timesteps in ours:
        for sigma in sigmas:
            cells = [grid.at.get((sigma, timesteps, count)) for count in steps]
            rows.append([
                f"{sigma}, {timesteps}",
                *(_beside(cell, sigma, count) for cell, count in zip(cells, steps, strict=True)),
            ])  # fmt: skip
    return FID_TITLE, rows


def _paper(sigma: str, steps: int) -> str:
    low, high = RANGE.get((sigma, steps), (0, 0))
    value = f"{FID[sigma][STEPS.index(steps)]:.2f}"
    return f"{value} ({low}–{high})" if high else value


def _beside(cell: dict[str, Any] | None, sigma: str, steps: int) -> str:
    if cell is None:
        return estimate(None)
    parts = cell["metrics"]["frechet"]
    error = (parts["high"] - parts["low"]) / 2 / 1.959964
    away = (parts["value"] - FID[sigma][STEPS.index(steps)]) / error if error else float("inf")
    return f"{estimate(parts)}; paper {_paper(sigma, steps)} [{away:+.1f}]"
