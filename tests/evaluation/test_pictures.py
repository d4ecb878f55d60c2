"""Interpolations and trajectories agree with the images that `generate` draws."""

import re

import numpy as np
import pytest
from PIL import Image

from ddim_jax import image_keys, initial_noise
from ddim_jax.evaluation import interpolate, trajectory
from ddim_jax.images import to_uint8
from tests.evaluation import write_odd_run


@pytest.fixture(scope="module")
def odd_run(tmp_path_factory):
    return write_odd_run(tmp_path_factory.mktemp("runs") / "odd")


@pytest.fixture
def saved(monkeypatch):
    """The rows of images and their labels that were written as a picture."""
    calls, save = [], interpolate.save_rows

    def spy(rows, path, *labels):
        calls.append((rows.astype(int), *labels))
        save(rows, path, *labels)

    for module in (interpolate, trajectory):
        monkeypatch.setattr(module, "save_rows", spy)
    return calls


@pytest.fixture
def drawn(odd_run, command, tmp_path):
    """The images 0 … 5 of seed 5, as `generate` draws them."""

    def draw(*flags):
        arguments = ["--seed", 5, "--num-images", 6, "--out", tmp_path / "drawn.npz", *flags]
        assert command("sample", "generate", odd_run, *arguments)[0] == 0
        with np.load(tmp_path / "drawn.npz") as file:
            return file["images"].astype(int)

    return draw


@pytest.mark.slow
def test_the_ends_of_an_interpolation_are_the_images_of_the_noises(
    odd_run, command, tmp_path, saved, drawn
):
    out = tmp_path / "new" / "x.png"
    flags = [
        "--rows",
        3,
        "--columns",
        4,
        "--steps",
        5,
        "--seed",
        5,
        "--batch-size",
        8,
        "--out",
        out,
    ]
    status, text, err = command("sample", "interpolate", odd_run, *flags)
    assert (status, err) == (0, "")
    assert f"{out}: 3 × 4 images (8, 8, 1) between noises, S=5 trailing, eta=0, seed=5" in text
    (rows, row_labels, column_labels), ends = saved[0], drawn("--steps", 5)
    assert (row_labels, column_labels) == (
        ["0 to 1", "2 to 3", "4 to 5"],
        ["0", "0.33", "0.67", "1"],
    )
    assert np.abs(rows[:, 0] - ends[0::2]).max() <= 1
    assert np.abs(rows[:, -1] - ends[1::2]).max() <= 1
    # What lies between is nearer to its own end.
    near, far = (np.abs(rows[:, 1] - rows[:, end]).mean((1, 2, 3)) for end in (0, -1))
    assert np.all((near > 0) & (near < far))
    assert out.exists()


@pytest.mark.slow
def test_a_trajectory_goes_from_noise_to_the_image_of_generate(
    odd_run, command, tmp_path, saved, drawn
):
    out = tmp_path / "x.png"
    flags = ["--steps", 12, "--sigma", "hat", "--timesteps", "trailing"]
    status, text, err = command(
        "sample", "trajectory", odd_run, "--num-images", 3, "--seed", 5, "--out", out, *flags
    )
    assert (status, err) == (0, "")
    assert re.search(
        r"x.png and .*x.gif \(13 frames, x_t above x̂_0\): 3 images \(8, 8, 1\), S=12", text
    )
    (rows, row_labels, column_labels), images = saved[0], drawn(*flags)[:3]
    assert (rows.shape, row_labels) == ((6, 10, 8, 8, 1), ["$x_t$", r"$\hat{x}_0$"] * 3)
    assert column_labels[-1] == "t = 0"
    for last in (rows[0::2, -1], rows[1::2, -1]):
        assert np.abs(last - images).max() <= 1
    x_T = to_uint8(np.asarray(initial_noise(image_keys(5, range(3)), (8, 8, 1)))).astype(int)
    assert np.abs(rows[0::2, 0] - x_T).max() <= 1
    assert np.abs(rows[1::2, 0] - images).max() > 10  # the first x̂_0 is not yet the image
    with Image.open(out.with_suffix(".gif")) as animation:
        assert (animation.n_frames, animation.size) == (13, (3 * 50 + 2, 2 * 50 + 2))
        animation.seek(12)
        frame = np.asarray(animation.convert("L")).astype(int)
    tiles = frame[2:, 2:].reshape(2, 50, 3, 50)[:, :48:6, :, :48:6].transpose(0, 2, 1, 3)
    assert np.abs(tiles - images[None, ..., 0]).max() <= 1


def test_up_to_so_many_steps_are_shown_and_both_ends_are_among_them():
    assert trajectory._evenly(3, 10) == [0, 1, 2]
    assert trajectory._evenly(51, 10) == [0, 6, 11, 17, 22, 28, 33, 39, 44, 50]
    shown = trajectory._evenly(1001, 100)
    assert (len(shown), shown[0], shown[-1]) == (100, 0, 1000)


MISTAKES = [
    ("interpolate", ["{run}", "--rows", "0"], "--rows is 0; it must be 1 or more"),
    ("interpolate", ["{run}", "--columns", "1"], "--columns is 1; it must be 2 or more"),
    ("interpolate", ["{run}", "--steps", "1001"], "S is 1001 reverse steps; choose 1 to T = 20"),
    ("interpolate", ["{run}", "--out", "{tmp}/x.gif"], "x.gif; its name must end in .png"),
    (
        "interpolate",
        ["{run}", "--steps", "5", "--out", "{tmp}/file/x.png"],
        "cannot be made (File exists)",
    ),
    ("trajectory", ["{run}", "--num-images", "0"], "--num-images is 0; it must be 1 or more"),
    ("trajectory", ["{run}", "--sigma", "eta=-1"], "eta is -1; it must be ≥ 0"),
    ("trajectory", ["{run}", "--eta", "1"], "--eta is now --sigma eta=VALUE"),
    ("trajectory", ["{run}", "--out", "{tmp}/x"], "x; its name must end in .png"),
    ("trajectory", ["{tmp}/nowhere"], "nowhere does not exist"),
]


@pytest.mark.parametrize(("name", "arguments", "sentence"), MISTAKES)
def test_a_mistake_is_one_sentence_and_writes_nothing(
    name, arguments, sentence, odd_run, command, tmp_path
):
    (tmp_path / "file").write_text("")
    before = sorted(tmp_path.rglob("*"))
    status, out, err = command(
        "sample", name, *(argument.format(run=odd_run, tmp=tmp_path) for argument in arguments)
    )
    assert (status, out) == (1, "")
    assert re.fullmatch(rf"error: .*{re.escape(sentence)}.*\n", err), err
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.slow
def test_a_model_without_a_row_for_no_label_draws_its_classes(odd_run, command, tmp_path):
    """--train.label-dropout 0 leaves "no label" untrained: every command takes the classes."""
    run = write_odd_run(tmp_path / "run", label_dropout=0.0)

    def images(*flags, of=run):
        out = tmp_path / "a.npz"
        arguments = ["generate", of, "--num-images", 12, "--steps", 2, "--out", out, *flags]
        status, text, err = command("sample", *arguments)
        assert (status, err) == (0, "")
        return np.load(out)["images"].astype(int), text

    in_turn, text = images()
    assert "labels 0 1 2 3 4 5 6 7 8 9, guidance 1" in text
    named, _ = images("--label", *range(10))
    np.testing.assert_array_equal(in_turn, named)
    without, _ = images(of=odd_run)
    assert np.abs(in_turn - without).max() > 0
    status, _, err = command("sample", "generate", run, "--steps", 2, "--label", 1, "--guidance", 2)
    assert "cannot draw without a label" in err
    assert status == 1
    out = tmp_path / "a.png"
    flags = ["--steps", 1, "--rows", 2, "--columns", 2, "--out", out]
    status, text, err = command("sample", "interpolate", run, *flags)
    assert (status, err) == (0, "")
    assert "labels 0 1 2" in text
