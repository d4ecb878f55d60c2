"""`sample.py classifier`: a small classifier of a run's data, as a feature extractor."""

from dataclasses import dataclass
from typing import Annotated, Any

import jax
import numpy as np
import optax
from rich.console import Console

from ..features import classifier_path
from ..files import check_output, whole
from ..model.classifier import apply_classifier, initial_classifier
from ..settings import MANY, SEED, at_least
from .flags import SourceFlags
from .source import Reference


@dataclass(frozen=True)
class Config(SourceFlags):
    """Train a small classifier on the labels of a run's data, for --features classifier."""

    epochs: Annotated[int, at_least(1, MANY)] = 20
    """Passes over the training images."""
    seed: Annotated[int, SEED] = 0
    """Seed of the initial weights and the order of the images."""


def run(config: Config, console: Console) -> None:
    """Train the classifier of a run, or of an oracle, and save it beside its ablations."""
    config.check()
    source = config.open()
    data = source.reference()
    if data.labels is None:
        raise ValueError(f"the data of {source.name} have no labels; use --features pixels.")
    path = classifier_path(source.directory)
    check_output(path, "RUN")
    order = np.random.default_rng(config.seed).permutation(len(data.images))
    held_out = order[: len(order) // 5]
    params = _fit(data, order[len(held_out) :], config)
    parts = np.array_split(held_out, 8)
    scores = np.concatenate([apply_classifier(params, data.images[part])[1] for part in parts])
    accuracy = float(np.mean(scores.argmax(1) == data.labels[held_out]))
    with whole(path) as partial:
        np.savez(partial, *jax.tree.leaves(params))
    console.print(
        f"{path}: {accuracy:.1%} of {len(held_out):,} held-out images classified correctly "
        f"({data.num_classes} classes)"
    )


def _fit(
    data: Reference, chosen: np.ndarray, config: Config, batch_size: int = 128
) -> dict[str, Any]:
    """Adam on the cross-entropy."""
    labels, optimizer = np.asarray(data.labels), optax.adam(2e-3)
    params = initial_classifier(
        jax.random.key(config.seed), data.images.shape[-1], data.num_classes
    )
    state, rng = optimizer.init(params), np.random.default_rng(config.seed)

    @jax.jit
    def step(params: Any, state: Any, x: Any, label: Any) -> tuple[Any, Any]:
        def loss(params: Any) -> Any:
            return optax.softmax_cross_entropy_with_integer_labels(
                apply_classifier(params, x)[1], label
            ).mean()

        updates, state = optimizer.update(jax.grad(loss)(params), state)
        return optax.apply_updates(params, updates), state

    size = min(batch_size, len(chosen))
    for _ in range(config.epochs):
        for part in rng.permutation(chosen)[: len(chosen) // size * size].reshape(-1, size):
            params, state = step(params, state, data.images[part], labels[part].astype(np.int32))
    return params
