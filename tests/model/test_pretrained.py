"""Weights in and out: the recorded outputs of both layouts, a round trip, and what is refused."""

import re
from collections import OrderedDict
from dataclasses import replace

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from ddim_jax.config import DiffusionConfig
from ddim_jax.model import UNetConfig, build_unet, load_pretrained, save_diffusers, unet_apply
from ddim_jax.model.diffusers_layout import unet_to_diffusers
from ddim_jax.model.diffusers_scheduler import schedule_of_diffusers
from tests.model.published import CONFIG, DIFFUSERS, HINTS, OFFICIAL, diffusers_folder, weights
from tests.model.torch_writer import write_legacy, write_zip


@pytest.fixture(scope="module")
def epsilon():
    """The network's output for the reference input, compiled once."""
    apply = jax.jit(unet_apply(CONFIG))

    def run(params, reference):
        out = apply(params, reference["x"].transpose(0, 2, 3, 1), reference["t"].astype(np.int32))
        return np.asarray(out).transpose(0, 3, 1, 2)

    return run


def equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_an_official_state_dict_in_every_container(tmp_path, torch, epsilon):
    tensors = OrderedDict(weights(OFFICIAL))
    save_file(tensors, tmp_path / "a.safetensors")
    write_zip(tmp_path / "b.ckpt", tensors, torch)
    write_legacy(tmp_path / "c.ckpt", tensors, torch)
    # The official code saves [model of DataParallel, optimizer, epoch, step, EMA]; the EMA counts.
    model = OrderedDict((f"module.{name}", tensor) for name, tensor in tensors.items())
    zeros = OrderedDict((name, 0 * tensor) for name, tensor in model.items())
    optimizer = {
        "state": {0: {"step": 7, "exp_avg": np.ones(3, np.float32)}},
        "param_groups": [{"lr": 2e-4, "betas": (0.9, 0.999)}],
    }
    write_zip(tmp_path / "d.pth", [zeros, optimizer, 3, 790000, dict(tensors)], torch)
    write_zip(tmp_path / "e.pth", [model, optimizer, 3, 790000], torch)
    for name in ("a.safetensors", "b.ckpt", "c.ckpt", "d.pth", "e.pth"):
        config, params = load_pretrained(tmp_path / name, **HINTS)
        assert config == CONFIG
        assert np.abs(epsilon(params, OFFICIAL) - OFFICIAL["epsilon"]).max() < 2e-5


def test_a_diffusers_folder_in_every_container_with_old_and_new_attention_names(
    tmp_path, torch, epsilon
):
    new = weights(DIFFUSERS)
    words = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    old = {
        re.sub("to_[qkv]|to_out.0", lambda match: words[match[0]], name): tensor
        for name, tensor in new.items()
    }
    assert len(set(old) - set(new)) == 8 * 4
    folders = [
        diffusers_folder(tmp_path / "new", new),
        diffusers_folder(tmp_path / "old", old),
        diffusers_folder(tmp_path / "bin", old, "bin", torch),
    ]
    diffusers_folder(tmp_path / "pipeline" / "unet", new)
    for folder in [*folders, tmp_path / "pipeline"]:
        config, params = load_pretrained(str(folder))
        assert config == CONFIG
        assert np.abs(epsilon(params, DIFFUSERS) - DIFFUSERS["epsilon"]).max() < 2e-5


def test_half_precision(tmp_path):
    tensors = weights(OFFICIAL)
    save_file(
        {name: tensor.astype(np.float16) for name, tensor in tensors.items()},
        tmp_path / "half.safetensors",
    )
    _, half = load_pretrained(tmp_path / "half.safetensors", **HINTS)
    assert {leaf.dtype for leaf in jax.tree.leaves(half)} == {np.dtype("float32")}
    np.testing.assert_array_equal(
        half["temb"]["dense"][0]["kernel"], tensors["temb.dense.0.weight"].T.astype(np.float16)
    )
    brain = {name: tensor.astype(ml_dtypes.bfloat16) for name, tensor in tensors.items()}
    save_file(brain, tmp_path / "brain.safetensors")
    _, params = load_pretrained(tmp_path / "brain.safetensors", **HINTS)
    np.testing.assert_array_equal(
        params["norm_out"]["scale"], brain["norm_out.weight"].astype(np.float32)
    )


@pytest.mark.parametrize("num_classes", [0, 3])
def test_a_round_trip_is_bit_for_bit(tmp_path, num_classes):
    config = replace(
        CONFIG,
        num_classes=num_classes,
        dropout=0.25,
        multipliers=(1, 2, 3),
        attention_resolutions=(16, 4),
    )
    shapes = jax.eval_shape(lambda: build_unet(config, 0)[1])
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), shapes)
    diffusion = DiffusionConfig(500, "cosine", zero_terminal_snr=True, prediction="v")
    save_diffusers(tmp_path / "out", config, params, diffusion)
    again, loaded = load_pretrained(tmp_path / "out")
    assert again == config
    equal(params, loaded)
    assert schedule_of_diffusers(tmp_path / "out") == diffusion
    save_diffusers(tmp_path / "twice", again, loaded)
    one, two = (
        load_file(tmp_path / name / "diffusion_pytorch_model.safetensors")
        for name in ("out", "twice")
    )
    assert one.keys() == two.keys()
    assert all(one[name].tobytes() == two[name].tobytes() for name in one)


@pytest.mark.parametrize("layout", ["official", "diffusers"])
def test_missing_extra_and_misshapen_tensors_by_name(tmp_path, layout):
    official = layout == "official"
    whole = weights(OFFICIAL if official else DIFFUSERS)
    name = "up.1.attn.1.k.weight" if official else "up_blocks.0.attentions.1.to_k.weight"

    def load(tensors):
        if official:
            save_file(tensors, tmp_path / "x.safetensors")
            return load_pretrained(tmp_path / "x.safetensors", **HINTS)
        return load_pretrained(diffusers_folder(tmp_path / "x", tensors))

    with pytest.raises(ValueError, match=rf"lacks the tensor {name}\."):
        load({other: tensor for other, tensor in whole.items() if other != name})
    with pytest.raises(
        ValueError,
        match=r"has, beyond what this network takes, the tensor extra\.weight and 1 more\.",
    ):
        load(whole | {"extra.weight": np.zeros(2, np.float32), "other": np.zeros(2, np.float32)})
    with pytest.raises(
        ValueError, match=rf"has {name} in the shape \(64, 63.*which this network has as \(64, 64"
    ):
        load(whole | {name: whole[name][:, :63]})
    with pytest.raises(ValueError, match=rf"has {name} as int32"):
        load(whole | {name: whole[name].astype(np.int32)})


def test_names_that_are_not_official(tmp_path, torch):
    write_zip(tmp_path / "names", {"a.weight": np.zeros(3, np.float32)}, torch)
    with pytest.raises(
        ValueError,
        match=r"lacks the convolution conv_in.weight; it is not a UNet in the official layout",
    ):
        load_pretrained(tmp_path / "names")
    save_file(weights(DIFFUSERS), tmp_path / "alone.safetensors")
    with pytest.raises(ValueError, match="has diffusers' names; give the folder"):
        load_pretrained(tmp_path / "alone.safetensors")


def test_live_full_size_against_diffusers(tmp_path):
    """Random full-size weights: theirs imported, ours exported, and torch.save's files of them."""
    real = pytest.importorskip("torch", reason="PyTorch is not installed")
    diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed")
    real.manual_seed(0)
    theirs = diffusers.UNet2DModel.from_config(unet_to_diffusers(UNetConfig())).eval()
    assert sum(p.numel() for p in theirs.parameters()) == 35_746_307
    theirs.save_pretrained(tmp_path / "theirs")
    config, params = load_pretrained(tmp_path / "theirs")
    assert config == UNetConfig()
    x = np.random.default_rng(0).normal(size=(2, 3, 32, 32)).astype(np.float32)
    with real.no_grad():
        expected = theirs(real.from_numpy(x), real.tensor([3, 900])).sample.numpy()
    t = np.array([3, 900], np.int32)
    ours = np.asarray(jax.jit(unet_apply(config))(params, x.transpose(0, 2, 3, 1), t))
    scale = np.abs(expected).max()
    assert np.abs(ours.transpose(0, 3, 1, 2) - expected).max() < 2e-5 * max(scale, 1)

    save_diffusers(tmp_path / "ours", config, params, DiffusionConfig())
    again = diffusers.UNet2DModel.from_pretrained(tmp_path / "ours").eval()
    for (name, one), (other, two) in zip(
        theirs.state_dict().items(), again.state_dict().items(), strict=True
    ):
        assert name == other
        assert real.equal(one, two)
    assert (
        diffusers.DDIMScheduler.from_pretrained(tmp_path / "ours").config.beta_schedule == "linear"
    )

    for legacy in (False, True):
        folder = tmp_path / f"legacy_{legacy}"
        folder.mkdir()
        (folder / "config.json").write_text((tmp_path / "theirs" / "config.json").read_text())
        file = folder / "diffusion_pytorch_model.bin"
        real.save(theirs.state_dict(), file, _use_new_zipfile_serialization=not legacy)
        equal(load_pretrained(folder)[1], params)
