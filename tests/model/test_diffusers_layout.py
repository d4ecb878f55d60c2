import json

import pytest

from ddim_jax.config import DiffusionConfig
from ddim_jax.diffusion.schedules import BETAS
from ddim_jax.model import load_pretrained
from ddim_jax.model.diffusers_scheduler import schedule_of_diffusers, schedule_to_diffusers
from tests.model.published import DIFFUSERS, diffusers_folder, weights


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"act_fn": "mish"}, "has act_fn = 'mish'; only 'silu' can be read"),
        ({"attention_head_dim": 8}, "has attention_head_dim = 8; only None"),
        ({"freq_shift": 0}, "has freq_shift = 0"),
        ({"time_embedding_type": "fourier"}, "time_embedding_type"),
        ({"block_out_channels": [32, 48]}, r"block_out_channels \[32, 48\]"),
        ({"down_block_types": ["DownBlock2D", "SkipDownBlock2D"]}, "SkipDownBlock2D"),
        ({"up_block_types": ["UpBlock2D", "AttnUpBlock2D"]}, "up_block_types"),
        ({"out_channels": 6}, "6 out_channels"),
        ({"num_class_embeds": 10}, "num_class_embeds = 10"),
        ({"sample_size": None}, r"is not a config.json of a UNet2DModel|sample_size None"),
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


def test_without_a_scheduler_the_process_is_the_papers(tmp_path):
    assert schedule_of_diffusers(tmp_path) == DiffusionConfig()
    file = tmp_path / "scheduler_config.json"
    for values in ({"beta_schedule": "warped"}, {"trained_betas": [0.1, 0.2]}):
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
