import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddim_jax import alpha_bars, image_keys, initial_noise, linear_betas
from ddim_jax.diffusion.keys import Purpose, purpose_key
from ddim_jax.diffusion.objective import draw_examples
from ddim_jax.model.layers import initial_values
from ddim_jax.training.step import hide_labels, random_flip

SHAPE = (5, 3, 3)  # odd on purpose: no multiple of a vector register
SEEDS = [0, 1, 2**31, 2**32 - 1]


def test_keys_follow_the_definition_and_no_two_are_equal():
    every = []
    for purpose, seed in [(purpose, seed) for purpose in Purpose for seed in SEEDS]:
        root = jax.random.fold_in(jax.random.key(seed, impl="threefry2x32"), purpose)
        assert purpose_key(seed, purpose) == root
        every.append(jax.random.key_data(root).tobytes())
    for seed in SEEDS:
        keys = image_keys(seed, SEEDS)
        root = purpose_key(seed, Purpose.SAMPLING)
        for key, index in zip(keys, SEEDS, strict=True):
            assert key == jax.random.fold_in(root, np.uint32(index))
            every.append(jax.random.key_data(key).tobytes())
    assert len(set(every)) == len(every)


@pytest.mark.parametrize("wide", [False, True])
def test_keys_made_inside_a_compiled_program_are_those_made_outside(wide):
    traces = []

    @jax.jit
    def inside(seed, indices):
        traces.append(None)
        root = purpose_key(seed, Purpose.TRAINING)
        return [jax.random.key_data(keys) for keys in (root, image_keys(seed, indices))]

    indices = np.array([0, 7, 2**31, 2**32 - 1], np.uint32)
    with jax.enable_x64(wide):
        for seed in SEEDS:
            outside = purpose_key(seed, Purpose.TRAINING), image_keys(seed, indices)
            for ours, keys in zip(inside(np.uint32(seed), indices), outside, strict=True):
                np.testing.assert_array_equal(ours, jax.random.key_data(keys))
    assert len(traces) == 1


@pytest.mark.usefixtures("optimised")
def test_the_noise_of_an_image_is_its_own():
    """Bit for bit: alone, in batches of 7 and 64, at another place, and over 2 and 8 devices."""
    alone = np.asarray(jax.jit(lambda keys: initial_noise(keys, SHAPE))(image_keys(9, [42])))[0]
    for indices in (range(36, 43), range(42, 106), range(0, 64)):
        batch = np.asarray(jax.jit(lambda keys: initial_noise(keys, SHAPE))(image_keys(9, indices)))
        np.testing.assert_array_equal(batch[list(indices).index(42)], alone)
    traced = jax.jit(lambda indices: initial_noise(image_keys(9, indices), SHAPE))(
        jnp.arange(40, 45)
    )
    np.testing.assert_array_equal(traced[2], alone)
    for devices in (2, 8):
        mesh = jax.sharding.Mesh(np.array(jax.devices()[:devices]), ("data",))
        split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
        batch = jax.jit(lambda keys: initial_noise(keys, SHAPE), in_shardings=split)(
            image_keys(9, range(40, 56))
        )
        assert len(batch.sharding.device_set) == devices
        np.testing.assert_array_equal(np.asarray(batch)[2], alone)


def test_images_and_seeds_and_times_have_different_noise():
    noise = np.asarray(initial_noise(image_keys(0, range(50)), (20, 20, 1)))
    other = np.asarray(initial_noise(image_keys(1, range(50)), (20, 20, 1)))
    together = np.concatenate([noise, other]).reshape(100, -1)
    correlation = np.corrcoef(together) - np.eye(100)
    assert np.abs(correlation).max() < 6 / np.sqrt(400)
    assert abs(noise.mean()) < 4 / np.sqrt(noise.size)
    assert abs(noise.std() - 1) < 4 / np.sqrt(2 * noise.size)


def test_another_default_generator_does_not_change_the_noise():
    before = np.asarray(initial_noise(image_keys(0, [1]), (4,)))
    with jax.default_prng_impl("rbg"):
        np.testing.assert_array_equal(initial_noise(image_keys(0, [1]), (4,)), before)


def test_settings_of_jax_do_not_change_what_is_drawn():
    """Noise, initial weights, times, labels that are hidden, mirrored images."""
    label, x = np.arange(64) % 3, np.arange(64 * 4, dtype=np.float32).reshape(64, 1, 4, 1)
    shapes = {"layer": {"kernel": jax.ShapeDtypeStruct((3, 3, 2, 5), np.float32)}}

    def draw():
        key = purpose_key(0, Purpose.TRAINING)
        examples = draw_examples(x, alpha_bars(linear_betas(50)), key, label=label)
        return [
            initial_noise(image_keys(0, [1, 5]), SHAPE),
            initial_values(shapes, False, key)["layer"]["kernel"],
            examples.t,
            random_flip(jnp.asarray(x), key),
            hide_labels(label, key, 0.3, 3),
        ]

    before = jax.jit(draw)()
    jax.config.update("jax_threefry_partitionable", False)
    try:
        np.testing.assert_array_equal(initial_noise(image_keys(0, [1, 5]), SHAPE), before[0])
    finally:
        jax.config.update("jax_threefry_partitionable", True)
    with jax.enable_x64(True):
        for ours, expected in zip(jax.jit(draw)(), before, strict=True):
            assert ours.dtype in (np.float32, np.int32)
            np.testing.assert_array_equal(ours, expected)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: image_keys(-1, [0]), "seed is -1"),
        (lambda: image_keys(2**32, [0]), "seed is 4294967296"),
        (lambda: image_keys(0, [-1]), "indices"),
        (lambda: image_keys(0, [2**32]), "indices"),
        (lambda: image_keys(0, [[1]]), "one-dimensional"),
    ],
)
def test_refusals(call, message):
    with pytest.raises(ValueError, match=message):
        call()
