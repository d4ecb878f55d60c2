"""The stream of training batches: the step number is the whole state of the data."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from ..diffusion.randomness import Purpose
from ..images import to_unit_range
from .datasets import Dataset


class Batch(NamedTuple):
    """Images in [−1, 1], and their labels where the data set has classes."""

    x_0: Float[np.ndarray, "B H W C"]
    label: Int[np.ndarray, " B"] | None


def batches(
    dataset: Dataset, batch_size: int, seed: int, start: int = 0, rows: slice = slice(None)
) -> Iterator[Batch]:
    """Training batches from step `start` on, without end, read ahead by a thread.

    Every epoch is another permutation of the data set, and the batch of a step depends on the seed and the step alone:
    of several processes each computes the indices of the whole batch, and reads its rows of it.

    Args:
        dataset: the images.
        batch_size: images a batch, over all processes.
        seed: integer in 0 … 2³²−1.
        start: the first step, ≥ 0.
        rows: those of the batch that this process reads.

    Yields:
        Batch(x_0 float32 (B, H, W, C) in [−1, 1], label int32 (B,) or None), B the number of rows.
    """
    import grain  # a third of a second, which who only draws samples need not wait for

    def read(indices: np.ndarray) -> Batch:
        mine = indices[rows]
        return Batch(
            to_unit_range(dataset.read(mine)), dataset.label(mine) if dataset.label else None
        )

    # Grain takes an integer seed; the purpose is folded in as it is for JAX keys.
    data_seed = int(np.random.SeedSequence([seed, int(Purpose.DATA)]).generate_state(1)[0])
    steps = (
        grain.MapDataset.range(dataset.size)
        .seed(data_seed)
        .shuffle()
        .repeat()
        .batch(batch_size, drop_remainder=True)
        .map(read)
    )
    return iter(
        steps[start:].to_iter_dataset(grain.ReadOptions(num_threads=2, prefetch_buffer_size=8))
    )
