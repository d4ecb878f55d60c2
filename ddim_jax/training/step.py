"""One step of training, jitted, its state donated."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, Key

from ..devices import batch_sharding, replicated
from ..diffusion.randomness import Purpose, purpose_key
from .loss import Examples, draw_examples, prediction_loss
from .state import TrainState

Step = Callable[..., tuple[TrainState, dict[str, Array]]]


def make_train_step(
    apply: Callable[..., Any],
    optimizer: optax.GradientTransformation,
    alpha_bar: np.ndarray,
    *,
    seed: int,
    ema_decay: float = 0.9999,
    flip: bool = False,
    kind: str = "epsilon",
    weights: np.ndarray | None = None,
    num_classes: int = 0,
    label_dropout: float = 0.0,
    accumulate: int = 1,
    shardings: Any = None,
) -> Step:
    """The jitted train step: random flip, gradient of the weighted MSE, optimizer, average of the weights.

    Equation: ema ← d·ema + (1 − d)·params,  d = min(ema_decay, (1 + n)/(10 + n)) after n updates.

    Args:
        apply: the network, apply(params, x, t, *, label=None, dropout_key=None); `label` is given only where there are classes.
        optimizer: an optax transformation.
        alpha_bar: ᾱ_0 … ᾱ_T, shape (T+1,).
        seed: integer in 0 … 2³²−1; the randomness of a step comes from it and the step number alone.
        ema_decay: in [0, 1).
        flip: mirror each image with probability ½.
        kind: what the network predicts, "epsilon", "x0" or "v".
        weights: w_0 … w_T of the loss, from `loss_weights`; None: 1.
        num_classes: K > 0 makes the step take labels.
        label_dropout: probability that a label is replaced by K, no label.
        accumulate: parts that the batch is worked through in; the noise is the same for any number, the dropout is not.
        shardings: where the state lies, from `state_shardings`; None: on one device or as it comes.

    Returns:
        step(state, x_0 (B, H, W, C) float32 in [−1, 1], label (B,) int32 or None) → (state, {"loss", "grad_norm"}); the state
        that goes in is donated.

    Source: arXiv:2006.11239, algorithm 1; the warm-up of the average is TensorFlow's num_updates rule.
    """
    mesh = None if shardings is None else shardings.step.mesh

    def gradient(params: Any, examples: Examples, dropout_key: Key[Array, ""]) -> tuple[Array, Any]:
        def loss_of(params: Any) -> Array:
            if (
                mesh is not None
            ):  # each weight is gathered where it is used; its gradient is scattered again
                params = jax.lax.with_sharding_constraint(params, replicated(mesh))
            return prediction_loss(apply, params, examples, dropout_key=dropout_key)

        return jax.value_and_grad(loss_of)(params)

    def step(
        state: TrainState, x_0: Float[Array, "B H W C"], label: Int[Array, " B"] | None = None
    ) -> tuple[TrainState, dict[str, Array]]:
        key = jax.random.fold_in(purpose_key(seed, Purpose.TRAINING), state.step)
        loss_key, dropout_key, flip_key, label_key = jax.random.split(key, 4)
        if flip:
            x_0 = random_flip(x_0, flip_key)
        if num_classes and label is not None:
            label = jnp.where(
                jax.random.bernoulli(label_key, label_dropout, label.shape), num_classes, label
            )
        examples = draw_examples(x_0, alpha_bar, loss_key, kind=kind, weights=weights, label=label)
        if accumulate == 1:
            loss, grads = gradient(state.params, examples, dropout_key)
        else:
            loss, grads = _mean_over_parts(
                gradient, state.params, examples, dropout_key, accumulate, mesh
            )
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        done = state.step + 1
        decay = jnp.minimum(ema_decay, (1 + done) / (10 + done))
        ema = optax.incremental_update(params, state.ema, 1 - decay)
        return TrainState(done, params, ema, opt_state), {
            "loss": loss,
            "grad_norm": optax.tree.norm(grads),
        }

    if mesh is None:
        return jax.jit(step, donate_argnums=0)
    return jax.jit(step, donate_argnums=0, out_shardings=(shardings, replicated(mesh)))


def _mean_over_parts(
    gradient: Callable[..., Any],
    params: Any,
    examples: Examples,
    dropout_key: Key[Array, ""],
    count: int,
    mesh: Any,
) -> tuple[Array, Any]:
    """The loss and the gradient of a batch, a part of it at a time."""

    def divide(leaf: Array) -> Array:
        # Every count-th image: so each device finds its share of every part among the images that it has.
        parts = leaf.reshape(-1, count, *leaf.shape[1:]).swapaxes(0, 1)
        return (
            parts
            if mesh is None
            else jax.lax.with_sharding_constraint(parts, batch_sharding(mesh, axis=1))
        )

    def add(total: Any, part: tuple[Array, Examples]) -> tuple[Any, None]:
        i, some = part
        found = gradient(params, some, jax.random.fold_in(dropout_key, i))
        return jax.tree.map(lambda sum_, new: sum_ + new / count, total, found), None

    start = (jnp.float32(0), jax.tree.map(jnp.zeros_like, params))
    return jax.lax.scan(add, start, (jnp.arange(count), jax.tree.map(divide, examples)))[0]


def random_flip(x: Float[Array, "B H W C"], key: Key[Array, ""]) -> Float[Array, "B H W C"]:
    """Each image mirrored left to right with probability ½.

    >>> random_flip(jnp.arange(4.0).reshape(2, 1, 2, 1), jax.random.key(0)).shape
    (2, 1, 2, 1)
    """
    mirrored = jax.random.bernoulli(key, shape=(x.shape[0], 1, 1, 1))
    return jnp.where(mirrored, x[:, :, ::-1], x)
