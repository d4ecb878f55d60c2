"""FID and its companions of any two sets of images, and Table 1, on Inception weights by rule."""

import json

import jax
import numpy as np
import pytest
from PIL import Image

from ddim_jax import features
from ddim_jax.files import file_sha256
from ddim_jax.metrics import frechet_distance, load_recipe, load_statistics
from ddim_jax.model.inception import inception_features
from ddim_jax.model.inception_file import load_inception


@pytest.fixture(scope="module")
def weights(inception_file):
    """A stand-in for Inception's file, with its SHA-256."""
    return inception_file, file_sha256(inception_file)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Two sets of images in three forms."""
    place = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    real, fake = (rng.integers(0, high, (8, 8, 8, 3), np.uint8) for high in (256, 180))
    np.savez(place / "real.npz", arr_0=real)
    np.savez(place / "fake.npz", images=fake, arr_0=fake[:1])
    (place / "folder").mkdir()
    for i, image in enumerate(fake):
        Image.fromarray(image).save(place / "folder" / f"{i}.png")
    return place, real, fake


def values(out):
    """{label: (value, margin)} of the printed table."""
    rows = [line.strip("│ ").split("│") for line in out.splitlines() if "±" in line]
    return {label.strip(): tuple(map(float, text.split("±"))) for label, text in rows}


def test_pixels_that_are_too_many_are_refused(command, pictures, monkeypatch, tmp_path):
    monkeypatch.setattr(features, "MOST", 7)
    place, _, _ = pictures
    flags = [place / "fake.npz", "--against", place / "real.npz"]
    status, _, err = command("sample", "evaluate", *flags)
    assert status == 1
    assert "the reference has 8 images of 192 features, whose covariance takes" in err
    monkeypatch.setattr(features, "MOST", 100)
    status, _, err = command("sample", "evaluate", *flags, "--save-statistics", tmp_path / "s.npz")
    assert "images of 192 features" in err
    assert not (tmp_path / "s.npz").exists()
    assert command("sample", "evaluate", *flags)[0] == 0


def test_pixels_of_an_npz_a_folder_and_a_data_set(command, pictures):
    place, real, fake = pictures
    outputs = []
    for images in (place / "fake.npz", place / "folder"):
        status, out, err = command("sample", "evaluate", images, "--against", place / "real.npz")
        assert (status, err) == (0, "")
        outputs.append(values(out))
    one, two = ({name: value for name, (value, _) in found.items()} for found in outputs)
    assert one == pytest.approx(two)
    flat = [images.reshape(8, -1) / 127.5 - 1 for images in (real, fake)]
    expected, _ = outputs[0]["Fréchet distance"]
    assert expected == pytest.approx(frechet_distance(*flat), rel=0.01)
    status, out, _ = command("sample", "evaluate", "digits@test", "--against", "digits")
    assert status == 0
    assert "images: 360 images, digits test" in out
    assert "reference: digits train, 1,437 images" in out
    assert sum(" ± " in line or " −" in line for line in out.splitlines()) == 6


@pytest.mark.slow
def test_inception_statistics_of_both_families(command, pictures, weights, tmp_path, monkeypatch):
    place, real, fake = pictures
    path, sha256 = weights
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    flags = ["--features", "inception", "--inception", path, "--inception-sha256", sha256]
    saved = tmp_path / "real.npz"
    status, out, err = command(
        "sample", "evaluate", place / "real.npz", *flags, "--save-statistics", saved
    )
    assert (status, err) == (0, "")
    params = load_inception(path, sha256)
    extract = jax.jit(inception_features)
    of_real, of_fake = (np.asarray(extract(params, x), float) for x in (real, fake))
    recipe = {"features": "Inception", "family": "tf1", "weights": sha256}
    assert recipe.items() <= load_recipe(saved).items()
    mean, covariance, count = load_statistics(saved)
    np.testing.assert_allclose(mean, of_real.mean(0), rtol=1e-4, atol=1e-6)
    assert (covariance.shape, count) == ((2048, 2048), 8)
    outputs = []
    for reference in (place / "real.npz", saved):
        status, out, err = command(
            "sample", "evaluate", place / "fake.npz", "--against", reference, *flags
        )
        assert (status, err) == (0, "")
        assert f"features: Inception, family tf1, weights {sha256}" in out
        assert "FID" not in out  # these weights are not the published ones
        outputs.append(values(out))
    distance = frechet_distance(of_real, of_fake)
    assert outputs[0]["Fréchet distance"][0] == round(distance)  # to the digits of its interval
    assert outputs[1] == {"Fréchet distance": outputs[0]["Fréchet distance"]}
    status, _, err = command(
        "sample", "evaluate", place / "fake.npz", "--against", saved, *flags,
        "--family", "pytorch-fid",
    )  # fmt: skip
    assert status == 1
    assert "has statistics of family tf1, and the images would have family pytorch-fid" in err


@pytest.mark.slow
def test_table_1_of_the_paper_on_a_stand_in(
    command, copy_of_run, weights, tmp_path, monkeypatch, without_figures
):
    path, sha256 = weights
    reference = tmp_path / "reference.npz"
    images = np.random.default_rng(1).integers(0, 256, (9, 8, 8, 1), np.uint8)
    np.savez(reference, images=images)
    monkeypatch.setenv("DDIM_JAX_INCEPTION", str(path))
    arguments = [
        "ablate", copy_of_run, "--preset", "table1", "--num-images", 8, "--steps", 10,
        "--sigma", "eta=0", "hat", "--inception-sha256", sha256, "--batch-size", 8,
        "--against", reference,
    ]  # fmt: skip
    status, out, err = command("sample", *arguments)
    assert (status, err) == (0, "")
    report = copy_of_run / "ablations" / "table1"
    table = (report / "table.md").read_text()
    assert f"Fréchet distance, Inception tf1 with weights {sha256[:8]}, n=8 against 9" in table
    assert "13.36 (13.36–13.74)" in table  # the paper's
    cells = json.loads((report / "results.json").read_text())["cells"]
    status, out, _ = command("sample", *arguments)
    assert (status, "2 of 2 cells are already measured" in out) == (0, True)
    again = json.loads((report / "results.json").read_text())["cells"]
    assert [cell["metrics"] for cell in again] == [cell["metrics"] for cell in cells]


@pytest.mark.slow
def test_the_samples_of_a_run_are_drawn_and_kept(command, copy_of_run):
    arguments = [
        "evaluate",
        copy_of_run,
        "--against",
        "digits@test",
        "--num-images",
        8,
        "--steps",
        2,
    ]
    outputs = [command("sample", *arguments, "--solver", "adams=2")[1] for _ in range(2)]
    assert "eta=0 quadratic adams=2 S=2, clip official, seed 0" in outputs[0]
    assert "1 of 1 batches already exist" in outputs[1]
    assert values(outputs[0]) == values(outputs[1])


@pytest.mark.slow
def test_the_classifier_is_that_of_the_run(command, copy_of_run):
    assert command("sample", "classifier", copy_of_run, "--epochs", 1)[0] == 0
    arguments = ["--against", "digits@test", "--num-images", 8, "--steps", 1]
    arguments += ["--features", "classifier"]
    status, out, err = command("sample", "evaluate", copy_of_run, *arguments)
    assert (status, err) == (0, "")
    assert "classifier, 95 % intervals" in out
    assert "warning: S=1: τ starts at t = 1, where ᾱ is 1" in out
    status, _, err = command("sample", "evaluate", "digits", *arguments[:2], *arguments[-2:])
    assert (status, err.count("\n")) == (1, 1)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["digits"], "--against is empty"),
        (["digits", "--against", "nosuch"], "--against is nosuch; give FILE.npz, a folder"),
        (["digits", "--against", "digits@middle"], "after @ comes train or test"),
        (["digits", "--against", "none.npz"], "none.npz cannot be read"),
        (["digits", "--against", "{bad}"], "has the arrays other; statistics are mu and sigma"),
        (["{bad}", "--against", "digits"], "has the arrays other"),
        (["digits", "--save-statistics", "a.txt"], "must end in .npz"),
        (["digits", "--against", "digits", "--num-images", 3], "--num-images is 3"),
        (
            ["digits", "--against", "digits", "--features", "inception", "--inception", "no.pth"],
            "no.pth, which is not a file",
        ),
        (["digits", "--against", "emoji"], "shape (8, 8, 1) and emoji train of (32, 32, 3)"),
    ],
)
def test_a_mistake_is_one_sentence(command, tmp_path, monkeypatch, arguments, sentence):
    monkeypatch.chdir(tmp_path)
    np.savez("bad.npz", other=np.zeros(3))
    status, _, err = command(
        "sample", "evaluate", *(str(one).format(bad="bad.npz") for one in arguments)
    )
    assert status == 1
    assert sentence in err
    assert (err.startswith("error: "), err.count("\n")) == (True, 1)
