"""What an ablation's one program for all S costs."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from ..config import Config
from ..diffusion.prediction import denoiser
from ..diffusion.sampling import image_keys
from ..evaluation.ablation import make_draw
from ..evaluation.grid import GridFlags
from ..evaluation.sources import Source
from ..model import build_unet
from .rounds import Row, in_turn, median_ratio, seconds


def bench_grid(config: Config, rounds: int) -> list[Row]:
    """The cells of a grid, padded to its largest S in one program, against a program for each S."""
    size = 64
    apply, params = build_unet(config.model, 0)
    alpha_bar, shape = config.diffusion.alpha_bar(), config.model.image_shape()
    nothing = np.zeros((0, *shape), np.float32)
    source = Source(
        "bench",
        lambda leaves: denoiser(apply, leaves, alpha_bar),
        params,
        alpha_bar,
        shape,
        nothing,
        None,
        0,
        None,
        "",
    )
    steps = (5, 10, 20, 50)
    cells = GridFlags(eta=(0.0, 1.0)).cells(alpha_bar, steps)
    keys = np.asarray(jax.random.key_data(image_keys(0, np.arange(size))))
    grid, _ = make_draw(source, size, max(steps))
    alone = {count: make_draw(source, size, count)[0] for count in steps}

    def cells_by(draw_of: Callable[[int], Any]) -> float:
        return seconds(lambda: [draw_of(cell.steps)(cell.table, 0, keys) for cell in cells])

    whole, single = in_turn(
        rounds, lambda: cells_by(lambda _: grid), lambda: cells_by(alone.__getitem__)
    )
    total = sum(cell.steps for cell in cells)
    return [Row(f"{len(cells)} cells of a grid, {total} steps of {size} images, by one program", float(np.median(whole)), "s"),
            Row("by a program for each S", float(np.median(single)), "s"),
            Row("one ÷ each", median_ratio(whole, single), "")]  # fmt: skip
