import threading
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from ddim_jax.config import presets
from ddim_jax.data import load_dataset
from ddim_jax.data.dataset import in_memory
from ddim_jax.devices import make_mesh
from ddim_jax.diffusion.keys import Purpose, purpose_key
from ddim_jax.diffusion.objective import draw_examples, loss_weights
from ddim_jax.training import validation
from ddim_jax.training.halt import Stopped
from ddim_jax.training.validation import held_out_data, make_validation


def network(params, x, t):
    return params * x


def config_of(count, size=16):
    config = presets()["digits"]
    return replace(config, train=replace(config.train, batch_size=size, validate_images=count))


def levels(values):
    """Images of one grey value each."""
    images = np.array(values, np.uint8).reshape(-1, 1, 1, 1).repeat(8, 1).repeat(8, 2)
    return in_memory("levels", images, (8, 8, 1), None, [], ())


def test_every_image_counts_once_and_the_noise_is_always_the_same(alpha_bar, monkeypatch):
    """20 images in batches of 16: the mean of each image's own error, with the noise of its row."""
    config, data = config_of(20), levels(range(0, 240, 12))
    weights = loss_weights(alpha_bar, "epsilon", "min-snr")
    validate = make_validation(config, network, alpha_bar, weights, data, make_mesh(16))
    loss = validate(jnp.float32(1.0))
    assert loss == validate(jnp.float32(1.0)) != validate(jnp.float32(0.5))
    stop, awaited = threading.Event(), []
    monkeypatch.setattr(validation, "awaited", lambda parts, _: awaited.append(len(parts)))
    assert validate(jnp.float32(1.0), stop) == loss
    assert awaited == [0, 1, 2]  # all parts in the end, each but the last while the next is read
    monkeypatch.undo()
    stop.set()
    with pytest.raises(Stopped):
        validate(jnp.float32(1.0), stop)
    expected = []
    for batch in range(2):
        indices = (batch * 16 + np.arange(16)) % 20
        x_0 = jnp.asarray(data.read(indices) / np.float32(127.5) - np.float32(1))
        key = jax.random.fold_in(purpose_key(0, Purpose.VALIDATION), np.uint32(batch))
        given = draw_examples(x_0, alpha_bar, key, weights=weights)
        error = np.square(np.asarray(given.x_t, np.float64) - np.asarray(given.target)).mean(
            (1, 2, 3)
        )
        expected.append(np.asarray(given.weight) * error)
    assert loss == pytest.approx(np.mean(np.concatenate(expected)[:20]), rel=1e-5)
    other = replace(config, seed=1)
    other = make_validation(other, network, alpha_bar, weights, data, make_mesh(16))
    assert other(jnp.float32(1.0)) != loss


def test_a_few_images_or_a_few_of_many(alpha_bar):
    """What is beyond validate_images, or beyond the data, changes nothing."""
    weights, mesh = loss_weights(alpha_bar), make_mesh(16)
    losses = [
        make_validation(config_of(count), network, alpha_bar, weights, data, mesh)(jnp.float32(0.5))
        for count, data in ((3, levels([9, 99, 199, 0])), (1000, levels([9, 99, 199])))
    ]
    assert losses[0] == losses[1] > 0


def test_the_images_are_those_of_the_test_split_if_there_is_one(tmp_path):
    config = config_of(10)
    digits = load_dataset(config.data, (8, 8, 1))
    assert held_out_data(config, digits).size == 360
    for name in ("a", "b"):
        Image.new("L", (8, 8), 5).save(tmp_path / f"{name}.png")
    config = replace(config, data=replace(config.data, source=f"folder:{tmp_path}"))
    folder = load_dataset(config.data, (8, 8, 1))
    assert held_out_data(config, folder) is folder
    for split in ("train", "test"):
        (tmp_path / split).mkdir()
        (tmp_path / f"{'ab'[split == 'test']}.png").rename(tmp_path / split / "x.png")
    assert held_out_data(config, folder).size == 1
    (tmp_path / "test" / "x.png").write_bytes(b"")  # broken: not a reason to take another split
    with pytest.raises(ValueError, match=r"test/x.png is not a readable image"):
        held_out_data(config, folder)
