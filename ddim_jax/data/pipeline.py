"""The stream of training batches: the step number is the whole state of the data."""

from collections.abc import Iterator

import grain
import numpy as np
from jaxtyping import Float

from ..diffusion.randomness import Purpose
from ..images import to_unit_range
from .datasets import Dataset


def batches(dataset: Dataset, batch_size: int, seed: int, start: int = 0) -> Iterator[Float[np.ndarray, "B H W C"]]:
    """Training batches from step `start` on, without end, read ahead by a thread.

    Every epoch is another permutation of the data set, and the batch of a step depends on the seed and the step alone.

    Args:
        dataset: the images.
        batch_size: images a batch.
        seed: integer in 0 … 2³²−1.
        start: the first step, ≥ 0.

    Yields:
        float32 (B, H, W, C) in [−1, 1].
    """
    # Grain takes an integer seed; the purpose is folded in as it is for JAX keys.
    data_seed = int(np.random.SeedSequence([seed, int(Purpose.DATA)]).generate_state(1)[0])
    steps = (
        grain.MapDataset.range(dataset.size)
        .seed(data_seed)
        .shuffle()
        .repeat()
        .batch(batch_size, drop_remainder=True)
        .map(lambda indices: to_unit_range(dataset.read(indices)))
    )
    return iter(steps[start:].to_iter_dataset(grain.ReadOptions(num_threads=2, prefetch_buffer_size=8)))
