"""What the sampler itself takes: beside a network that does one multiplication, and in memory."""

from typing import Any

import jax
import numpy as np

from ..config import Config
from ..devices import make_mesh
from ..diffusion.reverse import step_table
from ..diffusion.sampling import image_keys
from ..diffusion.schedules import alpha_bars, linear_betas
from ..diffusion.sigmas import eta
from ..diffusion.timesteps import uniform_timesteps
from ..generation import make_sampler
from ..model import unet_apply, unet_shapes
from .peer import Peer
from .rounds import Row, in_turn, median_ratio, seconds

SHAPE, STEPS = (16, 32, 32, 3), 1000
CALLS = 10  # in a measurement: one alone, of 10 ms, would be timed with cold caches and sleeping threads


def bench_overhead(rounds: int, ask: Peer | None) -> list[Row]:
    """A step of 16 images of 32×32×3 around a network that is one multiplication."""
    alpha_bar = alpha_bars(linear_betas(1000))
    sampler = make_sampler(
        lambda params, x, t: x * params, alpha_bar, SHAPE[1:], make_mesh(SHAPE[0])
    )
    key_data = np.asarray(jax.random.key_data(image_keys(0, np.arange(SHAPE[0]))))
    rows = []
    for value in (0.0, 1.0):
        table = step_table(alpha_bar, uniform_timesteps(1000, STEPS), eta(value))

        def ours(table=table) -> float:
            calls = [
                seconds(lambda: sampler(np.float32(0.1), table, key_data, None, np.float32(1)))
                for _ in range(CALLS)
            ]
            return sum(calls) / CALLS / STEPS

        def theirs(value=value) -> float:
            return ask("overhead", steps=STEPS, eta=value, shape=SHAPE)["seconds"] if ask else 0.0

        times = in_turn(rounds, ours, *([theirs] if ask else []))
        name = f"a step around nothing, {' × '.join(map(str, SHAPE))}, η={value:g}"
        peer = float(np.median(times[1])) * 1e3 if ask else None
        rows.append(
            Row(
                name,
                float(np.median(times[0])) * 1e3,
                "ms",
                peer,
                median_ratio(times[1], times[0]) if ask else None,
            )
        )
    return rows


def bench_sampler_memory(config: Config) -> list[Row]:
    """What the compiled sampler needs beside its arguments and results, for three S."""
    size, shape, alpha_bar = (
        config.train.batch_size,
        config.model.image_shape(),
        config.diffusion.alpha_bar(),
    )
    sampler: Any = make_sampler(unet_apply(config.model), alpha_bar, shape, make_mesh(size))
    key_data = np.asarray(jax.random.key_data(image_keys(0, np.arange(size))))
    rows = []
    for steps in (10, 100, 1000):
        table = step_table(alpha_bar, uniform_timesteps(1000, steps), eta(1.0))
        found = (
            sampler.lower(unet_shapes(config.model), table, key_data, None, np.float32(1))
            .compile()
            .memory_analysis()
        )
        rows.append(
            Row(
                f"temporary memory of the sampler, S={steps}",
                found.temp_size_in_bytes / 2**20,
                "MiB a device",
            )
        )
    return rows
