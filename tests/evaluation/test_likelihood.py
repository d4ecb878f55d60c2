"""Bits/dim as a command, and what analytic σ and optimal τ estimate of a model."""

import json
import math
import re

import jax
import numpy as np
import pytest
import scipy.stats
from rich.console import Console

from ddim_jax import analytic, ddpm, elbo, elbo_costs, eta, image_keys, optimal_timesteps
from ddim_jax.diffusion.keys import Purpose
from ddim_jax.diffusion.sigmas import Steps
from ddim_jax.evaluation import estimates
from ddim_jax.evaluation.bits import Split, dequantised, elbo_metrics, elbos, open_split
from ddim_jax.evaluation.estimates import kept_estimates
from ddim_jax.evaluation.grid import cells
from ddim_jax.evaluation.likelihood import _literature
from ddim_jax.evaluation.source import oracle_source, run_source

QUIET = Console(quiet=True)


@pytest.fixture(scope="module")
def gaussian(tmp_path_factory):
    source = oracle_source("gaussian")
    return source._replace(directory=tmp_path_factory.mktemp("gaussian"))


@pytest.fixture(scope="module")
def run(tiny_run, tmp_path_factory, command):
    """The results of the command on a tiny run."""
    out = tmp_path_factory.mktemp("likelihood")
    flags = ("--num-images", "6", "--batch-size", "4", "--steps", "3", "--ode", "--stride", "100")
    status, printed, errors = command("sample", "likelihood", tiny_run, "--out", out, *flags)
    assert status == 0, errors
    return json.loads((out / "results.json").read_text()), out, printed, flags


@pytest.mark.slow
def test_the_command_measures_both_splits(run, tiny_run):
    results, out, printed, _ = run
    entries = results["results"]
    names = ["eta=1 quadratic S=3", "sigma-hat quadratic S=3", "ODE"]
    assert [(e["split"], e["cell"]) for e in entries] == [
        (split, name) for split in ("test", "train") for name in names
    ]
    for entry in entries:
        assert entry["n"] == 6
        assert entry["bits"]["low"] < entry["bits"]["value"] < entry["bits"]["high"]
        if entry["cell"] != "ODE":
            total = entry["rate"]["value"] + entry["distortion"]["value"]
            assert entry["bits"]["value"] == pytest.approx(total)
            assert len(entry["t"]) == len(entry["by_step"]) == 2
            assert sum(entry["by_step"]) == pytest.approx(entry["rate"]["value"], rel=0.05)
    assert "ODE" in (out / "table.md").read_text()
    assert "bits/dim" in printed
    assert (out / "steps.png").read_bytes().startswith(b"\x89PNG")
    assert "published" not in results


@pytest.mark.slow
def test_the_terms_are_those_of_floor_1(run, tiny_run):
    """The first cell of the test split, computed image by image with the public function."""
    source = run_source(tiny_run)
    split = open_split(source, "test", 6)
    (cell,) = cells(source.alpha_bar, ["eta=1"], [""], [3])
    denoise, totals = source.denoise(source.params, None), []
    with jax.default_matmul_precision("highest"):
        compute = jax.jit(lambda x_0, keys: elbo(denoise, x_0, source.alpha_bar, cell.table, keys))
        for i in range(6):
            keys = image_keys(0, [i], Purpose.LIKELIHOOD)
            terms = compute(split.images[i : i + 1], keys)
            totals.append(float(terms.prior[0] + terms.steps.sum() + terms.data[0]))
    bits = np.mean(totals) / (64 * math.log(2))
    assert run[0]["results"][0]["bits"]["value"] == pytest.approx(bits, rel=1e-4)


@pytest.mark.slow
def test_repeated_it_gives_the_same_numbers(run, tiny_run, command, tmp_path):
    flags = [flag for flag in run[3] if flag != "--ode"]
    status, _, errors = command("sample", "likelihood", tiny_run, "--out", tmp_path, *flags)
    assert status == 0, errors
    elbos = [entry for entry in run[0]["results"] if entry["cell"] != "ODE"]
    assert json.loads((tmp_path / "results.json").read_text())["results"] == elbos


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--sigma", "eta=0"), "eta=0 quadratic S=10 has steps without noise or with corrections"),
        (("--stride", "3"), "--stride is 3; it must be even"),
        (("--sigma", "analytic=x"), "--sigma is analytic=x; give analytic"),
        (("--sigma", "analytic=1,last=-1"), "last_noise is -1"),
        (("--timesteps", "best"), "--timesteps is best; give .*optimal"),
    ],
)
def test_refusals(command, tiny_run, tmp_path, flags, message, monkeypatch):
    monkeypatch.setattr(estimates, "_means", lambda source, console: np.full((2, 1001), 0.5))
    status, _, errors = command(
        "sample", "likelihood", tiny_run, "--num-images", "2", "--out", tmp_path, *flags
    )
    assert status == 1
    assert re.search(message, errors), errors
    assert "Traceback" not in errors


def test_devices_and_batches_change_nothing_but_rounding(gaussian):
    images = gaussian.reference().images[:6]
    grid = cells(gaussian.alpha_bar, ["eta=1"], ["linspace"], [5])
    alone, together = (
        elbos(gaussian, Split("data", images, None), grid, 0, size, QUIET)[0] for size in (1, 6)
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4), alone, together)


def test_ode_of_the_gaussian_is_its_density(command, gaussian, tmp_path):
    flags = ("--num-images", "48", "--steps", "5", "--ode", "--stride", "10", "--out", tmp_path)
    status, _, errors = command("sample", "likelihood", "--oracle", "gaussian", *flags)
    assert status == 0, errors
    *_, entry = json.loads((tmp_path / "results.json").read_text())["results"]
    images = gaussian.reference().images
    images = images[np.random.default_rng(0).permutation(len(images))[:48]].reshape(48, -1)
    log_p = scipy.stats.multivariate_normal(*gaussian.moments).logpdf(images.astype(np.float64))
    exact = -log_p.mean() / (64 * math.log(2)) + math.log2(127.5)
    # Null directions have the ridge's variance, 0.02²: the ODE's start at ρ_1 = 0.01 shows.
    assert entry["bits"]["value"] == pytest.approx(exact, abs=0.15)


@pytest.fixture(scope="module")
def of_gaussian(gaussian):
    return kept_estimates(gaussian, QUIET)


def test_estimates_agree_with_the_exact_errors(gaussian, of_gaussian):
    values = np.linalg.eigvalsh(gaussian.moments[1])
    bars = gaussian.alpha_bar[1:, None]
    c = bars * values + 1 - bars
    error = ((1 - bars) * values / c).sum(1)
    power = ((1 - bars) / c).mean(1)
    assert np.isnan(of_gaussian.epsilon_power[0])
    assert of_gaussian.dimension == 64
    np.testing.assert_allclose(of_gaussian.x_0_error[1:], error, rtol=0.35)
    np.testing.assert_allclose(of_gaussian.epsilon_power[1:], power, rtol=0.25)
    assert (of_gaussian.x_0_error[1:] / error).mean() == pytest.approx(1, abs=0.03)
    assert (of_gaussian.epsilon_power[1:] / power).mean() == pytest.approx(1, abs=0.03)


def test_estimates_are_made_once(gaussian, of_gaussian, monkeypatch):
    def fail(source, console):
        raise AssertionError("computed again")

    monkeypatch.setattr(estimates, "_means", fail)
    again = kept_estimates(gaussian, QUIET)
    np.testing.assert_array_equal(again.x_0_error, of_gaussian.x_0_error)
    other = gaussian._replace(identity=("other weights",))
    with pytest.raises(AssertionError, match="computed again"):
        kept_estimates(other, QUIET)


def test_names_of_the_command_line(gaussian, of_gaussian):
    """`analytic` and `optimal` are floor 1's functions of the estimates."""

    def grid(sigma, tau="linspace"):
        (cell,) = cells(gaussian.alpha_bar, [sigma], [tau], [7], estimates=lambda: of_gaussian)
        return cell

    power = of_gaussian.epsilon_power
    for text, value, options in [
        ("analytic", 1.0, {"bounded": True, "last_noise": 1.0}),
        ("analytic=0.5,last=2", 0.5, {"bounded": True, "last_noise": 2.0}),
        ("analytic=0,last=off,bounded=off", 0.0, {}),
    ]:
        cell = grid(text)
        steps = Steps(*(np.asarray(leaf) for leaf in cell.table[:4]))
        np.testing.assert_array_equal(
            cell.table.noise, analytic(eta(value), power, **options)(steps).noise
        )
    assert grid("analytic").sigma == "analytic=1"
    cost = elbo_costs(gaussian.alpha_bar, np.nan_to_num(of_gaussian.x_0_error), 64)
    np.testing.assert_array_equal(
        grid("eta=0", "optimal").table.t[::-1], optimal_timesteps(cost, 7)
    )


def test_bounds_of_analytic_sigma(alpha_bar):
    tau = np.array([1000, 500, 20, 1, 0])
    steps = Steps(tau[:-1], tau[1:], alpha_bar[tau[:-1]], alpha_bar[tau[1:]])
    none = analytic(ddpm(), np.zeros(1001))(steps).noise  # Γ = 0: the variance is that of x_t/√ᾱ
    bounded = analytic(ddpm(), np.zeros(1001), bounded=True)(steps).noise
    # Cov(x_0 | x_t) = 1 in every direction: Eq. 7's variance and that of the mean's x_0.
    a_t, a_s = steps.alpha_bar_t, steps.alpha_bar_s
    variance = (1 - a_s) / (1 - a_t) * (1 - a_t / a_s)
    c = np.sqrt(a_s) - np.sqrt(np.maximum(1 - a_s - variance, 0) * a_t / (1 - a_t))
    np.testing.assert_allclose(bounded[:2], np.sqrt(variance + c**2)[:2])
    assert np.all(none[:2] > 1.01 * bounded[:2])
    last = analytic(ddpm(), np.zeros(1001), last_noise=1)(steps).noise
    assert last[2] == pytest.approx(2 / 255 * math.sqrt(math.pi / 2))
    np.testing.assert_array_equal(last[[0, 1, 3]], none[[0, 1, 3]])


def test_the_elbo_is_a_metric_of_cells_with_noise(gaussian):
    grid = cells(
        gaussian.alpha_bar, ["eta=0", "eta=1"], ["linspace"], [5], ["first", "adams=2", "deis=2"]
    )
    label, metrics = elbo_metrics(gaussian, grid, 6, 0, 64, QUIET)
    assert label == "ELBO, bits/dim, density, 6 data images"
    assert metrics[0]["value"] == math.inf
    assert all(math.isnan(metrics[i]["value"]) for i in (2, 3, 4, 5))
    images = gaussian.reference().images
    images = images[np.random.default_rng(0).permutation(len(images))[:6]]
    (terms,) = elbos(gaussian, Split("data", images, None), grid[1:2], 0, 64, QUIET)
    bits = np.mean(terms.prior + terms.steps.sum(1) + terms.data) / (64 * math.log(2))
    found = metrics[1]
    assert found["value"] == pytest.approx(bits + math.log2(127.5), rel=1e-5)
    assert found["low"] < found["value"] < found["high"]


def test_dequantised_images_fill_their_bins():
    x_0 = np.tile(np.linspace(-1, 1, 256, dtype=np.float32)[:, None], (64, 1, 1))
    noise = (np.asarray(dequantised(x_0, image_keys(0, np.arange(64)))) - x_0) * 127.5
    assert -0.5001 < noise.min() < -0.499
    assert 0.499 < noise.max() < 0.5001
    assert abs(noise.mean()) < 0.01
    assert abs(np.corrcoef(noise[0, :, 0], noise[1, :, 0])[0, 1]) < 0.3


def test_published_numbers_stand_beside_the_same_setting():
    cell = {"sigma": "sigma-hat", "timesteps": "linspace", "steps": 100, "cell": ""}
    results = [cell, cell | {"timesteps": "quadratic"}, cell | {"steps": 99}, {"cell": "ODE"}]
    title, *column = _literature(results)
    assert "other weights" in title
    assert column == ["4.86", "", "", "3.28"]
