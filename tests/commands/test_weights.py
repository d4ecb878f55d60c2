"""train.py export and import."""

import json
import re

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from ddim_jax.config import load_config
from ddim_jax.training import load_run
from ddim_jax.training.checkpoint import latest_step
from tests.commands import tree
from tests.model.published import OFFICIAL, weights


@pytest.mark.slow
def test_a_run_exported_and_imported_is_the_same_and_trains_on(tiny_run, command, tmp_path):
    folder, run = tmp_path / "folder", tmp_path / "run"
    status, out, err = command("train", "export", tiny_run, folder)
    assert (status, err) == (0, "")
    assert f'UNet2DModel.from_pretrained("{folder}")' in out
    index = json.loads((folder / "model_index.json").read_text())
    assert index == {
        "_class_name": "DDIMPipeline",
        "scheduler": ["diffusers", "DDIMScheduler"],
        "unet": ["diffusers", "UNet2DModel"],
    }
    status, out, err = command("train", "import", folder, run)
    assert (status, err) == (0, "")
    assert re.search(r"[\d,]+ parameters for images \(8, 8, 1\), from ", out)
    assert "not taken over: timestep_spacing = 'leading' (pass --timesteps uniform)" in out
    (config, params), (expected, expected_params) = load_run(run), load_run(tiny_run)
    jax.tree.map(np.testing.assert_array_equal, params, expected_params)
    assert (config.model, config.diffusion) == (expected.model, expected.diffusion)

    before = tree(run)
    status, _, err = command("train", "import", folder, run)
    assert (status, "holds a checkpoint already" in err, tree(run) == before) == (1, True, True)
    values = {"steps": 1, "batch-size": 8, "sample-images": 1, "sample-steps": 2}
    flags = [f"--train.{name}={value}" for name, value in values.items()]
    flags += ["--train.validate-images=0", "--mesh.data=1"]
    status, _, err = command("train", run / "config.json", "--model.dropout", "0.5", *flags)
    assert (status, "--model.dropout was" in err) == (1, True)
    status, out, err = command("train", run / "config.json", "--data.source", "digits", *flags)
    assert (status, err, "resumes from step 0" in out) == (0, "", True)
    assert latest_step(run) == 1


def test_a_run_is_not_imported_as_weights(tiny_run, command, tmp_path):
    status, _, err = command("train", "import", tiny_run, tmp_path / "run")
    assert (status, "is a run directory of train.py; sample from it" in err) == (1, True)


@pytest.mark.slow
def test_the_image_size_of_an_official_file_is_where_its_attention_is_at_16(command, tmp_path):
    file = tmp_path / "a.safetensors"
    save_file(weights(OFFICIAL), file)
    flags = ["--groups", 8]
    status, out, err = command("train", "import", file, tmp_path / "run", *flags)
    assert (status, err) == (0, "")
    model = load_config(tmp_path / "run" / "config.json").model
    assert (model.image_size, model.attention_resolutions) == (32, (16,))
    assert "warning" not in out
    flags += ["--image-size", 16]
    status, out, err = command("train", "import", file, tmp_path / "other", *flags)
    assert (status, err) == (0, "")
    assert "warning: at --image-size 16 the attention is at 8×8, in DDPM's own models at 16" in out
    assert load_config(tmp_path / "other" / "config.json").model.image_size == 16
