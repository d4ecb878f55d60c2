"""sample.py generate."""

import numpy as np
import pytest

from tests.commands import draw


@pytest.mark.slow
@pytest.mark.usefixtures("optimised")
def test_an_image_does_not_depend_on_what_else_is_drawn(tiny_run, command, tmp_path):
    eleven, _ = draw(
        command, tiny_run, tmp_path, "--num-images", 11, "--batch-size", 8, "--sigma", "eta=1"
    )
    assert (eleven.shape, eleven.dtype) == ((11, 8, 8, 1), np.uint8)
    assert len({image.tobytes() for image in eleven}) == 11
    three, _ = draw(
        command, tiny_run, tmp_path, "--num-images", 3, "--batch-size", 8, "--sigma", "eta=1"
    )
    np.testing.assert_array_equal(three, eleven[:3])  # the same batch size: bit for bit
    for batch_size in (3, 16):  # other batches and, with 8 devices here, 3 and 8 of them
        other, _ = draw(
            command,
            tiny_run,
            tmp_path,
            "--num-images",
            11,
            "--batch-size",
            batch_size,
            "--sigma",
            "eta=1",
        )
        assert np.abs(other.astype(int) - eleven).max() <= 1
    seeded, _ = draw(
        command,
        tiny_run,
        tmp_path,
        "--num-images",
        3,
        "--batch-size",
        8,
        "--sigma",
        "eta=1",
        "--seed",
        1,
    )
    assert np.abs(seeded.astype(int) - three).max() > 10


@pytest.mark.slow
def test_sigma_and_timesteps_are_what_they_say(tiny_run, command, tmp_path):
    def images(*flags):
        return draw(command, tiny_run, tmp_path, "--num-images", 4, "--batch-size", 4, *flags)[
            0
        ].astype(int)

    ddim, ddpm = images("--sigma", "eta=0"), images("--sigma", "ddpm")
    np.testing.assert_array_equal(images("--sigma", "eta=1"), ddpm)
    others = [
        images("--sigma", "hat"),
        images("--sigma", "hat", "--clip", "none"),
        *(images("--timesteps", kind) for kind in ("uniform", "trailing", "linspace")),
    ]
    np.testing.assert_array_equal(images("--sigma", "hat", "--clip", "rederive"), others[0])
    for i, one in enumerate([ddim, ddpm, *others]):
        for two in [ddim, ddpm, *others][:i]:
            assert np.abs(one - two).max() > 2
