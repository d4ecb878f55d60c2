import json
import os

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from ddim_jax.config import DiffusionConfig
from ddim_jax.diffusion.schedules import BETAS
from ddim_jax.model import load_pretrained
from ddim_jax.model.diffusers_scheduler import (
    not_taken_over,
    schedule_of_diffusers,
    schedule_to_diffusers,
)
from tests.model.published import DIFFUSERS, diffusers_folder, weights


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"act_fn": "mish"}, r"cannot be: act_fn = 'mish' \(only 'silu' or 'swish'\)\.$"),
        (
            {"add_attention": False, "upsample_type": "resnet", "out_channels": 4},
            r"add_attention = False \(only True\); upsample_type = 'resnet' .*4 out_channels \(",
        ),
        ({"attn_norm_num_groups": 4}, r"attn_norm_num_groups = 4 \(only norm_num_groups\)"),
        ({"_class_name": "VQModel"}, "describes a VQModel; only a UNet2DModel"),
        ({"attention_head_dim": 24}, "head-channels is 24; it must be a divisor of the 64"),
        ({"attention_head_dim": 0}, "attention_head_dim = 0"),
        ({"time_embedding_type": "fourier"}, "time_embedding_type"),
        ({"block_out_channels": [32, 48]}, r"block_out_channels \[32, 48\]"),
        ({"down_block_types": ["DownBlock2D", "SkipDownBlock2D"]}, "SkipDownBlock2D"),
        ({"up_block_types": ["UpBlock2D", "AttnUpBlock2D"]}, "up_block_types"),
        ({"num_class_embeds": 10, "ddim_jax_null_class": 3}, "num_class_embeds = 10 with"),
        ({"num_class_embeds": -1}, "num_class_embeds = -1"),
        (
            {"sample_size": None, "in_channels": "3", "norm_eps": True},
            "is not a config.json of a UNet2DModel: it has sample_size = None, in_channels = '3', "
            "norm_eps = True",
        ),
        ({"sample_size": [16, 8]}, r"sample_size = \[16, 8\] \(only squares\)"),
        ({"sample_size": 10**9}, "image-size is 1000000000; it must be at most 4096"),
        ({"block_out_channels": [0, 0]}, r"block_out_channels \[0, 0\]"),
        ({"block_out_channels": [32, [64]]}, r"it has block_out_channels = \[32, \[64\]\]"),
        ({"block_out_channels": [10**9, 10**9]}, "channels is 1000000000; it must be at most"),
        ({"layers_per_block": 10**9}, "blocks is 1000000000; it must be 1 to 64"),
        ({"layers_per_block": 60}, r"has \d+ tensors, and the network that it describes more"),
        ({"down_block_types": ["DownBlock2D"] * 20_000}, "it has down_block_types = "),
        ({"dropout": float("nan")}, "dropout is nan"),
        ({"norm_num_groups": None}, "it has norm_num_groups = None"),
        ({"norm_num_groups": 5}, "--model.channels is 32; it must be a multiple"),
    ],
)
def test_an_architecture_that_is_not_ours(tmp_path, changes, message):
    folder = diffusers_folder(tmp_path / "x", weights(DIFFUSERS), **changes)
    with pytest.raises(ValueError, match=message):
        load_pretrained(folder)


def test_folders_that_are_not_whole(tmp_path):
    with pytest.raises(ValueError, match=r"config.json cannot be read \(No such file"):
        load_pretrained(tmp_path)
    folder = diffusers_folder(tmp_path / "x", weights(DIFFUSERS))
    (folder / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"holds none of diffusion_pytorch_model.safetensors and"):
        load_pretrained(folder)
    (folder / "config.json").write_text("[1]")
    with pytest.raises(ValueError, match="holds a list, not an object"):
        load_pretrained(folder)


def test_hostile_json(tmp_path):
    folder = diffusers_folder(tmp_path / "x", weights(DIFFUSERS))
    config = folder / "config.json"
    for content, message in (
        ("[" * 100_000, "nested too deeply"),
        ('{"sample_size": ' + "9" * 5000 + "}", "is not JSON"),
        (" " * 10_000_001, "more than 10,000,000 bytes"),
        ("\udcff", "is not JSON"),
    ):
        config.write_bytes(content.encode("utf-8", "surrogateescape"))
        with pytest.raises(ValueError, match=message) as error:
            load_pretrained(folder)
        assert "\n" not in str(error.value)
    config.unlink()
    os.mkfifo(config)
    with pytest.raises(ValueError, match="is not an ordinary file"):
        load_pretrained(folder)


def test_a_run_is_not_a_folder_of_diffusers(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(ValueError, match=r"is a run directory of train\.py; sample from it"):
        load_pretrained(tmp_path)


def test_parts_and_variants_of_the_weights(tmp_path, torch):
    tensors = weights(DIFFUSERS)
    folder = diffusers_folder(tmp_path / "x", tensors)
    _, expected = load_pretrained(folder)
    name = "diffusion_pytorch_model"
    (folder / f"{name}.safetensors").rename(folder / f"{name}.fp16.safetensors")

    def check():
        jax.tree.map(np.testing.assert_array_equal, load_pretrained(folder)[1], expected)

    check()
    (folder / f"{name}.fp16.safetensors").unlink()
    parts = [f"{name}-0000{i}-of-00002.safetensors" for i in (1, 2)]
    places = {key: parts[i % 2] for i, key in enumerate(tensors)}
    for part in parts:
        save_file({key: tensors[key] for key in tensors if places[key] == part}, folder / part)
    index = folder / f"{name}.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": places}))
    check()
    for wrong in (places | {"conv_in.weight": "../x"}, {}, [1], {"a": 1}):
        index.write_text(json.dumps({"weight_map": wrong}))
        with pytest.raises(ValueError, match="has no weight_map of tensors to files beside it"):
            load_pretrained(folder)
    index.write_text(json.dumps({"weight_map": dict.fromkeys(tensors, parts[0])}))
    with pytest.raises(ValueError, match=r"has \d+ tensors, and the network"):
        load_pretrained(folder)
    save_file(tensors, folder / parts[0])
    index.write_text(json.dumps({"weight_map": places}))
    with pytest.raises(ValueError, match="as another part has"):
        load_pretrained(folder)


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e300])
def test_numbers_that_are_none_are_refused(tmp_path, value):
    tensors = weights(DIFFUSERS)
    tensors["conv_in.bias"] = tensors["conv_in.bias"].astype(np.float64)
    tensors["conv_in.bias"][3] = value
    with pytest.raises(
        ValueError, match=r"has conv_in\.bias with numbers that are NaN, infinite or"
    ):
        load_pretrained(diffusers_folder(tmp_path, tensors))


def test_without_a_scheduler_the_process_is_the_papers_and_that_is_said(tmp_path):
    assert schedule_of_diffusers(tmp_path) == DiffusionConfig()
    (line,) = not_taken_over(tmp_path)
    assert line.startswith("no scheduler_config.json: T = 1000, linear β from 0.0001 to 0.02")
    file = tmp_path / "scheduler_config.json"
    for values in ({"num_train_timesteps": 10**12}, {"beta_start": "a"}, {"beta_end": 2.0}):
        file.write_text(json.dumps(values))
        with pytest.raises(ValueError, match="T is 1 to 100,000, β between 0 and 1"):
            schedule_of_diffusers(tmp_path)
    for values in (
        {"beta_schedule": "warped"},
        {"beta_schedule": ["linear"]},
        {"prediction_type": {}},
        {"trained_betas": [0.1, 0.2]},
        {"trained_betas": {"a": [[1]]}},
    ):
        file.write_text(json.dumps(values))
        with pytest.raises(ValueError, match=r"trained_betas .*known are"):
            schedule_of_diffusers(tmp_path)


@pytest.mark.parametrize("schedule", BETAS)
def test_every_beta_schedule_survives_the_way_to_diffusers_and_back(tmp_path, schedule):
    kind = "v" if schedule == "jsd" else "epsilon"
    diffusion = DiffusionConfig(schedule=schedule, num_steps=50, beta_end=0.03, prediction=kind)
    values = schedule_to_diffusers(diffusion)
    (tmp_path / "scheduler_config.json").write_text(json.dumps(values))
    assert schedule_of_diffusers(tmp_path) == diffusion


def test_the_scheduler_of_a_pipeline_is_found_from_its_unet(tmp_path):
    (tmp_path / "scheduler").mkdir()
    (tmp_path / "unet").mkdir()
    file = tmp_path / "scheduler" / "scheduler_config.json"
    file.write_text(json.dumps({"beta_schedule": "scaled_linear", "num_train_timesteps": 100}))
    for path in (tmp_path, tmp_path / "unet"):
        found = schedule_of_diffusers(path)
        assert found == DiffusionConfig(100, "quadratic")
        roots = np.linspace(1e-4**0.5, 0.02**0.5, 100)
        np.testing.assert_allclose(found.alpha_bar()[1:], np.cumprod(1 - roots**2), rtol=1e-12)
    assert schedule_of_diffusers(tmp_path / "scheduler").num_steps == 100


def test_each_setting_of_the_sampler_that_is_left_out_is_named(tmp_path):
    file = tmp_path / "scheduler_config.json"

    def lines(**values):
        file.write_text(json.dumps(values))
        return [line.removeprefix("not taken over: ") for line in not_taken_over(tmp_path)]

    assert lines() == [  # what DDIMScheduler assumes
        "clip_sample = True (pass --clip x0)",
        "timestep_spacing = 'leading' (pass --timesteps uniform)",
    ]
    assert lines(
        clip_sample=False,
        clip_sample_range=2.0,
        thresholding=True,
        timestep_spacing="trailing",
        steps_offset=1,
        set_alpha_to_one=False,
    ) == [
        "thresholding = True (ddim_jax.dynamic_threshold does it in Python)",
        "timestep_spacing = 'trailing' (pass --timesteps trailing)",
        "steps_offset = 1 (pass --timesteps with times of your own)",
        "set_alpha_to_one = False (the last step goes to ᾱ_0 = 1, the data)",
    ]
    assert lines(clip_sample_range=2.0)[1] == "clip_sample_range = 2.0 (--clip x0 clips to ±1)"
