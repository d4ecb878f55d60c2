"""The grid, what is kept of it, and what an exact oracle says about it."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest

from ddim_jax import propagate_gaussian
from ddim_jax.evaluation.ablation import AblateConfig, draw_cells
from ddim_jax.evaluation.grid import CLIPS, GridFlags, Kind, clipped
from ddim_jax.evaluation.sources import oracle_source
from ddim_jax.evaluation.summary import exact_parts

DEFAULT = GridFlags(steps=(5, 10, 20, 50))


@pytest.fixture(scope="module")
def gaussian():
    return oracle_source("gaussian")


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


# ---- the grid


def test_the_default_is_table_1(alpha_bar):
    cells = DEFAULT.cells(alpha_bar, DEFAULT.steps)
    assert len(cells) == 5 * 4
    assert [cell.name for cell in cells[::4]] == [
        *(f"eta={value} quadratic S=5" for value in ("0", "0.2", "0.5", "1")),
        "sigma-hat quadratic S=5",
    ]
    assert [cell.table.active.sum() for cell in cells[:4]] == [5, 10, 20, 50]


def test_sigma_from_files_and_functions(alpha_bar, tmp_path, monkeypatch):
    sigma, noise = np.linspace(0.1, 0.001, 6), np.linspace(0.2, 0.0, 6)
    sigma[-2:] = 0.005, 0
    np.save(tmp_path / "one.npy", sigma)
    (tmp_path / "two.csv").write_text(
        "\n".join(f"{a},{b}" for a, b in zip(sigma, noise, strict=True))
    )
    (tmp_path / "three.json").write_text(
        json.dumps({"sigma": sigma.tolist(), "noise": noise.tolist()})
    )
    (tmp_path / "mine.py").write_text(
        "import numpy as np\nfrom ddim_jax import Sigmas\n"
        "def tenth(steps):\n    s = 0.1 * np.sqrt(1 - steps.alpha_bar_s)\n    return Sigmas(s, s)\n"
        "def wrong(steps):\n    return 1.0\n"
    )
    flags = GridFlags(
        sigma=("one.npy", "two.csv", "three.json", "mine:tenth"), timesteps=("uniform",)
    )
    one, two, three, *mine = flags.cells(alpha_bar, (4, 7))
    assert [cell.steps for cell in (one, two, three, *mine)] == [6, 6, 6, 4, 7]
    np.testing.assert_allclose(one.table.sigma, sigma)
    np.testing.assert_allclose(one.table.noise, sigma)
    for cell in (two, three):
        np.testing.assert_allclose(cell.table.sigma, sigma)
        np.testing.assert_allclose(cell.table.noise, noise)
    np.testing.assert_allclose(
        mine[0].table.sigma, 0.1 * np.sqrt(1 - np.asarray(mine[0].table.alpha_bar_s))
    )


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"sigma": ("nothing",)}, "--sigma is nothing; give FILE.npy"),
        ({"sigma": ("no.npy",)}, r"--sigma no.npy cannot be read \(No such file"),
        ({"sigma": ("no_module:f",)}, "--sigma is no_module:f, which cannot be imported"),
        ({"sigma": ("json:no_function",)}, "json:no_function, which cannot be imported"),
        ({"sigma": ("json:dumps",)}, "it must map Steps to Sigmas|not JSON serializable"),
        ({"sigma": ("bad.json",)}, "bad.json holds no array of numbers"),
        ({"sigma": ("wide.csv",)}, "wide.csv has columns of shape"),
        ({"eta": (0.0, 0.0)}, "the cell eta=0 quadratic S=4 is asked for twice"),
        ({"eta": (-1.0,)}, "eta is -1"),
        ({"steps": (2000,)}, "S is 2000 reverse steps"),
    ],
)
def test_a_grid_that_is_none(alpha_bar, flags, message):
    Path("bad.json").write_text('{"sigma": "x"}')
    Path("wide.csv").write_text("1,2,3\n")
    grid = GridFlags(**({"steps": (4,)} | flags))
    with pytest.raises((ValueError, TypeError), match=message):
        grid.cells(alpha_bar, grid.steps)


def test_clipping_is_a_traced_choice(alpha_bar):
    import jax
    import jax.numpy as jnp

    from ddim_jax import Prediction, clip_x0

    calls = []

    def denoise(x, t):
        calls.append(1)
        return Prediction(3 * x, x - 1)

    x, t = jnp.linspace(-1, 1, 8).reshape(2, 4), jnp.array([3, 700])
    expected = [denoise(x, t), clip_x0(denoise)(x, t), clip_x0(denoise, True, alpha_bar)(x, t)]
    calls.clear()
    run = jax.jit(lambda mode: clipped(denoise, mode, alpha_bar)(x, t))
    for mode, pair in enumerate(expected):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), run(mode), pair)
    assert len(calls) == 1  # one trace, one network call in it
    assert run._cache_size() == 1
    assert len(expected) == len(CLIPS)


# ---- the exact numbers of a Gaussian


@pytest.mark.parametrize("kind", ["quadratic", "uniform", "trailing"])
def test_the_covariance_part_grows_with_eta_and_agrees_with_a_recursion(gaussian, kind: Kind):
    mean, covariance = gaussian.moments
    values, vectors = np.linalg.eigh(covariance)
    bars = gaussian.alpha_bar
    flags = GridFlags(eta=(0.0, 0.2, 0.5, 1.0), timesteps=(kind,))
    for count in (5, 10, 20, 50):
        parts = []
        for cell in flags.cells(bars, (count,)):
            # x_s = √ᾱ_s x̂_0 + √(1−ᾱ_s−σ²) ε̂ + σ z in each eigendirection, with E[x_0 | x_t] of a Gaussian.
            m, v, mu = np.zeros(64), np.ones(64), mean @ vectors
            times = [*np.asarray(cell.table.t), 0]
            for t, s in itertools.pairwise(times):
                a, b = bars[t], bars[s]
                sigma = float(cell.family.name[4:]) * np.sqrt((1 - b) / (1 - a) * (1 - a / b))
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
    config = AblateConfig(
        oracle="gaussian",
        num_images=2048,
        batch_size=1024,
        grid=GridFlags(steps=(5, 10)),
        clip="none",
    )
    cells = config.grid.cells(gaussian.alpha_bar, config.grid.steps)
    config.directory().mkdir(parents=True)
    from rich.console import Console

    with open("log", "w") as log:
        drawn, compilations = draw_cells(config, gaussian, cells, Console(file=log))
        assert compilations == 1
        again, compilations = draw_cells(config, gaussian, cells, Console(file=log))
    assert compilations == 0  # everything was there
    assert "20 of 20 batches are there already" in Path("log").read_text()
    for cell, found, same in zip(cells, drawn, again, strict=True):
        np.testing.assert_array_equal(found.images, same.images)
        exact = propagate_gaussian(*gaussian.moments, gaussian.alpha_bar, cell.table)
        # uint8 clips what lies beyond [−1, 1]: compare where that never happens, pixels of small variance in the middle.
        inside = np.flatnonzero(np.abs(exact.mean) + 4 * np.sqrt(np.diag(exact.covariance)) < 1)
        flat = (found.images.reshape(2048, -1) / 127.5 - 1)[:, inside]
        if inside.size:
            variance = np.diag(exact.covariance)[inside]
            assert np.all(
                np.abs(flat.mean(0) - exact.mean[inside]) < 4.5 * np.sqrt(variance / 2048) + 1e-3
            )
            np.testing.assert_allclose(
                flat.var(0), variance, rtol=4.5 * np.sqrt(2 / 2048), atol=2e-5
            )
        assert found.x_0_rms.shape == (cell.steps,)


def test_two_grids_share_cells_and_a_change_shares_none(gaussian):
    from dataclasses import replace

    from ddim_jax.evaluation.ablation import _identity

    config = AblateConfig(
        oracle="gaussian", num_images=8, batch_size=8, grid=GridFlags(eta=(0.0,), steps=(3,))
    )
    (cell,) = config.grid.cells(gaussian.alpha_bar, (3,))
    other = replace(
        config, name="other", num_images=16, grid=GridFlags(eta=(0.0, 1.0), steps=(3, 4))
    )
    same = next(
        some for some in other.grid.cells(gaussian.alpha_bar, (3, 4)) if some.name == cell.name
    )
    assert _identity(config, gaussian, cell) == _identity(other, gaussian, same)
    changed = [
        _identity(replace(config, seed=1), gaussian, cell),
        _identity(replace(config, batch_size=4), gaussian, cell),
        _identity(replace(config, clip="x0"), gaussian, cell),
        _identity(config, gaussian._replace(identity="another checkpoint"), cell),
        _identity(
            config,
            gaussian,
            cell._replace(table=cell.table._replace(noise=np.asarray(cell.table.noise) + 1e-9)),
        ),
    ]
    assert len({_identity(config, gaussian, cell), *changed}) == 6


@pytest.mark.slow
def test_a_thousand_steps_on_the_digits_themselves_give_digits():
    source = oracle_source("digits")
    config = AblateConfig(
        oracle="digits", num_images=24, batch_size=24, grid=GridFlags(eta=(0.0, 1.0), steps=(1000,))
    )
    from rich.console import Console

    with open("log", "w") as log:
        drawn, _ = draw_cells(
            config, source, config.grid.cells(source.alpha_bar, (1000,)), Console(file=log)
        )
    known = {np.rint((image + 1) * 127.5).astype(np.uint8).tobytes() for image in source.reference}
    for found in drawn:
        assert sum(image.tobytes() in known for image in found.images) >= 22


# ---- the command


ARGUMENTS = ["--num-images", 12, "--batch-size", 4, "--steps", 2, 3, "--eta", 0, 1, "--sigma-hat"]
TIMES = ("seconds", "wall_seconds", "compilations")


def without_times(values):
    if isinstance(values, dict):
        return {name: without_times(value) for name, value in values.items() if name not in TIMES}
    return [without_times(value) for value in values] if isinstance(values, list) else values


@pytest.mark.slow
def test_an_interrupted_ablation_ends_as_a_whole_one(tiny_run, command, tmp_path):
    import shutil

    one = tmp_path / "one"
    shutil.copytree(tiny_run, one)
    status, out, err = command("sample", "ablate", one, *ARGUMENTS)
    assert (status, err) == (0, "")
    assert "1 compilation of the sampler for 6 cells" in out
    report = one / "ablations" / "default"
    names = {
        "index.html",
        "results.json",
        "results.csv",
        "table.md",
        "metrics.png",
        "steps.png",
        "drift.png",
    }
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
    files = sorted((one / "ablations" / "cells").rglob("*.npz"))
    assert len(files) == 6 * 3
    kept = {path: path.read_bytes() for path in files[::2]}
    for path in files[1::2]:
        path.unlink()
    files[1].with_suffix(".partial.npz").write_bytes(b"half")
    shutil.rmtree(report)
    status, out, err = command("sample", "ablate", one, *ARGUMENTS)
    assert (status, err) == (0, "")
    assert "9 of 18 batches are there already" in out
    assert all(path.read_bytes() == content for path, content in kept.items())
    assert without_times(json.loads((report / "results.json").read_text())) == without_times(
        results
    )
    for name in ("table.md", "metrics.png", "steps.png", "drift.png"):
        assert (report / name).read_bytes() == before[name]

    # A classifier of the same data gives features under their own name.
    assert command("sample", "classifier", one, "--epochs", 1)[0] == 0
    status, _, err = command(
        "sample", "ablate", one, *ARGUMENTS, "--features", "classifier", "--name", "learned"
    )
    assert (status, err) == (0, "")
    learned = json.loads((one / "ablations" / "learned" / "results.json").read_text())
    assert learned["metrics"]["frechet"].startswith("Fréchet distance, classifier, n=12")
    assert learned["compilations"] == 0


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "give one of the two"),
        (["{run}", "--oracle", "digits"], "give one of the two"),
        (["{run}", "--num-images", "7"], "--num-images is 7; distances with intervals need 8 or more"),
        (["{run}", "--name", "a/b"], "--name is 'a/b'"),
        (["{run}", "--baseline", "none"], "--baseline is 'none'; the grid has eta=0"),
        (["{run}", "--features", "classifier", "--num-images", "8", "--batch-size", "8", "--eta", "0", "--steps", "1"],
         "`python sample.py classifier` makes it"),
        (["{run}", "--sigma", "none.npy"], "none.npy cannot be read"),
        (["nowhere"], "does not exist"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_sentence(command, tiny_run, arguments, sentence):
    status, _, err = command(
        "sample", "ablate", *(argument.format(run=tiny_run) for argument in arguments)
    )
    assert status == 1
    assert sentence in err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
