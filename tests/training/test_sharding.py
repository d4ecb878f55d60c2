"""One step of training on every shape of mesh against one device, and what a device has to hold."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ddim_jax.devices import batch_sharding, make_mesh, state_shardings, to_global
from ddim_jax.model import UNetConfig, build_unet, unet_apply
from ddim_jax.training import initial_state, make_train_step

CONFIG = UNetConfig(8, 1, 8, (1,), 1, (), 2, dropout=0.2, num_classes=3)
BATCH = 16


@pytest.fixture(scope="module")
def start():
    """Weights with none at zero, and a batch."""
    _, params = build_unet(CONFIG, 0)
    params = jax.tree.map(
        lambda leaf: (
            leaf + 0.02 * np.cos(np.arange(leaf.size, dtype=np.float32)).reshape(leaf.shape)
        ),
        params,
    )
    rng = np.random.default_rng(0)
    batch = (
        rng.uniform(-1, 1, (BATCH, 8, 8, 1)).astype(np.float32),
        rng.integers(0, 3, BATCH).astype(np.int32),
    )
    return jax.tree.map(np.asarray, params), batch


def prepare(
    start,
    optimizer,
    alpha_bar,
    data,
    fsdp,
    dtype="float32",
    remat=False,
    dropout=CONFIG.dropout,
    **options,
):
    params, batch = start
    mesh = make_mesh(BATCH // options.get("accumulate", 1), data, fsdp)
    state = initial_state(jax.tree.map(jnp.asarray, params), optimizer)
    shardings = state_shardings(state, mesh)
    apply = unet_apply(replace(CONFIG, dropout=dropout), dtype, remat)
    options = {
        "seed": 0,
        "flip": True,
        "num_classes": 3,
        "label_dropout": 0.3,
        "shardings": shardings,
        **options,
    }
    step = make_train_step(apply, optimizer, alpha_bar, **options)
    return step, jax.device_put(state, shardings), to_global(batch, batch_sharding(mesh))


def one_step(*arguments, **options):
    step, state, batch = prepare(*arguments, **options)
    placed = jax.tree.map(lambda leaf: leaf.sharding, state)
    state, metrics = step(state, *batch)
    jax.tree.map(
        lambda leaf, place: (
            leaf.sharding.is_equivalent_to(place, leaf.ndim) or pytest.fail("moved")
        ),
        state,
        placed,
    )
    return jax.tree.map(np.asarray, state), {name: float(value) for name, value in metrics.items()}


@pytest.fixture(scope="module")
def alone(start, alpha_bar):
    """The step of plain gradient descent on one device: with a rate of 1, weights before − after are the gradient."""
    return one_step(start, optax.sgd(1.0), alpha_bar, 1, 1)


def same_gradient(start, found, expected):
    """Equal up to the rounding of sums over batch and pixels in another order."""
    terms = BATCH * 8 * 8
    tolerance = (
        2**-24 * terms**0.5 * 8
    )  # a random walk of roundings, through the eight products a weight's gradient passes

    def compare(before, one, two):
        size = np.abs(before - two).max()
        # The subtraction of the weights themselves rounds, too.
        np.testing.assert_allclose(
            before - one,
            before - two,
            rtol=0,
            atol=tolerance * size + 2**-22 * np.abs(before).max(),
        )

    jax.tree.map(compare, start[0], found[0].params, expected[0].params)
    for name in ("loss", "grad_norm"):
        assert found[1][name] == pytest.approx(expected[1][name], rel=tolerance)


@pytest.mark.parametrize(("data", "fsdp"), [(2, 1), (4, 1), (8, 1), (2, 4)])
def test_a_mesh_changes_no_gradient(start, alone, alpha_bar, data, fsdp):
    found = one_step(start, optax.sgd(1.0), alpha_bar, data, fsdp)
    same_gradient(start, found, alone)
    assert np.abs(found[0].params["conv_in"]["kernel"] - start[0]["conv_in"]["kernel"]).max() > 1e-3


def test_a_device_holds_its_part_of_the_state_and_adam_is_bound_by_its_rate(start, alpha_bar):
    """Adam divides a gradient by its own size, rounding included, so weights may differ by the rate a step at most."""
    rate, held, results = 1e-3, {}, {}
    for fsdp in (1, 8):
        step, state, batch = prepare(start, optax.adam(rate), alpha_bar, 8 // fsdp, fsdp)
        compiled = step.lower(state, *batch).compile()
        images = sum(leaf.nbytes for leaf in jax.tree.leaves(batch)) // 8
        held[fsdp] = compiled.memory_analysis().argument_size_in_bytes - images
        for _ in range(3):
            state, metrics = compiled(state, *batch)
        results[fsdp] = jax.tree.map(np.asarray, state), float(metrics["loss"])
    assert held[1] == sum(leaf.nbytes for leaf in jax.tree.leaves(results[1][0]))
    assert held[8] <= held[1] / 6
    (one, loss), (two, other) = results.values()
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=2 * 3 * rate),
        one.params,
        two.params,
    )
    assert loss == pytest.approx(other, rel=1e-3)


def test_parts_of_a_batch_add_up_to_its_gradient(start, alpha_bar):
    """Without dropout, which is drawn anew for every part."""
    whole = one_step(start, optax.sgd(1.0), alpha_bar, 1, 1, dropout=0.0)
    same_gradient(
        start, one_step(start, optax.sgd(1.0), alpha_bar, 2, 2, dropout=0.0, accumulate=4), whole
    )


def test_rematerialisation_changes_nothing_and_bfloat16_little(start, alone, alpha_bar):
    same_gradient(start, one_step(start, optax.sgd(1.0), alpha_bar, 1, 1, remat=True), alone)
    state, metrics = one_step(start, optax.adam(1e-3), alpha_bar, 1, 1, dtype="bfloat16")
    assert metrics["loss"] == pytest.approx(alone[1]["loss"], rel=0.02)
    assert metrics["loss"] != alone[1]["loss"]
    assert metrics["grad_norm"] == pytest.approx(alone[1]["grad_norm"], rel=0.05)
    assert {leaf.dtype for leaf in jax.tree.leaves((state.params, state.ema))} == {
        np.dtype("float32")
    }
    moments = [leaf.dtype for leaf in jax.tree.leaves(state.opt_state) if leaf.ndim]
    assert set(moments) == {np.dtype("float32")}
