"""Results of an ablation that never ran, and the files that a report of them has."""

from pathlib import Path

import numpy as np

REPORT = {
    "index.html",
    "results.json",
    "results.csv",
    "table.md",
    "table.tex",
    "metrics.png",
    "steps.png",
    "drift.png",
}
DIGITS = Path(__file__).parents[2] / "ddim_jax" / "data" / "embedded" / "digits8.npz"
SIGMAS = {"eta=0": 0.0, "eta=0.2": 0.2, "eta=0.5": 0.5, "eta=1": 1.0, "sigma-hat": 1.6}
METRICS = {
    "frechet": "Fréchet distance, pixels, n=512",
    "kernel": "Kernel distance, pixels, n=512",
    "recall": "Recall, pixels, k=3",
    "w2_covariance": "Squared 2-Wasserstein, covariance part, exact",
}


def example(sigmas=SIGMAS, kinds=("quadratic",), steps=(5, 10, 20, 50), images=64):
    """Results with plausible numbers, and digits with more noise where σ is larger."""
    rng = np.random.default_rng(0)
    digits = np.load(DIGITS)["train_image"][:images].astype(float)
    noise = rng.normal(size=digits.shape)
    cells, sprites = [], {}
    for kind in kinds:
        for sigma, level in sigmas.items():
            for S in steps:
                name = f"{sigma} {kind} S={S}"
                value = 0.36 + (3 + 9 * level**2) / S * (1 + 0.03 * rng.normal())
                interval = {"value": value, "low": value * 0.96, "high": value * 1.05}
                gap = value - 0.42
                t = np.linspace(1, 1000, S).round().astype(int)[::-1]
                size = level * np.sqrt(t / 1000) * 0.7
                cells.append(
                    {
                        "id": name,
                        "sigma": sigma,
                        "timesteps": kind,
                        "steps": S,
                        "solver": "first",
                        "metrics": {
                            "frechet": interval,
                            "kernel": {k: v / 40 for k, v in interval.items()},
                            "recall": {
                                "value": 1 / (1 + value),
                                "low": 0.9 / (1 + value),
                                "high": 1.1 / (1 + value),
                            },
                            "w2_covariance": {"value": value / 3},
                        },
                        "difference": {
                            "frechet": {"value": gap, "low": gap - 0.1, "high": gap + 0.1},
                            "kernel": {
                                "value": gap / 40,
                                "low": gap / 40 - 0.01,
                                "high": gap / 40 + 0.01,
                            },
                            "recall": {
                                "value": -gap / 9,
                                "low": -gap / 9 - 0.01,
                                "high": -gap / 9 + 0.01,
                            },
                        },
                        "seconds": 0.031 * S,
                        "network_calls": 512 * S,
                        "schedule": {
                            "t": t.tolist(),
                            "s": [*t[1:].tolist(), 0],
                            "alpha_bar_t": np.exp(-10 * (t / 1000) ** 2).tolist(),
                            "x_0_correction": [[]] * S,
                            "epsilon_correction": [[]] * S,
                            "sigma": np.minimum(size, 0.5).tolist(),
                            "noise": [*size[:-1].tolist(), 0.0],
                        },
                        "x0_rms": (0.75 + 0.2 * (1 + level) * np.linspace(1, 0, S) ** 2).tolist(),
                    }
                )
                sprites[name] = (
                    np.clip(digits + noise * 90 * (level + 0.3) / np.sqrt(S), 0, 255)
                    .round()
                    .astype(np.uint8)
                )
    baseline = f"eta=0 {kinds[0]} S={max(steps)}"
    next(cell for cell in cells if cell["id"] == baseline).pop("difference")
    results = {
        "name": "paper grid",
        "run": "runs/digits",
        "oracle": None,
        "seed": 0,
        "n": 512,
        "baseline": baseline,
        "settings": {
            "--sigma": ["eta=0", "hat"],
            "--steps": list(steps),
            "--timesteps": list(kinds),
        },
        "versions": {"ddim_jax": "0.1.0", "jax": "0.10.2"},
        "device": "2 × cpu",
        "compilations": 1,
        "wall_seconds": 1234.5,
        "metrics": METRICS,
        "larger_is_better": ["recall"],
        "cells": cells,
    }
    return results, sprites
