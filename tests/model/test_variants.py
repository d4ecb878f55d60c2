"""Networks of diffusers that are not the paper's: recorded outputs, and the same live."""

import json
import zlib
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from ddim_jax.architecture import UNetConfig, Variants
from ddim_jax.config import DiffusionConfig, config_from_dict, presets
from ddim_jax.model import build_unet, load_pretrained, save_diffusers, unet_apply
from ddim_jax.model.diffusers_layout import unet_of_diffusers, unet_to_diffusers
from ddim_jax.model.diffusers_scheduler import schedule_of_diffusers
from ddim_jax.model.pretrained import import_remarks
from tests.conftest import tiny_config
from tests.model.published import REFERENCE

RECORDED = np.load(REFERENCE / "unet_variants.npz")
CASES = json.loads(RECORDED["cases"].item())
NAMES = list(CASES)
T = np.array([3, 900], np.int32)


def weight(name, shape, seed):
    """The rule by which the recorded networks got their weights."""
    rng = np.random.default_rng([seed, zlib.crc32(name.encode()), int(np.prod(shape))])
    scale = 0.3 if len(shape) > 1 else 0.1
    values = rng.normal(size=shape) * scale / np.sqrt(max(1, np.prod(shape[1:]) / 8))
    return (values + (len(shape) == 1 and name.endswith("weight"))).astype(np.float32)


def folder(path, name):
    path.mkdir(parents=True, exist_ok=True)
    case, seed = CASES[name], NAMES.index(name)
    tensors = {key: weight(key, shape, seed) for key, shape in case["shapes"].items()}
    (path / "config.json").write_text(json.dumps(case["config"]))
    save_file(tensors, path / "diffusion_pytorch_model.safetensors")
    return path


def epsilon(config, params, name):
    x = np.random.default_rng(NAMES.index(name)).normal(size=(2, 1, 8, 8)).astype(np.float32)
    label = np.array([2, 0], np.int32) if config.num_classes else None
    apply = jax.jit(unet_apply(config))
    return np.asarray(apply(params, x.transpose(0, 2, 3, 1), T, label=label)).transpose(0, 3, 1, 2)


@pytest.mark.parametrize("name", ["all", "scale_shift_norm", "sigma"])  # the others: live
def test_the_output_is_that_of_diffusers(tmp_path, name):
    config, params = load_pretrained(folder(tmp_path / name, name))
    assert np.abs(epsilon(config, params, name) - RECORDED[name]).max() < 2e-5
    assert config.variants != Variants() or name == "sigma"
    save_diffusers(tmp_path / "again", config, params)
    again, same = load_pretrained(tmp_path / "again")
    assert again == config
    jax.tree.map(np.testing.assert_array_equal, same, params)


def test_the_papers_network_has_no_variant():
    values = unet_to_diffusers(UNetConfig())
    assert unet_of_diffusers(values, REFERENCE) == UNetConfig()
    defaults = {"_class_name": "UNet2DModel", "sample_size": 32}
    defaults |= {key: values[key] for key in values if key.endswith("types")}
    defaults["block_out_channels"] = values["block_out_channels"]
    theirs = unet_of_diffusers(defaults, REFERENCE)  # what UNet2DModel assumes
    assert theirs.variants == Variants(8, 1e-5, True, 0, True)


def test_settings_from_before_variants_are_read():
    assert config_from_dict({"model": {"channels": 64}}).model == UNetConfig(channels=64)


def test_without_a_null_class_every_image_needs_its_label(tmp_path):
    config, params = load_pretrained(folder(tmp_path / "x", "classes"))
    assert (config.num_classes, config.variants.null_class) == (3, False)
    with pytest.raises(ValueError, match=r"needs a label for every image; give --label 0 to 2\."):
        unet_apply(config)(params, jnp.zeros((2, 8, 8, 1)), jnp.array(T))
    run = replace(tiny_config(presets()["digits"], "x"), model=config)
    with pytest.raises(ValueError, match=r"--train\.label-dropout is 0\.1; it must be 0 without"):
        run.check()


def test_learned_sigma_is_left_out_and_said(tmp_path):
    path = folder(tmp_path / "x", "sigma")
    _, params = load_pretrained(path)
    assert params["conv_out"]["bias"].shape == (1,)
    (line, *_) = import_remarks(path)
    assert line.startswith("not taken over: the learned σ")
    values = json.loads((path / "config.json").read_text()) | {"out_channels": 3}
    (path / "config.json").write_text(json.dumps(values))
    with pytest.raises(ValueError, match="1 in_channels and 3 out_channels"):
        load_pretrained(path)


def test_variants_are_initialised_and_trained_like_any_network():
    kinds = Variants(2, 1e-5, True, 0, True, True, False)
    config = UNetConfig(8, 1, 8, (1,), 1, (8,), 2, zero_init=False, variants=kinds)
    apply, params = build_unet(config, 0)
    gradient = jax.jit(
        jax.grad(lambda p: jnp.sum(apply(p, jnp.ones((2, 8, 8, 1)), jnp.array(T)) ** 2))
    )
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(gradient(params)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"head_channels": 3}, r"head-channels is 3; .*divisor of the 8 channels at image size 8"),
        ({"frequency_shift": 4}, "frequency-shift is 4; it must be below the 4 frequencies"),
        ({"norm_eps": 0.0}, "norm-eps is 0.0"),
    ],
)
def test_variants_out_of_range(changes, message):
    with pytest.raises(ValueError, match=message):
        UNetConfig(8, 1, 8, (1,), 1, (8,), 2, variants=replace(Variants(), **changes)).check()


@pytest.mark.parametrize("name", ["", *NAMES])
def test_live_against_diffusers(tmp_path, name):
    """The recorded cases, and the network of diffusers' own training example."""
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed")
    down = ["DownBlock2D"] * 4 + ["AttnDownBlock2D", "DownBlock2D"]
    butterflies = {
        "sample_size": 64,
        "block_out_channels": [32, 32, 64, 64, 128, 128],
        "down_block_types": down,
        "up_block_types": [kind.replace("Down", "Up") for kind in reversed(down)],
    }
    torch.manual_seed(0)
    theirs = diffusers.UNet2DModel.from_config(CASES[name]["config"] if name else butterflies)
    theirs.eval().save_pretrained(tmp_path)
    config, params = load_pretrained(tmp_path)
    x = np.random.default_rng(0).normal(size=(2, *config.image_shape())).astype(np.float32)
    label = np.array([2, 0], np.int32) if config.num_classes else None
    with torch.no_grad():
        labels = None if label is None else torch.tensor([2, 0])
        images = torch.from_numpy(x.transpose(0, 3, 1, 2).copy())
        expected = theirs(images, torch.tensor([3, 900]), class_labels=labels).sample.numpy()
    ours = np.asarray(jax.jit(unet_apply(config))(params, x, T, label=label))
    expected = expected[:, : config.image_channels].transpose(0, 2, 3, 1)
    assert np.abs(ours - expected).max() < 2e-5 * max(np.abs(expected).max(), 1)


def test_live_halves_parts_and_pipelines(tmp_path):
    """Parts and half precision as save_pretrained writes them, and our export as a pipeline."""
    pytest.importorskip("torch", reason="PyTorch is not installed")
    diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed")
    theirs = diffusers.UNet2DModel.from_config(CASES["eps"]["config"])
    theirs.save_pretrained(tmp_path / "whole")
    config, params = load_pretrained(tmp_path / "whole")
    for safe in (True, False):
        parts = tmp_path / f"parts_{safe}"
        theirs.save_pretrained(parts, max_shard_size="20KB", safe_serialization=safe)
        assert len(list(parts.glob("*-of-*"))) > 2
        jax.tree.map(np.testing.assert_array_equal, load_pretrained(parts)[1], params)
    halved = theirs.half()
    for name, size in (("fp16", "10GB"), ("fp16 parts", "20KB")):
        halved.save_pretrained(tmp_path / name, variant="fp16", max_shard_size=size)
        _, half = load_pretrained(tmp_path / name)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-6), half, params
        )

    save_diffusers(tmp_path / "ours", config, params, DiffusionConfig(200, "quadratic"))
    pipeline = diffusers.DDIMPipeline.from_pretrained(tmp_path / "ours")
    images = pipeline(batch_size=2, num_inference_steps=2, output_type="np").images
    assert images.shape == (2, 8, 8, 1)
    alpha_bar = schedule_of_diffusers(tmp_path / "ours").alpha_bar()[1:]
    np.testing.assert_allclose(pipeline.scheduler.alphas_cumprod, alpha_bar, rtol=1e-5)
