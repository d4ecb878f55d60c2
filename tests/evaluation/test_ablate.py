"""What is drawn and kept of a grid, and what an exact oracle says about it."""

import itertools
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from rich.console import Console

from ddim_jax import devices, propagate_gaussian
from ddim_jax.evaluation.cells import Drawing, _place, draw_cells
from ddim_jax.evaluation.grid import cells
from ddim_jax.evaluation.measure import exact_parts
from ddim_jax.evaluation.source import oracle_source
from tests.evaluation.example import REPORT

TABLE_1 = ("eta=0", "eta=0.2", "eta=0.5", "eta=1", "hat")


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


# ---- the exact numbers of a Gaussian


@pytest.mark.parametrize("timesteps", ["quadratic", "uniform", "trailing"])
def test_the_covariance_part_grows_with_eta_and_agrees_with_a_recursion(gaussian, timesteps):
    mean, covariance = gaussian.moments
    values, vectors = np.linalg.eigh(covariance)
    bars = gaussian.alpha_bar
    for count in (5, 10, 20, 50):
        parts = []
        for cell in cells(bars, TABLE_1[:4], (timesteps,), (count,)):
            # x_s = √ᾱ_s x̂_0 + √(1−ᾱ_s−σ²) ε̂ + σ z in each eigendirection, with E[x_0 | x_t] of a
            # Gaussian.
            m, v, mu = np.zeros(64), np.ones(64), mean @ vectors
            times = [*np.asarray(cell.table.t), 0]
            for t, s in itertools.pairwise(times):
                a, b = bars[t], bars[s]
                sigma = float(cell.sigma[4:]) * np.sqrt((1 - b) / (1 - a) * (1 - a / b))
                gain = np.sqrt(a) * values / (a * values + 1 - a)  # of x̂_0 in x_t
                direction = np.sqrt(max(1 - b - sigma**2, 0)) / np.sqrt(1 - a)
                slope = np.sqrt(b) * gain + direction * (1 - np.sqrt(a) * gain)
                offset = (np.sqrt(b) - direction * np.sqrt(a)) * (mu - gain * np.sqrt(a) * mu)
                m, v = slope * m + offset, slope**2 * v + sigma**2
            of_mean, of_covariance = (
                np.sum((m - mu) ** 2),
                np.sum((np.sqrt(v) - np.sqrt(values)) ** 2),
            )
            found = {name: part["value"] for name, part in exact_parts(gaussian, cell).items()}
            assert found["w2_mean"] == pytest.approx(of_mean, rel=1e-6, abs=1e-9)
            assert found["w2_covariance"] == pytest.approx(of_covariance, rel=1e-6, abs=1e-9)
            assert found["w2"] == pytest.approx(of_mean + of_covariance, rel=1e-6, abs=1e-9)
            kl = 0.5 * np.sum(v / values + (m - mu) ** 2 / values - 1 - np.log(v / values))
            assert found["kl"] == pytest.approx(kl, rel=1e-6)
            parts.append(found["w2_covariance"])
        assert parts == sorted(parts)
        assert parts[0] < parts[-1]


def test_sampled_moments_are_the_exact_ones_and_one_program_draws_the_grid(gaussian):
    grid = cells(gaussian.alpha_bar, TABLE_1, ("quadratic",), (5, 10))
    drawing = Drawing(gaussian, seed=0, num_images=2048, size=1024)
    with open("log", "w") as log:
        drawn, compilations = draw_cells(drawing, grid, [0] * 10, Console(file=log))
        assert compilations == 1
        again, compilations = draw_cells(drawing, grid, [0] * 10, Console(file=log))
    assert compilations == 0  # everything was there
    assert "20 of 20 batches already exist" in Path("log").read_text()
    for cell, found, same in zip(grid, drawn, again, strict=True):
        np.testing.assert_array_equal(found.images(), same.images())
        assert len(found.images(7)) == 7
        exact = propagate_gaussian(*gaussian.moments, gaussian.alpha_bar, cell.table)
        flat, variance = found.images().reshape(2048, -1), np.diag(exact.covariance)
        assert flat.dtype == np.float32
        assert np.abs(flat).max() > 1.2  # kept as they are, not clipped
        errors = (flat.mean(0) - exact.mean) / np.sqrt(variance / 2048)
        assert np.abs(errors).max() < 4.5
        np.testing.assert_allclose(flat.var(0), variance, rtol=4.5 * np.sqrt(2 / 2048))
        assert found.x_0_rms.shape == (cell.steps,)


def test_two_grids_share_cells_and_a_change_shares_none(gaussian, monkeypatch):
    (cell,) = cells(gaussian.alpha_bar, ("eta=0",), ("uniform",), (3,))
    same = cells(gaussian.alpha_bar, ("eta=1", "eta=0"), ("uniform",), (4, 3))[3]
    drawing = Drawing(gaussian, seed=0, num_images=8, size=8)
    place = _place(drawing, cell, 0)
    assert place == _place(drawing._replace(num_images=16), same, 0)
    other_source = gaussian._replace(identity=("another checkpoint",))
    noisier = cell.table._replace(noise=np.asarray(cell.table.noise) + 1e-9)
    changed = [
        _place(drawing._replace(seed=1), cell, 0),
        _place(drawing._replace(size=4), cell, 0),
        _place(drawing, cell, 1),
        _place(drawing._replace(source=other_source), cell, 0),
        _place(drawing, cell._replace(table=noisier), 0),
    ]
    changed += [
        _place(drawing._replace(labels=(1,)), cell, 0),
        _place(drawing._replace(guidance=2.0), cell, 0),
    ]
    monkeypatch.setenv("XLA_FLAGS", "--xla_of_ones_own")
    changed.append(_place(drawing, cell, 0))
    monkeypatch.delenv("XLA_FLAGS")
    with jax.enable_x64(True):
        changed.append(_place(drawing, cell, 0))
    monkeypatch.setattr(devices, "file_sha256", lambda path: "an edited source")
    changed.append(_place(drawing, cell, 0))
    assert len({place, *changed}) == 11


@pytest.mark.slow
def test_a_thousand_steps_on_the_digits_themselves_give_digits():
    source = oracle_source("digits")
    grid = cells(source.alpha_bar, ("eta=0", "eta=1"), ("uniform",), (1000,))
    with open("log", "w") as log:
        drawn, _ = draw_cells(Drawing(source, 0, 12, 12), grid, [0, 0], Console(file=log))
    references = source.reference().images
    known = {np.rint((image + 1) * 127.5).astype(np.uint8).tobytes() for image in references}
    for found in drawn:
        assert sum(image.tobytes() in known for image in found.images()) >= 11


# ---- the command


ARGUMENTS = [
    "--num-images",
    12,
    "--batch-size",
    4,
    "--steps",
    2,
    3,
    "--sigma",
    "eta=0",
    "eta=1",
    "hat",
]
TIMES = ("seconds", "wall_seconds", "compilations")


def without_times(values):
    if isinstance(values, dict):
        return {name: without_times(value) for name, value in values.items() if name not in TIMES}
    return [without_times(value) for value in values] if isinstance(values, list) else values


@pytest.mark.slow
def test_an_interrupted_ablation_ends_as_a_whole_one(copy_of_run, command, request):
    status, out, err = command("sample", "ablate", copy_of_run, *ARGUMENTS)
    assert (status, err) == (0, "")
    assert "1 compilation of the sampler for 6 cells" in out
    report = copy_of_run / "ablations" / "default"
    names = REPORT | {"samples.png"}
    assert {path.name for path in report.iterdir()} == names
    results = json.loads((report / "results.json").read_text())
    assert results["metrics"]["frechet"] == "Fréchet distance, pixels, n=12 against 1,437"
    assert "FID" not in json.dumps(results)
    assert [cell["network_calls"] for cell in results["cells"]] == [2, 3] * 3
    assert all(
        cell["metrics"]["frechet"]["low"] <= cell["metrics"]["frechet"]["value"]
        for cell in results["cells"]
    )

    # Stopped: some batches are there, one is half-written.
    before = {name: (report / name).read_bytes() for name in names}
    places = copy_of_run / "ablations" / "cells"
    files, measured = sorted(places.rglob("0*.npz")), sorted(places.rglob("metrics-*.npz"))
    assert (len(files), len(measured)) == (6 * 3, 6)
    kept = {path: path.read_bytes() for path in [*files[::2], *measured[2:]]}
    for path in [*files[1::2], measured[0]]:
        path.unlink()
    measured[1].write_bytes(measured[1].read_bytes()[:-7])
    files[1].with_name(f".partial-1-{files[1].name}").write_bytes(b"half")
    shutil.rmtree(report)
    status, out, err = command("sample", "ablate", copy_of_run, *ARGUMENTS)
    assert (status, err) == (0, "")
    assert "9 of 18 batches already exist" in out
    assert "4 of 6 cells are already measured" in out
    assert all(path.read_bytes() == content for path, content in kept.items())
    assert without_times(json.loads((report / "results.json").read_text())) == without_times(
        results
    )
    for name in ("table.md", "metrics.png", "steps.png", "drift.png", "samples.png"):
        assert (report / name).read_bytes() == before[name]

    # What was measured serves another baseline.
    request.getfixturevalue("without_figures")
    status, out, _ = command(
        "sample", "ablate", copy_of_run, *ARGUMENTS, "--baseline", "sigma-hat quadratic S=2",
        "--likelihood", "6",
    )  # fmt: skip
    assert (status, "6 of 6 cells are already measured" in out) == (0, True)
    again = json.loads((report / "results.json").read_text())
    assert again["metrics"]["bits"] == "ELBO, bits/dim, 256 levels, 6 test images"
    bits = {cell["id"]: cell["metrics"]["bits"]["value"] for cell in again["cells"]}
    assert bits["eta=0 quadratic S=2"] is None  # infinite
    assert 0 < bits["sigma-hat quadratic S=3"] < 1000
    assert "| inf | inf |" in (report / "table.md").read_text()
    assert "difference" not in json.loads((report / "results.json").read_text())["cells"][4]

    # A classifier of the same data gives features under their own name.
    assert command("sample", "classifier", copy_of_run, "--epochs", 1)[0] == 0
    status, _, err = command(
        "sample", "ablate", copy_of_run, *ARGUMENTS, "--features", "classifier", "--name", "learned"
    )
    assert (status, err) == (0, "")
    learned = json.loads((copy_of_run / "ablations" / "learned" / "results.json").read_text())
    assert learned["metrics"]["frechet"].startswith("Fréchet distance, classifier, n=12")
    assert learned["compilations"] == 0


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "give one of the two"),
        (["{run}", "--oracle", "digits"], "give one of the two"),
        (
            ["{run}", "--num-images", "7"],
            "--num-images is 7; it must be 0 (the default), or 8 or more",
        ),
        (["{run}", "--name", "a/b"], "--name is 'a/b'"),
        (["{run}", "--baseline", "none"], "--baseline is 'none'; the grid has eta=0"),
        (
            [
                "{run}",
                "--features",
                "classifier",
                "--num-images",
                "8",
                "--batch-size",
                "8",
                "--sigma",
                "eta=0",
                "--steps",
                "1",
            ],
            "`python sample.py classifier` makes it",
        ),
        (["{run}", "--sigma", "none.npy"], "none.npy cannot be read"),
        (["{run}", "--eta", "0.5"], "--eta is now --sigma eta=VALUE"),
        (["{run}", "--sigma-hat"], "--sigma-hat is now --sigma hat"),
        (["nowhere"], "does not exist"),
    ],
)
def test_a_mistake_is_one_sentence(command, tiny_run, arguments, sentence):
    status, _, err = command(
        "sample", "ablate", *(argument.format(run=tiny_run) for argument in arguments)
    )
    assert status == 1
    assert sentence in err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
