"""train.py export and import."""

import re

import jax
import numpy as np
import pytest

from ddim_jax.training import load_run
from ddim_jax.training.checkpoint import latest_step
from tests.commands import draw, tree


@pytest.mark.slow
def test_a_run_exported_and_imported_draws_the_same_and_trains_on(noisy_run, command, tmp_path):
    folder, run = tmp_path / "folder", tmp_path / "run"
    status, out, err = command("train", "export", noisy_run, folder)
    assert (status, err) == (0, "")
    assert f'UNet2DModel.from_pretrained("{folder}")' in out
    status, out, err = command("train", "import", folder, run)
    assert (status, err) == (0, "")
    assert re.search(r"[\d,]+ parameters for images \(8, 8, 1\), from ", out)
    jax.tree.map(np.testing.assert_array_equal, load_run(run)[1], load_run(noisy_run)[1])
    one, two = (
        draw(command, directory, tmp_path, "--num-images", 4, "--batch-size", 4)[0]
        for directory in (noisy_run, run)
    )
    np.testing.assert_array_equal(one, two)

    before = tree(run)
    status, _, err = command("train", "import", folder, run)
    assert (status, "holds a checkpoint already" in err, tree(run) == before) == (1, True, True)
    flags = [
        "--train.steps",
        "1",
        "--train.batch-size",
        "8",
        "--train.sample-images",
        "4",
        "--train.sample-steps",
        "2",
    ]
    flags += ["--train.validate-images", "0"]
    status, _, err = command("train", run / "config.json", "--model.dropout", "0.5", *flags)
    assert (status, "--model.dropout was" in err) == (1, True)
    status, out, err = command("train", run / "config.json", "--data.source", "digits", *flags)
    assert (status, err, "goes on from step 0" in out) == (0, "", True)
    assert latest_step(run) == 1
