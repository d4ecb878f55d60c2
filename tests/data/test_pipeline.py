import itertools

import numpy as np
import pytest

from ddim_jax.data import Dataset, batches


def numbered(size=10):
    """A data set in which image i is the grey value i."""
    return Dataset(
        "numbers",
        size,
        (1, 1, 1),
        False,
        lambda indices: np.asarray(indices, np.uint8).reshape(-1, 1, 1, 1),
    )


def stream(count, **arguments):
    steps = itertools.islice(batches(numbered(), 4, **arguments), count)
    return [((batch.x_0 + 1) * 127.5).round().astype(int).ravel() for batch in steps]


def test_every_epoch_has_every_image_once_in_another_order():
    images = np.concatenate(stream(10, seed=0)).reshape(4, 10)
    for epoch in images:
        assert sorted(epoch) == list(range(10))
    assert len({tuple(epoch) for epoch in images}) == 4


def test_the_step_is_the_whole_state():
    whole = stream(30, seed=3)
    for start in (0, 1, 17, 29):
        np.testing.assert_array_equal(stream(30 - start, seed=3, start=start), whole[start:])
    assert not np.array_equal(stream(30, seed=4), whole)


def test_values_and_type():
    batch = next(batches(numbered(256), 256, seed=0)).x_0
    assert batch.dtype == np.float32
    assert (batch.min(), batch.max()) == (-1, 1)


def test_each_process_reads_its_rows_of_the_same_batch():
    whole = stream(5, seed=1)
    parts = [stream(5, seed=1, rows=slice(2 * k, 2 * k + 2)) for k in range(2)]
    np.testing.assert_array_equal(np.concatenate(parts, axis=1), whole)


@pytest.mark.parametrize("size", [1, 3])
def test_a_handful_of_images_fills_a_batch(size):
    batch = next(batches(numbered(size), 12, seed=0)).x_0
    levels = ((batch + 1) * 127.5).round().astype(int).ravel()
    assert np.bincount(levels).tolist() == [12 // size] * size


def test_labels_travel_with_their_images():
    dataset = numbered()._replace(
        classes=("a", "b"), label=lambda indices: np.asarray(indices, np.int32) % 2
    )
    for x_0, label in itertools.islice(batches(dataset, 4, seed=0), 5):
        np.testing.assert_array_equal(((x_0 + 1) * 127.5).round().ravel() % 2, label)
    assert next(batches(numbered(), 4, seed=0)).label is None
