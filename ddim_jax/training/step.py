"""One jitted training step, which donates the state that it is given."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, Key

from ..devices import batch_sharding, replicated
from ..diffusion.keys import Purpose, purpose_key
from ..diffusion.objective import Examples, draw_examples, prediction_loss
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
    """The jitted train step: flip, gradient of the weighted MSE, optimizer, average of the weights.

    Equation: ema ← d·ema + (1 − d)·params,  d = min(ema_decay, (1 + n)/(10 + n)) after n updates.

    Args:
        apply: the network, apply(params, x, t, *, label=None, dropout_key=None).
        optimizer: an optax transformation.
        alpha_bar: ᾱ_0 … ᾱ_T.
        seed: determines, with the step number, all random numbers of a step.
        ema_decay: in [0, 1).
        flip: mirror each image with probability ½.
        kind: what the network predicts, "epsilon", "x0" or "v".
        weights: w_0 … w_T of the loss, from `loss_weights`; None: 1.
        num_classes: K > 0 makes the step take labels.
        label_dropout: probability that a label is replaced by K, no label.
        accumulate: number of parts that the batch is processed in; the noise is drawn for the
            whole batch, dropout for each part.
        shardings: placement of the state, from `state_shardings`; None: as given.

    Returns:
        step(state, x_0, label or None) → (state, {"loss", "grad_norm"}); the given state is
        donated.

    Source: arXiv:2006.11239, algorithm 1; d is TensorFlow's num_updates rule.
    """
    mesh = None if shardings is None else shardings.step.mesh

    def gradient(params: Any, examples: Examples, dropout_key: Key[Array, ""]) -> tuple[Array, Any]:
        def loss_of(params: Any) -> Array:
            # Each weight is gathered where it is used; its gradient is scattered again.
            if mesh is not None:
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
            label = hide_labels(label, label_key, label_dropout, num_classes)
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
        metrics = {"loss": loss, "grad_norm": optax.tree.norm(grads)}
        return TrainState(done, params, ema, opt_state), metrics

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
    """The loss and the gradient of a batch, computed in `count` parts."""

    def divide(leaf: Array) -> Array:
        # Every count-th image, so that each device has its share of every part already.
        parts = leaf.reshape(-1, count, *leaf.shape[1:]).swapaxes(0, 1)
        if mesh is None:
            return parts
        return jax.lax.with_sharding_constraint(parts, batch_sharding(mesh, axis=1))

    def add(total: Any, part: tuple[Array, Examples]) -> tuple[Any, None]:
        i, examples = part
        new = gradient(params, examples, jax.random.fold_in(dropout_key, i))
        return jax.tree.map(lambda so_far, value: so_far + value / count, total, new), None

    start = (jnp.float32(0), jax.tree.map(jnp.zeros_like, params))
    return jax.lax.scan(add, start, (jnp.arange(count), jax.tree.map(divide, examples)))[0]


def hide_labels(
    label: Int[Array | np.ndarray, " B"], key: Key[Array, ""], share: float, num_classes: int
) -> Int[Array, " B"]:
    """Labels, of which a random share is the row of "no label", for classifier-free guidance.

    >>> hide_labels(np.array([3, 4]), jax.random.key(0), 1.0, 10).tolist()
    [10, 10]
    """
    hidden = jax.random.bernoulli(key, jnp.float32(share), label.shape)
    return jnp.where(hidden, jnp.int32(num_classes), label.astype(np.int32))


def random_flip(x: Float[Array, "B H W C"], key: Key[Array, ""]) -> Float[Array, "B H W C"]:
    """Each image mirrored left to right with probability ½.

    >>> random_flip(jnp.arange(4.0).reshape(2, 1, 2, 1), jax.random.key(0)).shape
    (2, 1, 2, 1)
    """
    mirrored = jax.random.bernoulli(key, jnp.float32(0.5), (x.shape[0], 1, 1, 1))
    return jnp.where(mirrored, x[:, :, ::-1], x)
