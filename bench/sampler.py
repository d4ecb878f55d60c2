"""The cost of the sampler itself: around a network that is one multiplication, and in memory."""

from typing import Any

import numpy as np

import ddim_jax as ddim
from ddim_jax.config import Config
from ddim_jax.devices import make_mesh
from ddim_jax.model import unet_apply, unet_shapes
from ddim_jax.sampler import Batch, Plan, conditional, make_sampler

from .peer import Peer
from .rounds import Row, in_turn, median_ratio, seconds

SHAPE, STEPS = (16, 32, 32, 3), 1000
CALLS = 10  # per measurement: a single call of 10 ms would see cold caches and sleeping threads


def bench_overhead(rounds: int, ask: Peer | None) -> list[Row]:
    """A step of 16 images of 32×32×3 around a network that is one multiplication."""
    alpha_bar = ddim.alpha_bars(ddim.linear_betas(1000))

    def network(params: Any, x: Any, t: Any) -> Any:
        return x * params

    sampler = make_sampler(conditional(network, alpha_bar), SHAPE[1:], make_mesh(SHAPE[0]))
    batch = Batch(np.arange(SHAPE[0], dtype=np.uint32))

    def row(eta: float) -> Row:
        table = ddim.step_table(alpha_bar, ddim.uniform_timesteps(1000, STEPS), ddim.eta(eta))

        def draw() -> Any:
            return sampler(np.float32(0.1), batch, Plan(table, np.uint32(0)))

        def ours() -> float:
            return sum(seconds(draw) for _ in range(CALLS)) / CALLS / STEPS

        name = f"a step around nothing, {' × '.join(map(str, SHAPE))}, η={eta:g}"
        if ask is None:
            return Row(name, float(np.median(in_turn(rounds, ours)[0])) * 1e3, "ms")

        def theirs() -> float:
            return ask("overhead", steps=STEPS, eta=eta, shape=SHAPE)["seconds"]

        times = in_turn(rounds, ours, theirs)
        our_time, their_time = (float(np.median(side)) * 1e3 for side in times)
        return Row(name, our_time, "ms", their_time, median_ratio(times[1], times[0]))

    return [row(0.0), row(1.0)]


def bench_sampler_memory(config: Config) -> list[Row]:
    """The memory of the compiled sampler besides its arguments and results, for three S."""
    size, shape = config.train.batch_size, config.model.image_shape()
    alpha_bar = config.diffusion.alpha_bar()
    denoise = conditional(unet_apply(config.model), alpha_bar)
    sampler: Any = make_sampler(denoise, shape, make_mesh(size))
    batch = Batch(np.arange(size, dtype=np.uint32))
    shapes = unet_shapes(config.model)
    rows = []
    for steps in (10, 100, 1000):
        table = ddim.step_table(alpha_bar, ddim.uniform_timesteps(1000, steps), ddim.eta(1.0))
        compiled = sampler.lower(shapes, batch, Plan(table, np.uint32(0))).compile()
        size_in_bytes = compiled.memory_analysis().temp_size_in_bytes
        name = f"temporary memory of the sampler, S={steps}"
        rows.append(Row(name, size_in_bytes / 2**20, "MiB per device"))
    return rows
