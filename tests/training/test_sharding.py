"""One training step on meshes of every shape against one device, and what a device holds."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ddim_jax.devices import batch_sharding, make_mesh, state_shardings, to_global
from ddim_jax.model import UNetConfig, build_unet, unet_apply
from ddim_jax.training import initial_state, make_train_step

BATCH = 16


def network(params, x, t, *, label, dropout_key, rate=0.2):
    """Convolutions, a bias by time and label, normalisation per image, and dropout."""
    convolve = partial(
        jax.lax.conv_general_dilated,
        window_strides=(1, 1),
        padding="SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    bias = params["label"][label] + jnp.outer(jnp.sin(t / 100), params["time"])
    h = convolve(x, params["in"]) + bias[:, None, None]
    h = jax.nn.silu(h / jnp.std(h, axis=(1, 2, 3), keepdims=True))
    kept = jax.random.bernoulli(dropout_key, 1 - rate, h.shape)
    return convolve(jnp.where(kept, h / (1 - rate), 0), params["out"])


def weights():
    shapes = {"in": (3, 3, 1, 32), "out": (3, 3, 32, 1), "label": (4, 32), "time": (32,)}
    return {name: np.cos(np.arange(np.prod(s))).reshape(s) / 5 for name, s in shapes.items()}


def prepare(params, apply, optimizer, alpha_bar, data, fsdp, **options):
    """The step, its state and its batch, where they belong on a mesh."""
    rng = np.random.default_rng(0)
    images = rng.uniform(-1, 1, (BATCH, 8, 8, 1)).astype(np.float32)
    labels = rng.integers(0, 3, BATCH).astype(np.int32)
    mesh = make_mesh(BATCH // options.get("accumulate", 1), data, fsdp)
    state = initial_state(jax.tree.map(jnp.float32, params), optimizer)
    shardings = state_shardings(state, mesh)
    options = {"flip": True, "num_classes": 3, "label_dropout": 0.3, "seed": 0, **options}
    step = make_train_step(apply, optimizer, alpha_bar, shardings=shardings, **options)
    batch = to_global((images, labels), batch_sharding(mesh))
    return step, jax.device_put(state, shardings), batch


def one_step(params, apply, optimizer, alpha_bar, data=1, fsdp=1, **options):
    step, state, batch = prepare(params, apply, optimizer, alpha_bar, data, fsdp, **options)
    places = jax.tree.map(lambda leaf: leaf.sharding, state)
    state, metrics = step(state, *batch)
    for leaf, place in zip(jax.tree.leaves(state), jax.tree.leaves(places), strict=True):
        assert leaf.sharding.is_equivalent_to(place, leaf.ndim)
    return jax.tree.map(np.asarray, state), {name: float(value) for name, value in metrics.items()}


def gradient(params, apply, alpha_bar, *mesh, **options):
    """Plain gradient descent at a rate of 1: the weights before − after are the gradient."""
    state, metrics = one_step(params, apply, optax.sgd(1.0), alpha_bar, *mesh, **options)
    return jax.tree.map(np.subtract, params, state.params), metrics


def assert_same_gradient(params, actual, expected):
    """Equal up to the rounding of sums over batch and pixels in another order."""
    # A random walk of roundings, through the eight products that a weight's gradient passes.
    tolerance = 2**-24 * (BATCH * 8 * 8) ** 0.5 * 8

    def compare(before, a, b):
        # The subtraction of the weights themselves rounds, too.
        rounding = tolerance * np.abs(b).max() + 2**-22 * np.abs(before).max()
        np.testing.assert_allclose(a, b, rtol=0, atol=rounding)

    jax.tree.map(compare, params, actual[0], expected[0])
    for name in ("loss", "grad_norm"):
        assert actual[1][name] == pytest.approx(expected[1][name], rel=tolerance)


@pytest.fixture(scope="module")
def alone(alpha_bar):
    return gradient(weights(), network, alpha_bar)


@pytest.mark.parametrize("mesh", [(2, 1), (8, 1), (2, 4)])
def test_a_mesh_changes_no_gradient(alone, alpha_bar, mesh):
    assert_same_gradient(weights(), gradient(weights(), network, alpha_bar, *mesh), alone)
    assert all(np.abs(leaf).max() > 1e-3 for leaf in jax.tree.leaves(alone[0]))


def test_parts_of_a_batch_add_up_to_its_gradient(alpha_bar):
    """Without dropout, which is drawn anew for every part."""
    apply = partial(network, rate=0.0)
    parts = gradient(weights(), apply, alpha_bar, 2, 2, accumulate=4)
    assert_same_gradient(weights(), parts, gradient(weights(), apply, alpha_bar))


def test_a_device_holds_its_part_of_the_state_and_adam_is_bound_by_its_rate(alpha_bar):
    """Adam divides a gradient and its rounding by its size: weights differ by the rate at most."""
    rate, held, losses, params = 1e-3, {}, {}, {}
    for fsdp in (1, 8):
        adam = optax.adam(rate)
        step, state, batch = prepare(weights(), network, adam, alpha_bar, 8 // fsdp, fsdp)
        compiled = step.lower(state, *batch).compile()
        images = sum(leaf.nbytes for leaf in batch) // 8
        held[fsdp] = compiled.memory_analysis().argument_size_in_bytes - images
        for _ in range(3):
            state, metrics = compiled(state, *batch)
        params[fsdp], losses[fsdp] = jax.tree.map(np.asarray, state.params), float(metrics["loss"])
    assert held[1] == sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    assert held[8] <= held[1] / 6
    for one, two in zip(*map(jax.tree.leaves, params.values()), strict=True):
        np.testing.assert_allclose(one, two, rtol=0, atol=2 * 3 * rate)
    assert losses[1] == pytest.approx(losses[8], rel=1e-3)


UNET = UNetConfig(8, 1, 8, (1,), 1, (), 2, dropout=0.2, num_classes=3)


@pytest.fixture(scope="module")
def unet_params():
    """Weights with none at zero."""

    def fill(leaf):
        return np.asarray(leaf) + 0.02 * np.cos(np.arange(leaf.size)).reshape(leaf.shape)

    return jax.tree.map(lambda leaf: np.float32(fill(leaf)), build_unet(UNET, 0)[1])


@pytest.fixture(scope="module")
def unet_alone(unet_params, alpha_bar):
    return gradient(unet_params, unet_apply(UNET), alpha_bar)


@pytest.mark.slow
def test_a_mesh_and_rematerialisation_change_no_gradient_of_the_unet(
    unet_params, unet_alone, alpha_bar
):
    apply = unet_apply(UNET, remat=True, to_train=True)
    found = gradient(unet_params, apply, alpha_bar, 2, 4)
    assert_same_gradient(unet_params, found, unet_alone)
    assert np.abs(found[0]["conv_in"]["kernel"]).max() > 1e-3


@pytest.mark.slow
def test_bfloat16_changes_little_and_the_state_stays_float32(unet_params, unet_alone, alpha_bar):
    apply = unet_apply(UNET, "bfloat16")
    (_, metrics), (_, expected) = gradient(unet_params, apply, alpha_bar), unet_alone
    assert metrics["loss"] == pytest.approx(expected["loss"], rel=0.02)
    assert metrics["loss"] != expected["loss"]
    assert metrics["grad_norm"] == pytest.approx(expected["grad_norm"], rel=0.05)
    step, state, batch = prepare(unet_params, apply, optax.adam(1e-3), alpha_bar, 1, 1)
    state, _ = jax.eval_shape(step, state, *batch)
    floats = [leaf for leaf in jax.tree.leaves(state) if leaf.ndim]
    assert {leaf.dtype for leaf in floats} == {np.dtype("float32")}
