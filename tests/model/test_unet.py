from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddim_jax.config import presets
from ddim_jax.model import UNetConfig, build_unet, unet_apply
from ddim_jax.model.layers import initial_values, sinusoidal_embedding
from ddim_jax.training import initial_state, load_run, make_optimizer
from ddim_jax.training.checkpoint import checkpoints, restore_state, save_checkpoint
from tests.conftest import tiny_config
from tests.model.published import CONFIG, OFFICIAL, weights

SMALL = UNetConfig(
    8, 1, 8, multipliers=(1, 2), blocks=1, attention_resolutions=(4,), groups=2, dropout=0.5
)

FLAT = replace(SMALL, multipliers=(1,), attention_resolutions=())  # compiles sooner


def noise(*shape):
    return np.random.default_rng(0).standard_normal(shape, dtype=np.float32)


def count(params):
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def test_the_papers_model_has_its_number_of_parameters():
    params = jax.eval_shape(lambda: build_unet(UNetConfig(), 0)[1])
    assert count(params) == 35_746_307


def put(params, name, weight):
    """Replace a parameter by a PyTorch weight under its official name."""
    *path, leaf = [int(part) if part.isdigit() else part for part in name.split(".")]
    for part in path:
        params = params[part]
    if leaf == "weight":
        leaf = "scale" if weight.ndim == 1 else "kernel"
    # PyTorch has (out, in, height, width) and (out, in); attention's 1×1 convolutions are dense.
    if weight.ndim == 4 and len(params[leaf].shape) == 2:
        weight = weight[:, :, 0, 0]
    value = weight.transpose(2, 3, 1, 0) if weight.ndim == 4 else weight.T
    assert params[leaf].shape == value.shape, name
    params[leaf] = jnp.asarray(value)


@pytest.mark.usefixtures("optimised")
def test_agrees_with_the_official_network_for_its_weights():
    params = jax.eval_shape(lambda: build_unet(CONFIG, 0)[1])
    tensors = weights(OFFICIAL)
    for name, tensor in tensors.items():
        put(params, name, tensor)
    assert len(tensors) == len(jax.tree.leaves(params))
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(params))
    x, t = OFFICIAL["x"].transpose(0, 2, 3, 1), OFFICIAL["t"].astype(np.int32)
    epsilon = jax.jit(unet_apply(CONFIG))(params, x, t)
    assert np.abs(np.asarray(epsilon).transpose(0, 3, 1, 2) - OFFICIAL["epsilon"]).max() < 2e-5


@pytest.fixture(scope="module")
def fresh():
    apply, params = build_unet(SMALL, 0)
    return jax.jit(apply), params


@pytest.fixture(scope="module")
def network(fresh):
    """The network with no weight at zero."""
    apply, params = fresh

    def fill(leaf):
        return leaf + 0.02 * np.cos(np.arange(leaf.size, dtype=np.float32)).reshape(leaf.shape)

    return apply, jax.tree.map(fill, params)


def test_starts_at_zero_and_each_block_as_the_identity(fresh):
    apply, params = fresh
    x, t = noise(3, 8, 8, 1), np.array([0, 0, 999])
    np.testing.assert_array_equal(apply(params, x, t), np.zeros((3, 8, 8, 1)))
    blocks = [params["down"][0]["block"][0], params["mid"]["block_1"], params["up"][1]["block"][1]]
    last = [params["mid"]["attn_1"]["proj_out"], params["conv_out"]]
    assert not any(layer["kernel"].any() for layer in last)
    assert not any(block["conv2"]["kernel"].any() for block in blocks)
    assert all(block["conv1"]["kernel"].any() for block in blocks)
    _, params = build_unet(replace(FLAT, zero_init=False), 0)
    last = [params["mid"]["attn_1"]["proj_out"], params["conv_out"]]
    assert all(layer["kernel"].any() for layer in last)


def test_depends_on_time_and_on_its_own_image_only(network):
    apply, params = network
    x = noise(3, 8, 8, 1)
    out = apply(params, x, np.array([0, 0, 0]))
    assert np.abs(apply(params, x, np.array([900, 0, 0]))[0] - out[0]).max() > 1e-3
    x[0] += 1
    changed = apply(params, x, np.array([0, 0, 0]))
    assert np.abs(changed[0] - out[0]).max() > 1e-3
    np.testing.assert_array_equal(changed[1:], out[1:])


def test_dropout_takes_its_key_at_the_call(network):
    apply, params = network
    x, t = noise(3, 8, 8, 1), np.array([5, 5, 5])
    sure = apply(params, x, t)
    np.testing.assert_array_equal(apply(params, x, t), sure)
    one, two = (apply(params, x, t, dropout_key=jax.random.key(seed)) for seed in (1, 2))
    np.testing.assert_array_equal(apply(params, x, t, dropout_key=jax.random.key(1)), one)
    assert np.abs(one - two).max() > 1e-3
    assert np.abs(one - sure).max() > 1e-3


def test_seeds(fresh):
    again, other = (build_unet(SMALL, seed)[1]["conv_in"]["kernel"] for seed in (0, 1))
    np.testing.assert_array_equal(fresh[1]["conv_in"]["kernel"], again)
    assert np.abs(again - other).max() > 0.01


def test_eleven_layers_keep_their_order_through_a_checkpoint(tmp_path):
    """Without a template Orbax turns list indices into strings, which sort 10 before 2."""
    base = tiny_config(presets()["digits"], tmp_path)
    config = replace(base, model=replace(base.model, blocks=11))
    template = jax.eval_shape(lambda: build_unet(config.model, 0)[1])
    params = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), template)
    for i in range(11):
        params["down"][0]["block"][i]["conv2"]["bias"] = jnp.full(4, float(i))
    state = initial_state(params, make_optimizer(config.train))._replace(step=jnp.int32(7))
    with checkpoints(tmp_path, keep=1) as manager:
        save_checkpoint(manager, state, config)
    restored = restore_state(tmp_path, 7, state)
    saved_config, ema = load_run(tmp_path)
    assert saved_config == config
    for tree in (restored.params, restored.ema, ema):
        blocks = tree["down"][0]["block"]
        assert list(blocks) == list(range(11))
        assert [blocks[i]["conv2"]["bias"][0] for i in range(11)] == list(range(11))
    jax.tree.map(np.testing.assert_array_equal, restored, state)


def test_time_embedding_against_numpy():
    t = np.array([0, 1, 999])
    omega = 10000.0 ** (-np.arange(16) / 15)
    expected = np.concatenate([np.sin(t[:, None] * omega), np.cos(t[:, None] * omega)], axis=1)
    np.testing.assert_allclose(sinusoidal_embedding(jnp.asarray(t), 16), expected, atol=2e-4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"image_size": 6, "multipliers": (1, 2, 2)},
            "image-size is 6; it must be a multiple of 4",
        ),
        ({"multipliers": ()}, "--model.multipliers"),
        ({"attention_resolutions": (5,)}, r"--model.attention-resolutions is 5; .*\[8, 4\]"),
        ({"groups": 3}, "channels is 8; it must be a multiple of 2 and of model.groups = 3"),
        ({"image_channels": 2}, "--model.image-channels is 2"),
        ({"dropout": 1.0}, "--model.dropout is 1.0"),
        ({"blocks": 0}, "--model.blocks is 0"),
    ],
)
def test_refusals(changes, message):
    with pytest.raises(ValueError, match=message):
        build_unet(replace(SMALL, **changes), 0)


def test_unet_apply_makes_no_parameters(network):
    _, params = network
    x, t = noise(3, 8, 8, 1), np.array([1, 2, 3])
    np.testing.assert_allclose(
        jax.jit(unet_apply(SMALL))(params, x, t), network[0](params, x, t), atol=1e-5
    )


def test_labels(network):
    """Each class has a row of a table, and no class has the last one."""
    config = replace(FLAT, num_classes=3, zero_init=False, dropout=0.0)
    apply, params = build_unet(config, 0)
    plain = jax.eval_shape(lambda: build_unet(replace(config, num_classes=0), 0)[1])
    assert count(params) == count(plain) + 4 * 4 * config.channels
    x, t = np.tile(noise(1, 8, 8, 1), (4, 1, 1, 1)), np.full(4, 500)
    each = jax.jit(apply)(params, x, t, label=np.arange(4))
    assert all(np.abs(each[i] - each[j]).max() > 1e-4 for i in range(4) for j in range(i))
    np.testing.assert_allclose(jax.jit(apply)(params, x, t)[0], each[3], atol=1e-5)
    with pytest.raises(ValueError, match="a label was given to a network without classes"):
        network[0](network[1], x, t, label=np.arange(4))


def test_bfloat16_computes_in_it_and_answers_in_float32():
    config = replace(FLAT, zero_init=False)
    _, params = build_unet(config, 0)
    x, t = noise(2, 8, 8, 1), np.array([3, 900])
    half = jax.jit(unet_apply(config, "bfloat16"))
    text = half.lower(params, x, t).as_text()
    whole, out = jax.jit(unet_apply(config))(params, x, t), half(params, x, t)
    assert out.dtype == jnp.float32
    assert 1e-4 < np.abs(out - whole).max() < 0.05 * np.abs(whole).max()
    convolutions = [line for line in text.splitlines() if "stablehlo.convolution" in line]
    assert sum("xbf16>" in line for line in convolutions) == len(convolutions) - 1  # not the last
    # The statistics of the normalisations, and the softmax.
    reductions = [line for line in text.splitlines() if "stablehlo.reduce" in line]
    assert reductions
    assert not any("bf16" in line for line in reductions)


def test_initial_kernels_have_glorots_variance():
    shapes = {"conv1": {"kernel": jax.ShapeDtypeStruct((3, 3, 40, 60), np.float32)}}
    kernel = np.asarray(initial_values(shapes, False, jax.random.key(0))["conv1"]["kernel"])
    assert kernel.var() == pytest.approx(2 / (9 * (40 + 60)), rel=0.03)
    assert abs(kernel.mean()) < 4 * kernel.std() / np.sqrt(kernel.size)
