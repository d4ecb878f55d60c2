"""The grammar of σ and τ, and the cells of a grid."""

import json
from pathlib import Path

import numpy as np
import pytest

from ddim_jax import (
    adams,
    alpha_bars,
    cosine_betas,
    eta,
    karras_timesteps,
    logsnr_timesteps,
    official_timesteps,
    quadratic_timesteps,
    step_table,
    uniform_timesteps,
    zero_terminal_snr,
)
from ddim_jax.evaluation.ablate import Config
from ddim_jax.evaluation.grammar import parse_sigma, parse_timesteps
from ddim_jax.evaluation.grid import cells, concerns

MINE = """
import numpy as np
from ddim_jax import Sigmas

def tenth(steps):
    s = 0.1 * np.sqrt(1 - steps.alpha_bar_s)
    return Sigmas(s, s)

def share(c, power=1.0):
    def schedule(steps):
        s = c * (1 - steps.alpha_bar_s) ** power
        return Sigmas(s, s)
    return schedule

def wrong(steps):
    return 1.0
"""

OWN_SOLVER = """
import numpy as np
from ddim_jax import Correction

def half(c):
    def solver(steps, sigma):
        a = np.tile([c, -c], (len(steps.t), 1))
        a[0] = 0
        return Correction(a, 0 * a)
    return solver
"""


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    Path("mine.py").write_text(MINE)


def test_the_default_is_table_1(alpha_bar):
    grid = cells(alpha_bar, Config.sigma, Config.timesteps, (5, 10, 20, 50))
    assert len(grid) == 5 * 4
    assert [cell.name for cell in grid[::4]] == [
        *(f"eta={value} quadratic S=5" for value in ("0", "0.2", "0.5", "1")),
        "sigma-hat quadratic S=5",
    ]
    assert [int(cell.table.active.sum()) for cell in grid[:4]] == [5, 10, 20, 50]
    assert [cell.rederive for cell in grid[::4]] == [False] * 4 + [True]


def test_sigma_from_files(alpha_bar):
    sigma, noise = np.linspace(0.1, 0.001, 6), np.linspace(0.2, 0.0, 6)
    sigma[-2:] = 0.005, 0
    np.save("one.npy", sigma)
    Path("two.csv").write_text("\n".join(f"{a},{b}" for a, b in zip(sigma, noise, strict=True)))
    columns = {"sigma": sigma.tolist(), "noise": noise.tolist()}
    Path("three.json").write_text(json.dumps(columns))
    sigmas = ("one.npy", "two.csv", "other=three.json", "eta=0")
    one, two, three, *plain = cells(alpha_bar, sigmas, ("uniform",), (4, 7))
    assert [cell.sigma for cell in (one, two, three)] == ["one.npy", "two.csv", "other"]
    assert [cell.steps for cell in (one, two, three, *plain)] == [6, 6, 6, 4, 7]
    np.testing.assert_allclose(one.table.sigma, sigma)
    np.testing.assert_allclose(one.table.noise, sigma)
    for cell in (two, three):
        np.testing.assert_allclose(cell.table.sigma, sigma)
        np.testing.assert_allclose(cell.table.noise, noise)


@pytest.mark.parametrize("module", ["mine", "mine.py", "{here}/mine.py"])
def test_sigma_from_functions(alpha_bar, tmp_path, module):
    module = module.format(here=tmp_path)
    sigmas = (f"{module}:tenth", f"{module}:share(0.1)", "half=mine:share(0.1, 0.5)")
    tenth, share, half = cells(alpha_bar, sigmas, ("quadratic",), (4,))
    below = 1 - np.asarray(tenth.table.alpha_bar_s)
    np.testing.assert_allclose(tenth.table.sigma, 0.1 * np.sqrt(below))
    np.testing.assert_allclose(share.table.sigma, 0.1 * below)
    np.testing.assert_array_equal(half.table.sigma, tenth.table.sigma)
    assert [cell.sigma for cell in (tenth, share, half)] == [*sigmas[:2], "half"]


def test_the_packages_own_families_are_functions_too(alpha_bar):
    named, own = cells(alpha_bar, ("eta=0.3", "ddim_jax:eta(0.3)"), ("uniform",), (5,))
    np.testing.assert_array_equal(named.table.noise, own.table.noise)


def test_times_by_name_by_themselves_and_from_a_file(alpha_bar):
    times = [1, 101, 301, 601, 901]
    np.save("tau.npy", np.array(times))
    Path("tau.csv").write_text("\n".join(map(str, times)))
    Path("tau.json").write_text(json.dumps(times))
    texts = ("1,101,301,601,901", "tau.npy", "tau.csv", "tau.json", "quadratic")
    *own, by_name = cells(alpha_bar, ("eta=0.5",), texts, (7,))
    expected = step_table(alpha_bar, times, eta(0.5))
    for cell in own:
        assert cell.steps == 5
        for one, two in zip(cell.table, expected, strict=True):
            np.testing.assert_array_equal(one, two)
    np.testing.assert_array_equal(by_name.table.t[::-1], quadratic_timesteps(1000, 7))
    for name, choose in (("logsnr", logsnr_timesteps), ("karras", karras_timesteps)):
        (by_snr,) = cells(alpha_bar, ["eta=0.5"], [name], [7])
        np.testing.assert_array_equal(by_snr.table.t[::-1], choose(alpha_bar, 7))
    assert own[0].name == "eta=0.5 1,101,301,601,901 S=5"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nothing", r"--sigma is nothing; give eta=VALUE, ddpm, hat, analytic=VALUE, or your own"),
        ("eta", "--sigma is eta; give eta=NUMBER"),
        ("eta=x.npy", "--sigma is eta=x.npy; give eta=NUMBER"),
        ("hat=mine.py:tenth", "hat takes no value, and no label may be called so"),
        ("no.npy", r"--sigma no.npy cannot be read \(No such file"),
        ("no_module:f", "--sigma is no_module:f, which cannot be imported"),
        ("none.py:f", "--sigma is none.py:f, which cannot be imported"),
        ("json:no_function", "json:no_function, which cannot be imported"),
        ("mine:wrong", r"mine:wrong gave a float; it must map Steps to Sigmas"),
        ("mine:share", "it must map Steps to Sigmas"),
        ("mine:share(x)", "only numbers may stand in"),
        ("bad.json", "--sigma bad.json is not an array of numbers"),
        ("wide.csv", "wide.csv has columns of shape"),
        ("eta=-1", "eta is -1"),
    ],
)
def test_a_sigma_that_is_none(alpha_bar, text, message):
    Path("bad.json").write_text('{"sigma": "x"}')
    Path("wide.csv").write_text("1,2,3\n")
    with pytest.raises(ValueError, match=message):
        cells(alpha_bar, (text,), ("uniform",), (4,))


@pytest.mark.parametrize(
    ("timesteps", "steps", "message"),
    [
        (("fast",), (4,), "--timesteps is fast; give uniform, quadratic"),
        (("1,2.5",), (4,), "--timesteps is 1,2.5; give uniform"),
        (("half.csv",), (4,), "half.csv has 1.5; times are integers"),
        (("5,3",), (4,), r"timesteps\[1\] is 3 after 5; times must be strictly increasing"),
        (("1,2000",), (4,), "timesteps.1. is 2000; noisy times are 1 to T = 1000"),
        (("uniform",), (2000,), "S is 2000 reverse steps"),
        (("uniform", "uniform"), (4,), "the cell eta=0 uniform S=4 is asked for twice"),
    ],
)
def test_a_tau_that_is_none(alpha_bar, timesteps, steps, message):
    Path("half.csv").write_text("1.5\n")
    with pytest.raises(ValueError, match=message):
        cells(alpha_bar, ("eta=0",), timesteps, steps)


def test_an_array_of_sigma_needs_as_many_times(alpha_bar):
    np.save("s.npy", np.zeros(3))
    with pytest.raises(ValueError, match=r"s.npy has 3 rows, .* 1,2 has 2 times"):
        cells(alpha_bar, ("s.npy",), ("1,2",), (4,))
    (cell,) = cells(alpha_bar, ("s.npy",), ("1,2,3",), (4,))
    assert cell.steps == 3


def test_names_are_what_they_say():
    assert parse_sigma("eta=0.50").name == "eta=0.5"
    assert parse_sigma("hat").name == "sigma-hat"
    assert parse_timesteps("trailing").name == "trailing"


def test_solvers_are_an_axis(alpha_bar):
    solvers = ("first", "adams=2", "mine2.py:half(0.5)")
    Path("mine2.py").write_text(OWN_SOLVER)
    grid = cells(alpha_bar, ("eta=0", "eta=1"), ("uniform",), (4,), solvers)
    assert [cell.name for cell in grid[::2]] == [
        "eta=0 uniform S=4",
        "eta=0 uniform adams=2 S=4",
        "eta=0 uniform mine2.py:half(0.5) S=4",
    ]
    direct = step_table(alpha_bar, uniform_timesteps(1000, 4), eta(1.0), adams(2))
    for ours, expected in zip(grid[3].table, direct, strict=True):
        np.testing.assert_array_equal(ours, expected)
    np.testing.assert_array_equal(grid[4].table.x_0_correction[1:], [[0.5, -0.5]] * 3)


@pytest.mark.parametrize("text", ["adams", "first=1", "adams=x", "adams=²", "euler", "mine:wrong"])
def test_a_solver_that_is_none(alpha_bar, text):
    with pytest.raises(ValueError, match="--solver") as error:
        cells(alpha_bar, ("eta=0",), ("uniform",), (4,), (text,))
    assert "\n" not in str(error.value)


def test_official_times_have_their_repeats(alpha_bar):
    (cell,) = cells(alpha_bar, ("eta=0",), ("official-quadratic",), (100,))
    times = official_timesteps(1000, 100, "quadratic")
    np.testing.assert_array_equal(cell.table.t, times[::-1])
    assert cell.table.active.sum() == len(set(times)) < 100


@pytest.mark.parametrize(
    ("change", "timesteps", "steps", "sentence"),
    [
        (None, "quadratic", 10, None),
        (None, "uniform", 20, None),
        (None, "quadratic", 1, "images there are not noise"),
        (100, "quadratic", 10, "images there are not noise"),
        ("zero", "quadratic", 10, "use --timesteps trailing"),
        ("zero", "", 10, None),
        ("cosine", "trailing", 10, "an error of ε̂ is multiplied by"),
    ],
)
def test_a_start_that_spoils_the_images_is_said(alpha_bar, change, timesteps, steps, sentence):
    bars = {
        None: alpha_bar,
        100: alpha_bar[:101],
        "zero": zero_terminal_snr(alpha_bar),
        "cosine": alpha_bars(cosine_betas(1000)),
    }[change]
    grid = cells(bars, ("eta=0", "eta=1"), (timesteps,), (steps,))
    found = concerns(bars, "epsilon", grid)  # once, since σ does not matter
    assert len(found) == (sentence is not None)
    assert (found == []) if sentence is None else (sentence in found[0])
    if change == "cosine":
        assert concerns(bars, "v", grid) == []


@pytest.mark.parametrize(
    ("code", "sentence"),
    [
        ("def late(steps):\n    return steps.nothing", "AttributeError: .* at .*bad.py:2"),
        ("def late(steps): pass\nraise SystemExit(0)", "cannot be imported .SystemExit: 0"),
        ("def late(:", "cannot be imported .SyntaxError"),
    ],
)
def test_an_error_in_the_users_own_file_names_its_line(alpha_bar, code, sentence):
    Path("bad.py").write_text(code)
    with pytest.raises(ValueError, match=sentence) as error:
        cells(alpha_bar, ("bad.py:late",), ("uniform",), (4,))
    assert "\n" not in str(error.value)


def test_files_of_one_base_name_keep_apart_and_a_message_names_the_sigma(alpha_bar, tmp_path):
    for place, value in (("a", 0.0), ("b", 0.01)):
        (tmp_path / place).mkdir()
        np.save(tmp_path / place / "s.npy", [value, 0.0, 0.0, 0.0])
    a, b = (str(tmp_path / place / "s.npy") for place in "ab")
    found = cells(alpha_bar, [a, b], ["uniform"], (4,))
    assert [cell.sigma for cell in found] == [a, b]
    assert [cell.table.sigma[0] for cell in found] == [0.0, 0.01]
    assert cells(alpha_bar, [a], ["uniform"], (4,))[0].sigma == "s.npy"
    assert [cell.sigma for cell in cells(alpha_bar, ["x=" + a, b], ["uniform"], (4,))] == [
        "x", "s.npy",
    ]  # fmt: skip
    with pytest.raises(ValueError, match="is asked for twice"):
        cells(alpha_bar, [a, a], ["uniform"], (4,))
    with pytest.raises(ValueError, match=r"^eta=9 uniform S=4: row \d .* sigma is"):
        cells(alpha_bar, ["eta=0", "eta=9"], ["uniform"], (4,))
    for place, times in (("a", [1, 5]), ("b", [1, 9])):
        (tmp_path / place / "t.json").write_text(json.dumps(times))
    texts = [str(tmp_path / place / "t.json") for place in "ab"]
    assert [cell.timesteps for cell in cells(alpha_bar, ["eta=0"], texts, ())] == texts
