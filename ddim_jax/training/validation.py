"""The validation loss of a checkpoint, on held-out images."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from ..config import Config
from ..data import Dataset, load_dataset
from ..devices import batch_sharding, process_rows, to_global
from ..diffusion.keys import Purpose, purpose_key
from ..diffusion.objective import draw_examples, prediction_loss
from ..images import to_unit_range


def make_validation(
    config: Config,
    apply: Callable[..., Any],
    alpha_bar: np.ndarray,
    weights: np.ndarray,
    train: Dataset,
    mesh: Mesh,
) -> Callable[[Any], float]:
    """validate(params) → the training loss, without dropout, on images that training never sees.

    The noise is always the same. If the data have no test split, the images are those of `train`.
    It is compiled on the first call.
    """
    held_out, size = _held_out(config, train), config.train.batch_size // config.train.accumulate
    count = min(config.train.validate_images, held_out.size)
    rows, split = process_rows(size), batch_sharding(mesh)

    @jax.jit
    def loss(params: Any, x_0: Any, label: Any, batch: Any) -> jax.Array:
        key = jax.random.fold_in(purpose_key(config.seed, Purpose.VALIDATION), batch)
        examples = draw_examples(
            x_0, alpha_bar, key, kind=config.diffusion.prediction, weights=weights, label=label
        )
        return prediction_loss(apply, params, examples)

    def validate(params: Any) -> float:
        losses = []
        for i in range(-(-count // size)):
            # The last batch is filled up from the first images.
            indices = np.arange(i * size, (i + 1) * size)[rows] % count
            x_0 = to_unit_range(held_out.read(indices))
            label = held_out.label(indices) if config.model.num_classes and held_out.label else None
            losses.append(loss(params, *to_global((x_0, label), split), np.uint32(i)))
        return float(np.mean(jax.device_get(losses)))

    return validate


def _held_out(config: Config, train: Dataset) -> Dataset:
    try:
        return load_dataset(config.data, train.shape, "test")
    except ValueError:  # a folder, or a tensorflow-datasets source without a test split
        return train
