"""The one way to draw: labels, guidance and clipping are data, whatever batch an image is in."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddim_jax import (
    Denoiser,
    Prediction,
    clip_x0,
    denoiser,
    eta,
    guided,
    image_keys,
    initial_noise,
    sample,
    step_table,
    trailing_timesteps,
)
from ddim_jax.devices import make_mesh
from ddim_jax.sampler import (
    CLIPS,
    Batch,
    Plan,
    clipped,
    conditional,
    in_batches,
    labelled,
    make_sampler,
)

SHAPE = (2, 2, 1)


def network(params, x, t, *, label=None):
    """ε̂ that is another multiple of x for each label; no label is label 9."""
    label = jnp.full(len(x), 9) if label is None else label
    return params * (1 + label.reshape(-1, 1, 1, 1) / 10) * x


@pytest.fixture(scope="module")
def table(alpha_bar):
    return step_table(alpha_bar, trailing_timesteps(1000, 4), eta(1.0))


@pytest.fixture(scope="module")
def sampler(alpha_bar):
    return make_sampler(conditional(network, alpha_bar), SHAPE, make_mesh(6))


@pytest.fixture(scope="module")
def draw(alpha_bar, table, sampler):
    samplers = {6: sampler}

    def images(count=6, size=6, labels=(), guidance=None):
        if size not in samplers:
            samplers[size] = make_sampler(conditional(network, alpha_bar), SHAPE, make_mesh(size))
        scale = None if guidance is None else np.float32(guidance)
        plan = Plan(table, np.uint32(3), guidance=scale)
        parts = in_batches(
            lambda indices: samplers[size](np.float32(0.7), labelled(indices, labels), plan),
            count,
            size,
        )
        return np.concatenate(list(parts))

    return images


@pytest.mark.usefixtures("optimised")
def test_it_is_the_sampler_of_floor_1(alpha_bar, table, draw):
    keys = image_keys(3, range(6))
    denoise = denoiser(network, 0.7, alpha_bar)
    expected = sample(denoise, initial_noise(keys, SHAPE), table, keys)
    np.testing.assert_allclose(draw(), expected, rtol=1e-5, atol=1e-6)


def test_image_i_has_its_label_in_any_batch(draw):
    whole = draw(labels=(2, 5, 7))
    np.testing.assert_allclose(draw(size=4, labels=(2, 5, 7)), whole, atol=1e-5)
    for label in (2, 5, 7):
        alone = draw(labels=(label,))
        place = (2, 5, 7).index(label)
        np.testing.assert_allclose(whole[place::3], alone[place::3], atol=1e-5)
        assert np.abs(whole - alone).max() > 0.01


def test_guidance_goes_from_no_label_through_the_label_and_beyond(draw):
    conditional, unconditional = draw(labels=(2,)), draw()
    assert np.abs(conditional - unconditional).max() > 0.01
    np.testing.assert_allclose(draw(labels=(2,), guidance=1.0), conditional, atol=1e-5)
    np.testing.assert_allclose(draw(labels=(2,), guidance=0.0), unconditional, atol=1e-5)
    # ε̂ is linear in the label here, so guidance 3 from 9 to 2 is label 9 + 3·(2 − 9) = −12.
    beyond = draw(labels=(2,), guidance=3.0)
    np.testing.assert_allclose(beyond, draw(labels=(-12,)), rtol=1e-3, atol=1e-3)


def test_seeds_and_clippings_compile_nothing(alpha_bar, table, sampler):
    batch = Batch(np.arange(6, dtype=np.uint32))

    def draw(seed, clip):
        return np.asarray(sampler(np.float32(0.7), batch, Plan(table, seed, clip)))

    first = draw(np.uint32(3), np.int32(0))
    compiled = sampler._cache_size()
    others = [draw(np.uint32(2**32 - 1), np.int32(0)), draw(np.uint32(3), np.int32(2))]
    assert sampler._cache_size() == compiled
    assert all(np.abs(other - first).max() > 0.01 for other in others)


def test_clipping_is_a_traced_choice(alpha_bar):
    calls = []

    def call(x, t):
        calls.append(1)
        return Prediction(3 * x, x - 1)

    denoise = Denoiser(call, alpha_bar, "epsilon")
    x, t = jnp.linspace(-1, 1, 8).reshape(2, 4), jnp.array([3, 700])
    expected = [denoise(x, t), clip_x0(denoise)(x, t), clip_x0(denoise, True)(x, t)]
    calls.clear()
    run = jax.jit(lambda clip: clipped(denoise, clip)(x, t))
    for clip, pair in enumerate(expected):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), run(clip), pair)
    assert len(calls) == 1  # one trace, one network call in it
    assert run._cache_size() == 1
    assert len(expected) == len(CLIPS)


def test_a_batch_is_filled_up_and_what_filled_it_is_left_out():
    sizes = []

    def call(indices):
        sizes.append(len(indices))
        return {"i": indices, "pair": np.stack([indices, -indices], 1)}

    first, last = in_batches(call, 12, 8)
    assert sizes == [8, 8]
    assert (first["i"].tolist(), last["i"].tolist()) == (list(range(8)), list(range(8, 12)))
    assert last["pair"].shape == (4, 2)


def test_guidance_of_denoisers_that_differ_is_floor_1s(alpha_bar):
    """The unconditional network is asked without a label, not with label 0."""
    denoise = conditional(network, alpha_bar)
    x, t = jnp.ones((1, *SHAPE)), jnp.array([5])
    label = jnp.array([2])
    expected = guided(denoise(0.7, label), denoise(0.7, None), 3.0)(x, t).epsilon
    np.testing.assert_allclose(expected, 0.7 * (1 + (9 + 3 * (2 - 9)) / 10) * x, rtol=1e-5)
