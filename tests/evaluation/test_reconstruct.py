"""What is lost when images are encoded and decoded."""

import json
import re
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from ddim_jax import (
    Prediction,
    alpha_bars,
    eta,
    gaussian_oracle,
    image_keys,
    linear_betas,
    sample_many,
    stack_tables,
    step_table,
    trailing_timesteps,
    uniform_timesteps,
)  # fmt: skip
from ddim_jax.config import DataConfig
from ddim_jax.evaluation import reconstruct
from ddim_jax.evaluation.grid import cells
from ddim_jax.evaluation.paper import RECONSTRUCTION
from ddim_jax.evaluation.reconstruct import reconstruction_errors, round_trip
from ddim_jax.evaluation.source import oracle_source
from ddim_jax.metrics import Interval
from tests.evaluation import write_odd_run


def test_a_round_trip_is_the_papers_two_loops(alpha_bar, float64):
    """Against two loops in float64, for one image, three S in one stack and a function that is no
    oracle."""
    steps = (3, 10, 7)
    tables = stack_tables(
        [step_table(alpha_bar, uniform_timesteps(1000, S), eta(0.0)) for S in steps]
    )

    def epsilon(xp, x, t):
        return 0.7 * xp.sqrt(1 - xp.asarray(alpha_bar)[t]) * x + 0.2 * xp.sin(2 * x + t * (1 / 300))

    def denoise(x, t):
        bar = jnp.asarray(alpha_bar)[t][:, None]
        noise = epsilon(jnp, x, t[:, None])
        return Prediction((x - jnp.sqrt(1 - bar) * noise) / jnp.sqrt(bar), noise)

    def move(x, start, end, t):
        noise = epsilon(np, x, t)
        x_0 = (x - np.sqrt(1 - alpha_bar[start]) * noise) / np.sqrt(alpha_bar[start])
        return np.sqrt(alpha_bar[end]) * x_0 + np.sqrt(1 - alpha_bar[end]) * noise

    image = np.linspace(-1, 1, 6)[None]
    expected = []
    for S in steps:
        times, x = [0, *(i * 1000 // S + 1 for i in range(S))], image
        for s, t in pairwise(times):
            x = move(x, s, t, max(s, 1))
        for s, t in reversed(list(pairwise(times))):
            x = move(x, t, s, t)
        expected.append(x)
    decoded = round_trip(denoise, jnp.asarray(image), tables, image_keys(0, [0]))
    np.testing.assert_allclose(decoded, expected, rtol=1e-9)


def test_the_error_falls_as_one_over_s_and_is_twice_that_of_one_way(float64):
    """Equation (1), and the derivation beside it, on the optimal denoiser of a Gaussian of full
    rank."""
    steps = (125, 250, 500, 1000, 2000)
    alpha_bar = alpha_bars(linear_betas(4000, 1e-4 / 4, 0.02 / 4))
    tables = stack_tables(
        [step_table(alpha_bar, trailing_timesteps(4000, S), eta(0.0)) for S in steps]
    )
    mean, variances = np.array([0.3, -0.2, 0.1]), np.array([0.2, 0.6, 1.5])
    denoise = gaussian_oracle(mean, np.diag(variances), alpha_bar)
    x_0 = mean + np.sqrt(variances) * np.random.default_rng(0).normal(size=(8, 3))

    def slope(errors):
        return np.polyfit(np.log(steps), np.log(errors), 1)[0]

    both_ways = round_trip(denoise, jnp.asarray(x_0), tables, image_keys(0, range(8)))
    errors = reconstruction_errors(x_0, np.asarray(both_ways).swapaxes(0, 1))
    mse = np.array([error.value for error in errors])
    assert slope(np.sqrt(mse)) == pytest.approx(-1, abs=0.05)
    assert slope(mse) == pytest.approx(-2, abs=0.1)
    # The ODE of Gaussian data keeps (x_t − √ᾱ_t μ)/std(x_t) along each eigenvector, so that its x_T
    # is known exactly.
    std_T = np.sqrt(alpha_bar[-1] * variances + 1 - alpha_bar[-1])
    x_T = np.sqrt(alpha_bar[-1]) * mean + std_T * (x_0 - mean) / np.sqrt(variances)
    one_way = sample_many(denoise, jnp.asarray(x_T), tables, image_keys(0, range(8)))
    rms = np.sqrt(np.mean(np.square(np.asarray(one_way) - x_0), axis=(1, 2))) / 2
    assert slope(rms) == pytest.approx(-1, abs=0.05)
    np.testing.assert_allclose((np.sqrt(mse) / rms)[-2:], 2, atol=0.1)


def test_the_interval_covers_the_mean_95_times_in_100():
    rng = np.random.default_rng(0)
    images = np.zeros((100, 2, 2, 1), np.float32)
    covered = 0
    for _ in range(400):
        (error,) = reconstruction_errors(images, rng.normal(0, 0.2, size=(100, 1, 2, 2, 1)))
        covered += error.low < 0.01 < error.high  # 0.2 in [−1, 1] is 0.1 in [0, 1]
    assert 0.92 < covered / 400 < 0.975


def test_the_papers_table_2_stands_beside_ours_in_standard_errors(alpha_bar):
    grid = cells(alpha_bar, ["eta=0"], [""], (10, 12))
    errors = [Interval(0.015, 0.015 - 0.00196, 0.015 + 0.00196)] * 2
    assert [row[2] for row in reconstruct._table(grid, errors, True)[1:]] == ["0.014 [+1.0]", ""]
    assert [row[2] for row in reconstruct._table(grid, errors, False)[1:]] == ["0.014", ""]
    config, source = reconstruct.Config(oracle="digits"), oracle_source("digits")
    paper = source._replace(data=DataConfig("cifar10"))
    (uniform,) = cells(alpha_bar, ["eta=0"], ["uniform"], (10,))
    (noisy,) = cells(alpha_bar, ["eta=1"], [""], (10,))
    (second,) = cells(alpha_bar, ["eta=0"], [""], (10,), ["adams=2"])
    comparable = [
        reconstruct._comparable(config, of, cell, split)
        for of, cell, split in (
            (paper, grid[0], "test"), (source, grid[0], "test"), (paper, grid[0], "train"),
            (paper, uniform, "test"), (paper, noisy, "test"), (paper, second, "test"),
        )
    ]  # fmt: skip
    assert comparable == [True, *[False] * 5]


# ---- the command


@pytest.fixture(scope="module")
def odd_run(tmp_path_factory):
    return write_odd_run(tmp_path_factory.mktemp("runs") / "odd")


@pytest.mark.slow
def test_reconstruct_writes_a_table_its_numbers_and_a_picture(
    tiny_run, command, tmp_path, monkeypatch
):
    programs, make = [], reconstruct.batch_program

    def spy(function, mesh):
        programs.append(make(function, mesh))
        return programs[-1]

    monkeypatch.setattr(reconstruct, "batch_program", spy)
    out = tmp_path / "out"
    flags = [
        "--steps",
        10,
        3,
        2,
        "--num-images",
        12,
        "--batch-size",
        8,
        "--timesteps",
        "trailing",
        "--out",
        out,
    ]
    status, text, err = command("sample", "reconstruct", tiny_run, *flags)
    assert (status, err) == (0, "")
    assert [program._cache_size() for program in programs] == [
        1
    ]  # three S and two batches: one program
    report = json.loads((out / "results.json").read_text())
    assert [result["steps"] for result in report["results"]] == [10, 3, 2]
    assert all(0 < result["margin"] < result["mse"] for result in report["results"])
    assert report["data"] == {"source": "digits", "split": "test", "n": 12}
    assert report["settings"]["checkpoint"] == 3
    assert report["versions"]["jax"] == jax.__version__
    assert report["device"] == "8 of 8 × cpu"
    assert report["seconds"] > 0
    table = (out / "table.md").read_text()
    assert re.search(
        r"\| 10 \| [\d.]+ ± [\d.]+ \| 0.014 \|\n\| 3 \| [\d.]+ ± [\d.]+ \|  \|\n", table
    )
    assert "0.014" in text
    assert "12 images of digits (test split)" in table
    with Image.open(out / "reconstructions.png") as picture:
        assert picture.height == 4 * 50 + 2

    # The seed chooses other images.
    arguments = [*flags[:-1], tmp_path / "other", "--seed", 1]
    assert command("sample", "reconstruct", tiny_run, *arguments)[0] == 0
    other = json.loads((tmp_path / "other" / "results.json").read_text())
    assert other["results"][1]["mse"] != pytest.approx(report["results"][1]["mse"], rel=1e-3)


@pytest.mark.slow
def test_a_model_of_v_with_classes_and_few_steps_takes_its_defaults(odd_run, command):
    """x_T at ᾱ_T = 0 is no obstacle, and the S are those of the paper that T = 20 allows."""
    status, _, err = command(
        "sample", "reconstruct", odd_run, "--num-images", 4, "--timesteps", "trailing"
    )
    assert (status, err) == (0, "")
    results = json.loads((odd_run / "reconstruction" / "results.json").read_text())["results"]
    assert [result["steps"] for result in results] == [S for S in RECONSTRUCTION if S <= 20]
    assert results[1]["mse"] < results[0]["mse"]


@pytest.mark.slow
def test_a_folder_gives_its_train_split_and_that_is_said(odd_run, command, tmp_path):
    (tmp_path / "images").mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (3, 8, 8), np.uint8)
    for i, image in enumerate(pixels):
        Image.fromarray(image).save(tmp_path / "images" / f"{i}.png")
    flags = [
        "--source",
        f"folder:{tmp_path / 'images'}",
        "--num-images",
        4,
        "--timesteps",
        "trailing",
        "--out",
        tmp_path,
    ]
    status, text, err = command("sample", "reconstruct", odd_run, *flags)
    assert (status, err) == (0, "")
    assert "3 images of" in text
    assert "(train split, since there is no test split)" in text


MISTAKES = [
    (["{run}", "--steps", "10", "2000"], "S is 2000 reverse steps; choose 1 to T = 20"),
    (["{run}", "--steps", "0"], "S is 0 reverse steps"),
    (["{run}", "--num-images", "1"], "--num-images is 1; it must be 2 or more"),
    (["{run}", "--batch-size", "0"], "--batch-size is 0; it must be 1 or more"),
    (["{run}", "--seed", "-1"], "--seed is -1"),
    (["{run}", "--checkpoint", "2000"], "the checkpoint asked for is 2000"),
    (["{run}", "--source", "cat"], "--data.source is cat; it must be digits, emoji"),
    (
        ["{run}", "--source", "emoji"],
        "emoji has images of shape (32, 32, 3), the model takes (8, 8, 1)",
    ),
    (["{run}", "--out", "{tmp}/file"], "cannot be made (File exists); choose another place"),
    (["{tmp}/nowhere"], "nowhere does not exist"),
]


@pytest.mark.parametrize(("arguments", "sentence"), MISTAKES)
def test_a_mistake_is_one_sentence_and_writes_nothing(
    arguments, sentence, odd_run, command, tmp_path
):
    (tmp_path / "file").write_text("")
    before = sorted(tmp_path.rglob("*")), sorted(odd_run.rglob("*"))
    arguments = [argument.format(run=odd_run, tmp=tmp_path) for argument in arguments]
    status, out, err = command("sample", "reconstruct", *arguments)
    assert (status, out) == (1, "")
    assert re.fullmatch(rf"error: .*{re.escape(sentence)}.*\n", err), err
    assert (sorted(tmp_path.rglob("*")), sorted(odd_run.rglob("*"))) == before
