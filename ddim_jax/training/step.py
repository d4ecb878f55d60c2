"""One step of training, jitted, its state donated."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Key

from ..diffusion.randomness import Purpose, purpose_key
from .loss import epsilon_loss
from .state import TrainState

Step = Callable[[TrainState, Float[Array, "B H W C"]], tuple[TrainState, dict[str, Array]]]


def make_train_step(
    apply: Callable[..., Any],
    optimizer: optax.GradientTransformation,
    alpha_bar: np.ndarray,
    *,
    seed: int,
    ema_decay: float = 0.9999,
    flip: bool = False,
) -> Step:
    """The jitted train step: random flip, ε-MSE gradient, optimizer, average of the weights.

    Equation: ema ← d·ema + (1 − d)·params,  d = min(ema_decay, (1 + n)/(10 + n)) after n updates.

    Args:
        apply: the network, apply(params, x, t, *, dropout_key=None).
        optimizer: an optax transformation.
        alpha_bar: ᾱ_0 … ᾱ_T, shape (T+1,).
        seed: integer in 0 … 2³²−1; the randomness of a step comes from it and the step number alone.
        ema_decay: in [0, 1).
        flip: mirror each image with probability ½.

    Returns:
        step(state, x_0 (B, H, W, C) float32 in [−1, 1]) → (state, {"loss", "grad_norm"}); the state that goes in is donated.

    Source: arXiv:2006.11239, algorithm 1; the warm-up of the average is TensorFlow's num_updates rule.
    """

    def step(state: TrainState, x_0: Array) -> tuple[TrainState, dict[str, Array]]:
        key = jax.random.fold_in(purpose_key(seed, Purpose.TRAINING), state.step)
        loss_key, dropout_key, flip_key = jax.random.split(key, 3)
        if flip:
            x_0 = random_flip(x_0, flip_key)

        def loss_of(params: Any) -> Array:
            return epsilon_loss(apply, params, x_0, alpha_bar, loss_key, dropout_key=dropout_key)

        loss, gradient = jax.value_and_grad(loss_of)(state.params)
        updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        done = state.step + 1
        decay = jnp.minimum(ema_decay, (1 + done) / (10 + done))
        ema = optax.incremental_update(params, state.ema, 1 - decay)
        return TrainState(done, params, ema, opt_state), {"loss": loss, "grad_norm": optax.tree.norm(gradient)}

    return jax.jit(step, donate_argnums=0)


def random_flip(x: Float[Array, "B H W C"], key: Key[Array, ""]) -> Float[Array, "B H W C"]:
    """Each image mirrored left to right with probability ½.

    >>> random_flip(jnp.arange(4.0).reshape(2, 1, 2, 1), jax.random.key(0)).shape
    (2, 1, 2, 1)
    """
    mirrored = jax.random.bernoulli(key, shape=(x.shape[0], 1, 1, 1))
    return jnp.where(mirrored, x[:, :, ::-1], x)
