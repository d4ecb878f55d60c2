"""The validation loss of a checkpoint, on held-out images."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from ..config import Config
from ..data import Dataset, MissingSplit, load_dataset
from ..devices import batch_sharding, process_rows, to_global
from ..diffusion.keys import Purpose, purpose_key
from ..diffusion.objective import draw_examples, prediction_loss
from ..images import to_unit_range
from .halt import Stop, awaited


def make_validation(
    config: Config,
    apply: Callable[..., Any],
    alpha_bar: np.ndarray,
    weights: np.ndarray,
    held_out: Dataset,
    mesh: Mesh,
) -> Callable[..., float]:
    """validate(params, stop) → the training loss, without dropout, as the mean over `held_out`.

    The noise is always the same. It is compiled on the first call. After a signal: Stopped.
    """
    size = config.train.batch_size // config.train.accumulate
    count = min(config.train.validate_images, held_out.size)
    rows, split = process_rows(size), batch_sharding(mesh)

    @jax.jit
    def total(params: Any, x_0: Any, counts: Any, label: Any, batch: Any) -> jax.Array:
        key = jax.random.fold_in(purpose_key(config.seed, Purpose.VALIDATION), batch)
        examples = draw_examples(
            x_0, alpha_bar, key, kind=config.diffusion.prediction, weights=weights, label=label
        )
        examples = examples._replace(weight=examples.weight * counts)
        return prediction_loss(apply, params, examples) * size

    def validate(params: Any, stop: Stop | None = None) -> float:
        totals: list[jax.Array] = []
        for i in range(-(-count // size)):
            # The last batch is filled up with images that do not count.
            indices = np.arange(i * size, (i + 1) * size)[rows]
            counts = (indices < count).astype(np.float32)
            x_0 = to_unit_range(held_out.read(indices % count))
            label = None
            if config.model.num_classes and held_out.label:
                label = held_out.label(indices % count)
            totals.append(total(params, *to_global((x_0, counts, label), split), np.uint32(i)))
            awaited(totals[-2:-1], stop)  # the devices compute this part; the host reads the next
        awaited(totals, stop)
        return float(np.sum(jax.device_get(totals), dtype=np.float64) / count)

    return validate


def held_out_data(config: Config, train: Dataset, *, prepare: bool = True) -> Dataset:
    """The test split, or `train` where the data have none."""
    try:
        return load_dataset(config.data, train.shape, "test", prepare=prepare)
    except MissingSplit:
        return train
