"""Samplers that are learned, kept in files, and used by every command."""

import itertools
import json

import jax
import numpy as np
import pytest
from rich.console import Console

from ddim_jax import (
    adams,
    deis,
    dpm_solver_pp,
    eta,
    first_order,
    sigma_hat,
    step_table,
)
from ddim_jax.diffusion.learned import learned_table, table_parameters
from ddim_jax.diffusion.timesteps import TIMESTEPS
from ddim_jax.evaluation.learn import Config, _descend
from ddim_jax.evaluation.objectives import (
    Objective,
    exact_loss,
    minimise,
)
from ddim_jax.evaluation.samplers import load_sampler, sampler_cells, save_sampler
from ddim_jax.evaluation.source import oracle_source
from ddim_jax.metrics import Spread
from tests.evaluation import w2

QUIET = Console(quiet=True)


@pytest.fixture(scope="module")
def learned(tmp_path_factory, command):
    """The sampler that the command learns at S = 5 on the Gaussian oracle."""
    out = tmp_path_factory.mktemp("learned") / "five.npz"
    status, printed, errors = command(
        "sample", "learn", "--oracle", "gaussian", "--steps", "5", "--out", out
    )
    assert status == 0, errors
    return out, printed


@pytest.mark.slow
def test_a_learned_sampler_beats_every_named_one(learned, gaussian):
    table, recipe = load_sampler(learned[0], gaussian.alpha_bar)
    bars = gaussian.alpha_bar
    sigmas = [eta(0.0), eta(0.5), eta(1.0), sigma_hat()]
    solvers = [first_order(), adams(2), adams(3), dpm_solver_pp(2), deis(3)]
    named = [
        step_table(bars, choose(bars, 5), sigma, solver)
        for choose, sigma, solver in itertools.product(TIMESTEPS.values(), sigmas, solvers)
    ]
    of_named = np.array([w2(gaussian, each) for each in named])
    mean, covariance = w2(gaussian, table)
    assert mean + covariance < of_named.sum(1).min() / 100
    assert covariance < of_named[:, 1].min()
    assert recipe["start"] == "eta=1 quadratic dpmpp=2 S=5"
    assert recipe["learned"] == ["sigma", "noise", "correction"]
    assert "learned" in learned[1]
    assert learned[0].with_suffix(".png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_another_seed_finds_the_same(learned, gaussian):
    base = sampler_cells(gaussian.alpha_bar, ["eta=1 quadratic dpmpp=2 S=5"])[0].table
    first = table_parameters(base, ["sigma", "noise", "correction"], 3)
    found = sum(w2(gaussian, load_sampler(learned[0], gaussian.alpha_bar)[0]))
    with jax.enable_x64(True):
        loss = exact_loss(gaussian, "w2")
        _, curve = minimise(lambda p: loss(learned_table(base, p)), first, 1)
    assert curve[-1] == pytest.approx(found, rel=0.01)


def test_an_interrupted_descent_ends_as_a_whole_one(alpha_bar, tmp_path):
    """And what it keeps is the best of the held-out losses, not the last."""
    base = step_table(alpha_bar, [1, 300, 900], eta(1.0))
    first = table_parameters(base, ["sigma"], 1)
    goal = np.array([0.5, 1.0, 0.2])

    def gradient(parameters, update):
        asked.append(update)
        if update == stop:
            raise KeyboardInterrupt
        error = np.asarray(parameters.u, np.float64) - goal + 0.1 * np.sin(update)
        return float(np.sum(error**2)), parameters._replace(u=2 * error)

    def held_out(table, count):
        distance = np.abs(np.asarray(table.sigma) - goal_sigma).sum()
        seen.append(distance)
        return Spread(distance, np.zeros(1), np.zeros(0))

    goal_sigma = np.asarray(learned_table(base, first._replace(u=goal - 0.03)).sigma)
    results = []
    for out, stops in ((tmp_path / "a.npz", [None]), (tmp_path / "b.npz", [50, 51, None])):
        settings = Config(out=out, updates=100, learning_rate=0.05, num_images=8)
        for stop in stops:
            seen, asked = [], []
            try:
                results.append(
                    _descend(
                        settings,
                        Objective(lambda base: gradient, held_out),
                        base,
                        first,
                        "id",
                        QUIET,
                    )
                )
            except KeyboardInterrupt:
                assert stop is not None
        assert not out.with_suffix(".partial.npz").exists()
    assert asked[0] == 40  # where the last one kept its state
    (whole, curve), (resumed, again) = results
    np.testing.assert_array_equal(whole.sigma, resumed.sigma)
    np.testing.assert_array_equal(curve["loss"], again["loss"])
    np.testing.assert_array_equal(curve["held out"], again["held out"])
    distance = np.abs(np.asarray(whole.sigma) - goal_sigma).sum()
    assert distance == pytest.approx(min(curve["held out"]))


def test_what_a_descent_finds_is_a_table_that_is_accepted(alpha_bar, tmp_path):
    """Its corrections sum to 0 to the digits that `step_table` asks for."""
    base = step_table(alpha_bar, [1, 30, 300, 600, 900], eta(0.0))
    rng = np.random.default_rng(0)

    def gradient(parameters, update):
        return 1.0, jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape), parameters)

    settings = Config(out=tmp_path / "a.npz", updates=30, learning_rate=0.3)
    first = table_parameters(base, ["correction"], 3)
    falling = itertools.count(0, -1)
    objective = Objective(
        lambda base: gradient, lambda *_: Spread(next(falling), np.zeros(1), np.zeros(0))
    )
    table, _ = _descend(settings, objective, base, first, "id", QUIET)
    assert np.abs(table.x_0_correction).max() > 0.1
    save_sampler(settings.out, table, {})
    np.testing.assert_array_equal(
        load_sampler(settings.out, alpha_bar)[0].x_0_correction, table.x_0_correction
    )


@pytest.mark.slow
def test_a_network_learns_from_features(copy_of_run, command, tmp_path, without_figures):
    """The loss falls on noise that was trained on, and the sampler draws and is ablated."""
    out = tmp_path / "two.npz"
    assert command("sample", "classifier", copy_of_run, "--epochs", 1)[0] == 0
    status, printed, errors = command(
        "sample", "learn", copy_of_run, "--steps", 2, "--start", "eta=1 quadratic S=2", "--updates",
        10, "--batch-size", 16, "--num-images", 16, "--out", out,
    )  # fmt: skip
    assert status == 0, errors
    assert "less that of the start" in printed
    table, recipe = load_sampler(out, oracle_source("digits").alpha_bar)
    assert np.all(np.isfinite(table.x_0_correction))
    assert "kernel distance, classifier" in recipe["loss"]
    picture = tmp_path / "x.npz"
    status, printed, errors = command(
        "sample", "generate", copy_of_run, "--sampler", out, "--num-images", 2, "--out", picture
    )
    assert status == 0, errors
    assert "S=2 of its own, two" in printed
    status, _, errors = command(
        "sample", "ablate", copy_of_run, "--sampler", "eta=1 quadratic S=2", out, "--num-images", 8,
        "--name", "ladder",
    )  # fmt: skip
    assert status == 0, errors
    results = json.loads((copy_of_run / "ablations" / "ladder" / "results.json").read_text())
    assert [cell["id"] for cell in results["cells"]] == ["eta=1 quadratic S=2", "two S=2"]
    assert "difference" in results["cells"][1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("generate", "--sampler", "none.npz"), "--sampler none.npz is not a sampler file"),
        (
            ("generate", "--sampler", "eta=0 quadratic S=5", "--steps", "5"),
            "--steps is given beside --sampler",
        ),
        (
            ("ablate", "--sampler", "eta=0 quadratic S=5", "--sigma", "hat"),
            "--sigma is given beside --sampler",
        ),
        (("learn", "--out", "x.png"), "--out is x.png; its name must end in .npz"),
        (("learn", "--loss", "kl", "--oracle", "digits"), "exact for --oracle gaussian only"),
        (("learn", "--loss", "teacher"), "--loss teacher is for tables without noise"),
        (
            ("learn", "--loss", "teacher", "--learn", "correction", "--start", "hat uniform S=10"),
            "--loss teacher is for tables without noise",
        ),
        (
            ("likelihood", "--sampler", "eta=1 quadratic S=5", "--sigma", "eta=1"),
            "--sigma is given beside --sampler",
        ),
        (
            ("reconstruct", "--sampler", "eta=0 quadratic S=5", "--steps", "5"),
            "--steps is given beside --sampler",
        ),
        (
            ("learn", "--start", "eta=0 quadratic S=4", "--steps", "5"),
            "--start has 4 steps, and --steps is 5",
        ),
    ],
)
def test_refusals(command, monkeypatch, tmp_path, arguments, message):
    monkeypatch.chdir(tmp_path)
    source = () if "--oracle" in arguments else ("--oracle", "gaussian")
    status, _, errors = command("sample", *arguments, *source)
    assert status == 1
    assert message in errors
    assert "Traceback" not in errors
