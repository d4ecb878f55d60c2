"""The stream of training batches, whose only state is the step number."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from ..diffusion.keys import Purpose
from ..images import to_unit_range
from .dataset import Dataset


class Batch(NamedTuple):
    """Images in [−1, 1], and their labels where the data set has classes."""

    x_0: Float[np.ndarray, "B H W C"]
    label: Int[np.ndarray, " B"] | None


def batches(
    dataset: Dataset, batch_size: int, seed: int, start: int = 0, rows: slice = slice(None)
) -> Iterator[Batch]:
    """Training batches from step `start` on, without end, prefetched by threads.

    Every epoch is a new permutation of the data set, and a batch depends only on the seed and its
    step: each process computes the indices of all `batch_size` images and reads its own `rows`.
    """
    import grain  # a third of a second to import; sampling does not need it

    def read(indices: np.ndarray) -> Batch:
        mine = indices[rows]
        return Batch(
            to_unit_range(dataset.read(mine)), dataset.label(mine) if dataset.label else None
        )

    # Grain takes an integer seed; the purpose is folded in as it is for JAX keys.
    data_seed = int(np.random.SeedSequence([seed, int(Purpose.DATA)]).generate_state(1)[0])
    order = grain.MapDataset.range(dataset.size).seed(data_seed).shuffle().repeat()
    steps = order.batch(batch_size, drop_remainder=True).map(read)
    return iter(
        steps[start:].to_iter_dataset(grain.ReadOptions(num_threads=2, prefetch_buffer_size=8))
    )
