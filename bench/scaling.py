"""What more devices bring."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

import ddim_jax as ddim
from ddim_jax.config import Config
from ddim_jax.devices import batch_sharding, make_mesh
from ddim_jax.model import build_unet
from ddim_jax.sampler import Batch, Plan, conditional, make_sampler, on_mesh
from ddim_jax.training.prepare import prepare_state, prepare_step

from .networks import SAMPLING, STEPS, Sides, without_zeros
from .rounds import Row, in_turn, median_ratio, seconds


def bench_scaling(config: Config, rounds: int) -> list[Row]:
    """Images per second on 1, 2, 4, … devices, as many images on each, in turn."""
    most, each = jax.device_count(), config.train.batch_size // jax.device_count() or 1
    counts = sorted({2**i for i in range(most.bit_length()) if 2**i <= most} | {most})
    sides = [_sides(config, count, each * count) for count in counts]
    rows = []
    for work in sides[0]:
        times = in_turn(rounds, *(side[work] for side in sides))
        for count, of_count in zip(counts, times, strict=True):
            rate = each * count / float(np.median(of_count))
            name = f"{work}, {count} device{'s' if count > 1 else ''} with {each} images each"
            rows.append(Row(name, rate, "images/s"))
            if count > 1:
                efficiency = median_ratio(times[0], of_count)
                rows.append(Row(f"{work}, {count} devices ÷ {count} × one", efficiency, ""))
    return rows


def _sides(config: Config, count: int, size: int) -> Sides:
    """Sampling and training on the first devices."""
    config = without_zeros(replace(config, train=replace(config.train, batch_size=size)))
    mesh, shape = make_mesh(size, data=count), config.model.image_shape()
    alpha_bar = config.diffusion.alpha_bar()
    apply, weights = build_unet(config.model, 0)
    params = on_mesh(weights, mesh)
    sampler = make_sampler(conditional(apply, alpha_bar), shape, mesh)
    tau = ddim.uniform_timesteps(config.diffusion.num_steps, STEPS)
    plan = Plan(ddim.step_table(alpha_bar, tau, ddim.eta(0.0)), np.uint32(0))
    batch = Batch(np.arange(size, dtype=np.uint32))
    state, shardings = prepare_state(config, mesh, Path("no run"), None)
    step = prepare_step(config, None, shardings, flip=True)
    x = jax.device_put(np.zeros((size, *shape), np.float32), batch_sharding(mesh))

    def train() -> Any:
        nonlocal state
        state, metrics = step(state, x)
        return metrics

    return {
        SAMPLING: lambda: seconds(lambda: sampler(params, batch, plan)),
        "training": lambda: seconds(train),
    }
