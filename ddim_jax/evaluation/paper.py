"""Published numbers, to be shown beside measured ones.

DDIM, arXiv:2010.02502, Table 1, the CIFAR-10 half: FID of 50,000 samples, quadratic τ, with the
35.7M weights. Of other samplers: the same weights and protocol; a range is what several papers
measured. Nothing was found for DPM-Solver++, UniPC or SA-Solver with these weights.

Table 2: the error of encoding and decoding the CIFAR-10 test split, per dimension of images in
[0, 1], by S.
"""

from typing import Any

from ..metrics import Interval
from .tables import MISSING, estimate

Rows = list[list[str]]

STEPS = (10, 20, 50, 100, 1000)
FID = {
    "eta=0": (13.36, 6.84, 4.67, 4.16, 4.04),
    "eta=0.2": (14.04, 7.11, 4.77, 4.25, 4.09),
    "eta=0.5": (16.66, 8.35, 5.25, 4.46, 4.29),
    "eta=1": (41.07, 18.36, 8.01, 5.78, 4.73),
    "sigma-hat": (367.43, 133.37, 32.72, 9.99, 3.17),
}
CALLS = (5, 10, 12, 15, 20, 25, 50, 100, 1000)
PUBLISHED = {
    "eta=0, quadratic τ": (
        "32.66 13.36–13.74 11.02 8.92–9.32 6.84–7.55 6.56 4.67–4.78 4.16 3.95–4.04"
    ),
    "eta=0, uniform τ": "44.41 19.11 – 14.06 11.82 10.52 – – –",
    "eta=1, quadratic τ": "76.25 41.07–42.03 – 27.78 18.36–20.23 16.17 8.01 5.78 4.73",
    "sigma-hat, quadratic τ": ("– 367.43 246.3 197.6 133.37–137.3 – 32.6–32.72 9.99 3.16–3.17"),
    "Analytic-DDIM, uniform τ": "– – 11.68 9.16 7.20 – 4.28 – 3.86",
    "DPM-Solver-2, logsnr τ": "– – 6.15 5.23 3.95 – 3.50 – 3.46",
    "DPM-Solver-3, logsnr τ": "– – 8.20 5.21 3.81 – 3.49 – 3.45",
    "DEIS tAB3": "– 7.12 – – 4.53 – 3.78 – –",
    "F-PNDM, 9 more calls": "– 7.03 – – 4.61 – 3.68 – 3.26",
    "GGDM, learned coefficients": "13.77 8.23 – 6.12 4.72 4.25 – – –",
}
"""Sampler → FID at each of CALLS, the numbers of network calls."""

RECONSTRUCTION = {
    10: 0.014, 20: 0.0065, 50: 0.0023, 100: 0.0009, 200: 0.0004, 500: 0.0001, 1000: 0.0001,
}  # fmt: skip

OTHER_TITLE = (
    "The paper's Table 1: FID of CIFAR-10, 50k samples, quadratic τ "
    "(another network, data and metric: not comparable)"
)
FID_TITLE = (
    "FID beside the paper's Table 1 and the range of its repeats; "
    "in brackets, how far from the paper in standard errors of ours"
)
PUBLISHED_TITLE = (
    "FID beside published ones of other samplers, the same weights, by network calls per image"
)

# Bits/dim on CIFAR-10. The first are those of DDPM's 35.7M network (arXiv:2006.11239, table 1; its
# ODE, arXiv:2011.13456, table 2), the others of Analytic-DPM's own weights on our τ linspace
# (arXiv:2201.06503, table 2).
DDPM_BITS = {
    "ELBO, S=1000": 3.75,
    "rate": 1.78,
    "distortion": 1.97,
    "ELBO, train": 3.72,
    "ODE": 3.28,
}
_K = (10, 25, 50, 100, 200, 400, 1000)
ANALYTIC_DPM = {
    "eta=1": dict(zip(_K, (74.95, 24.98, 12.01, 7.08, 5.03, 4.29, 3.73), strict=True)),
    "sigma-hat": dict(zip(_K, (6.99, 6.11, 5.44, 4.86, 4.39, 4.07, 3.75), strict=True)),
    "analytic=1,last=off": dict(zip(_K, (5.47, 4.79, 4.38, 4.07, 3.84, 3.71, 3.59), strict=True)),
}


def paper_tables(results: dict[str, Any], grid: Any) -> list[tuple[str, Rows]]:
    """Titles and rows: the paper's Table 1 for the σ and S that it has, and other samplers.

    Published numbers stand beside ours only where ours are FID of 50,000 images of CIFAR-10.
    """
    steps = [count for count in grid.steps if count in STEPS]
    sigmas = [sigma for sigma in grid.sigmas if sigma in FID]
    header = ["", *(f"S={count}" for count in steps)]
    if not _comparable(results):
        rows = [[sigma, *(_paper(sigma, count) for count in steps)] for sigma in sigmas]
        return [(OTHER_TITLE, [header, *rows])] if steps and rows else []
    tables = [(PUBLISHED_TITLE, _published(grid))]
    quadratic = [name for name in grid.timesteps if name.endswith("quadratic")]
    rows = [
        [f"{sigma}, {name}", *(_beside(grid.at.get((sigma, name, S)), sigma, S) for S in steps)]
        for name in quadratic
        for sigma in sigmas
    ]
    return [(FID_TITLE, [header, *rows]), *tables] if steps and rows else tables


def _comparable(results: dict[str, Any]) -> bool:
    fid = results["metrics"].get("frechet", "").startswith("FID")
    return fid and (results.get("data"), results["n"]) == ("cifar10", 50_000)


def _published(grid: Any) -> Rows:
    """Our cells at the published numbers of calls, and the published values."""
    ours = [
        [f"{sigma}, {title}, here", *(_ours(grid.at.get((sigma, name, S))) for S in CALLS)]
        for name, title in grid.titles.items()
        for sigma in grid.sigmas
    ]
    shown = [row for row in ours if any(text != MISSING for text in row[1:])]
    published = [[name, *line.split()] for name, line in PUBLISHED.items()]
    return [["", *(f"{count}" for count in CALLS)], *shown, *published]


def _ours(cell: dict[str, Any] | None) -> str:
    return estimate(cell and cell["metrics"]["frechet"])


def _paper(sigma: str, steps: int) -> str:
    value = f"{FID[sigma][STEPS.index(steps)]:.2f}"
    line = PUBLISHED.get(f"{sigma}, quadratic τ")
    others = line.split()[CALLS.index(steps)] if line else ""
    return f"{value} ({others})" if MISSING in others else value


def _beside(cell: dict[str, Any] | None, sigma: str, steps: int) -> str:
    if cell is None:
        return MISSING
    ours = Interval(**cell["metrics"]["frechet"])
    away = standard_errors(ours, FID[sigma][STEPS.index(steps)])
    return f"{_ours(cell)}; paper {_paper(sigma, steps)} [{away:+.1f}]"


def standard_errors(ours: Interval, published: float) -> float:
    """How far a 95 % interval's value is from a published one, in its own standard errors.

    >>> round(standard_errors(Interval(2.0, 2.0 - 1.959964, 2.0 + 1.959964), 1.5), 6)
    0.5
    """
    error = (ours.high - ours.low) / 2 / 1.959964
    return (ours.value - published) / error if error else float("inf")
