"""The cost of an ablation's one program for all S."""

import jax
import numpy as np

import ddim_jax as ddim
from ddim_jax.config import Config
from ddim_jax.devices import make_mesh
from ddim_jax.evaluation.grid import cells
from ddim_jax.model import build_unet
from ddim_jax.sampler import Batch, Plan, conditional, make_sampler

from .rounds import Row, in_turn, median_ratio, seconds

STEPS, SIZE = (5, 10, 20, 50), 64


def bench_grid(config: Config, rounds: int) -> list[Row]:
    """A grid's cells, padded to the largest S in one program, against one program for each S."""
    apply, params = build_unet(config.model, 0)
    alpha_bar, shape = config.diffusion.alpha_bar(), config.model.image_shape()
    grid = cells(alpha_bar, ("eta=0", "eta=1"), ("quadratic",), STEPS)
    tables = ddim.stack_tables([cell.table for cell in grid])
    padded = [jax.tree.map(lambda leaf, i=i: leaf[i], tables) for i in range(len(grid))]
    batch = Batch(np.arange(SIZE, dtype=np.uint32))
    sampler = make_sampler(conditional(apply, alpha_bar), shape, make_mesh(SIZE))

    def draw_cells(tables: list[ddim.StepTable]) -> float:
        plans = [Plan(table, np.uint32(0), np.int32(0)) for table in tables]
        return seconds(lambda: [sampler(params, batch, plan) for plan in plans])

    bare = [cell.table for cell in grid]
    one, each = in_turn(rounds, lambda: draw_cells(padded), lambda: draw_cells(bare))
    total = sum(cell.steps for cell in grid)
    name = f"{len(grid)} cells of a grid, {total} steps of {SIZE} images, by one program"
    return [
        Row(name, float(np.median(one)), "s"),
        Row("by one program for each S", float(np.median(each)), "s"),
        Row("one ÷ each", median_ratio(one, each), ""),
    ]
