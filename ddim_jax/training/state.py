"""The training state, a pytree of arrays, and the optimizer."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int

from ..config import TrainConfig


class TrainState(NamedTuple):
    """What training changes: number of steps done, weights, their average, Adam's moments."""

    step: Int[Array, ""]
    params: Any
    ema: Any
    opt_state: Any


def make_optimizer(config: TrainConfig) -> optax.GradientTransformation:
    """Adam with global-norm clipping, linear warm-up, then a constant or cosine learning rate.

    Source: arXiv:2006.11239, appendix B; the official DDIM code's configs/cifar10.yml.

    >>> make_optimizer(TrainConfig()).init({"w": jnp.zeros(3)})[1][0].mu["w"].shape
    (3,)
    """
    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        optax.adam(learning_rate(config), b1=config.adam_b1, b2=config.adam_b2),
    )


def learning_rate(config: TrainConfig) -> optax.Schedule:
    """The learning rate of each update, counted from 0.

    >>> [round(float(learning_rate(TrainConfig(warmup_steps=2))(step)), 6) for step in range(4)]
    [0.0001, 0.0002, 0.0002, 0.0002]
    """
    ramp, cosine = config.warmup_steps, config.decay == "cosine"
    if cosine:
        ramp = min(ramp, config.steps // 2)
    # Update 0 already moves the weights: the ramp reaches the full rate at update `ramp` − 1.
    warmup = optax.linear_schedule(
        config.learning_rate / max(ramp, 1), config.learning_rate, max(ramp - 1, 1)
    )
    after = (
        optax.cosine_decay_schedule(config.learning_rate, max(config.steps - ramp, 1))
        if cosine
        else optax.constant_schedule(config.learning_rate)
    )
    return optax.join_schedules([warmup, after], [ramp])


def initial_state(params: Any, optimizer: optax.GradientTransformation) -> TrainState:
    """The state before the first step; the average starts as a copy of the weights.

    >>> int(initial_state({"w": jnp.zeros(3)}, make_optimizer(TrainConfig())).step)
    0
    """
    return TrainState(jnp.int32(0), params, jax.tree.map(jnp.copy, params), optimizer.init(params))
