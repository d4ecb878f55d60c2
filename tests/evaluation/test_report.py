"""The report: what is written is read back."""

import copy
import csv
import json
import re
from base64 import b64decode
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from ddim_jax import alpha_bars, linear_betas
from ddim_jax.evaluation import figures
from ddim_jax.evaluation.figures import grid_of
from ddim_jax.evaluation.grid import cells
from ddim_jax.evaluation.paper import CALLS, FID, PUBLISHED, STEPS, paper_tables
from ddim_jax.evaluation.report import write_report
from tests.evaluation.example import METRICS, REPORT, example


def page_data(directory):
    text = (directory / "index.html").read_text("utf-8")
    return json.loads(
        text.split('<script type="application/json" id="data">')[1].split("</script>")[0]
    )


def test_json_and_csv_hold_every_number(report):
    results, _, directory = report
    assert json.loads((directory / "results.json").read_text()) == results
    with open(directory / "results.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["id"] for row in rows] == [cell["id"] for cell in results["cells"]]
    for row, cell in zip(rows, results["cells"], strict=True):
        assert (row["sigma"], row["timesteps"], int(row["steps"]), int(row["n"])) == (
            cell["sigma"],
            cell["timesteps"],
            cell["steps"],
            512,
        )
        assert (float(row["seconds"]), int(row["network_calls"])) == (
            cell["seconds"],
            cell["network_calls"],
        )
        for key in METRICS:
            for end, column in (("value", key), ("low", f"{key}_low"), ("high", f"{key}_high")):
                assert row[column] == str(cell["metrics"][key].get(end, ""))


def test_what_metrics_share_is_said_once_in_figures_and_on_the_page(report):
    results, _, directory = report
    shared = "Fréchet distance, Kernel distance: pixels, n=512."
    data = page_data(directory)
    assert data["recipe"] == shared
    assert [label for label, _ in data["metrics"].values()] == [
        "Fréchet distance", "Kernel distance", *list(METRICS.values())[2:]
    ]  # fmt: skip
    html = (directory / "index.html").read_text("utf-8")
    assert html.count(f"with its interval. {shared}</figcaption>") == 1
    figure = figures._metrics_figure(results, grid_of(results["cells"]))
    assert [axis.get_title() for axis in figure.axes][:2] == ["Fréchet distance", "Kernel distance"]
    for axis in figure.axes:
        assert [text.get_text() for text in axis.get_legend().get_texts()] == [
            "eta=0", "eta=1", "sigma-hat"
        ]  # fmt: skip


def test_the_table_has_the_papers_layout(report):
    results, _, directory = report
    lines = (directory / "table.md").read_text("utf-8").splitlines()
    at = lines.index("## Fréchet distance, pixels, n=512, quadratic τ (smaller is better)")
    assert lines[at + 2] == "|  | S=5 | S=10 |"
    rows = [
        [text.strip() for text in line.strip("|").split("|")] for line in lines[at + 4 : at + 7]
    ]
    assert [row[0] for row in rows] == ["eta=0", "eta=1", "sigma-hat"]
    estimate = results["cells"][3]["metrics"]["frechet"]
    value, margin = map(float, rows[1][2].split(" ± "))
    assert value == pytest.approx(estimate["value"], abs=0.01)
    assert margin == pytest.approx((estimate["high"] - estimate["low"]) / 2, rel=0.05)
    assert "## Recall, pixels, k=3, quadratic τ (larger is better)" in lines


def test_the_papers_numbers_stand_where_they_apply_only(report):
    lines = (report[2] / "table.md").read_text("utf-8").splitlines()
    (at,) = [i for i, line in enumerate(lines) if "FID" in line]
    assert "CIFAR-10" in lines[at]
    assert "not comparable" in lines[at]
    assert lines[at + 2 : at + 7] == [
        "|  | S=10 |",
        "|---|---|",
        "| eta=0 | 13.36 (13.36–13.74) |",
        "| eta=1 | 41.07 (41.07–42.03) |",
        "| sigma-hat | 367.43 |",
    ]


def test_fid_stands_beside_the_paper_in_standard_errors(report):
    results = copy.deepcopy(report[0])
    results |= {"data": "cifar10", "n": 50_000}
    results["metrics"]["frechet"] = "FID, Inception tf1, n=50,000 against 50,000"
    for cell in results["cells"]:
        cell["metrics"]["frechet"] = {"value": 13.46, "low": 13.36, "high": 13.56}
    grid = grid_of(results["cells"])
    for other in ({"data": "emoji"}, {"n": 10_000}):
        ((title, _),) = paper_tables(results | other, grid)
        assert "not comparable" in title
    (title, rows), (others, published) = paper_tables(results, grid)
    assert "standard errors" in title
    # 0.1 above the paper, whose interval of ±0.1 is 1.96 standard errors.
    assert rows[1][0] == "eta=0, quadratic"
    assert rows[1][1] == "13.46 ± 0.10; paper 13.36 (13.36–13.74) [+2.0]"
    assert "other samplers" in others
    assert published[0][1:4] == ["5", "10", "12"]
    assert published[1][:4] == ["eta=0, quadratic τ, here", "13.46 ± 0.10", "13.46 ± 0.10", "–"]
    assert ["DEIS tAB3", "–", "7.12", "–", "–", "4.53", "–", "3.78", "–", "–"] in published
    assert {len(row) for row in published} == {10}


def test_the_two_published_tables_agree():
    """Every number of the paper lies within the range of what was published for that sampler."""
    for sigma, values in FID.items():
        line = PUBLISHED.get(f"{sigma}, quadratic τ")
        for steps, value in zip(STEPS, values, strict=True) if line else ():
            ends = [float(text) for text in line.split()[CALLS.index(steps)].split("–")]
            assert ends[0] <= value <= ends[-1]


def solver_cells(**changes):
    """Entries of a grid with solvers, as far as the figures need them."""
    asked = {
        "sigmas": ["eta=0", "eta=1"],
        "steps": (5, 20),
        "solvers": ("first", "adams=2", "deis=3"),
    }
    made = cells(alpha_bars(linear_betas(1000)), timesteps=["quadratic"], **asked | changes)
    return [
        {
            "id": cell.name, "sigma": cell.sigma, "timesteps": cell.timesteps, "steps": cell.steps,
            "solver": cell.solver,
            "metrics": {"frechet": {"value": i, "low": i - 1, "high": i + 1}},
            "schedule": {name: value.tolist() for name, value in cell.table._asdict().items()},
        }
        for i, cell in enumerate(made)
    ]  # fmt: skip


def lines_of(axis):
    """The lines with points, not those of a legend."""
    return [line.get_xydata() for line in axis.lines if len(line.get_xdata()) > 1]


def test_the_multiples_of_past_predictions_are_drawn_against_log_snr():
    found = solver_cells()
    grid = grid_of(found)
    assert grid.titles["quadratic adams=2"] == "quadratic τ, adams=2"
    assert grid.titles["quadratic"] == "quadratic τ"
    figure = figures._corrections_figure(grid)
    titles = [axis.get_title() for axis in figure.axes]
    assert [title.split(":")[0] for title in titles] == [
        f"quadratic τ, {solver}, S={S}" for solver in ("adams=2", "deis=3") for S in (5, 20)
    ]
    assert ["x" in title for title in titles] == [True, True, False, False]
    at = {(cell["solver"], cell["sigma"], cell["steps"]): cell["schedule"] for cell in found}
    schedule = at["adams=2", "eta=1", 20]
    drawn = lines_of(figure.axes[1])  # two σ, each with two predictions
    bars = np.array(schedule["alpha_bar_t"])
    np.testing.assert_allclose(drawn[2][:, 0], np.log(bars / (1 - bars)) / 2)
    np.testing.assert_allclose(
        np.stack([drawn[2][:, 1], drawn[3][:, 1]], 1), schedule["x_0_correction"]
    )
    assert np.abs(schedule["x_0_correction"]).max() > 0.1
    assert len(lines_of(figure.axes[3])) == 2 * 3
    assert figures._corrections_figure(grid_of(solver_cells(solvers=["first"]))) is None


def test_solvers_are_compared_for_each_sigma():
    found = solver_cells()
    results = {"larger_is_better": []}
    figure = figures._solvers_figure(results, grid_of(found), "frechet")
    assert [axis.get_title() for axis in figure.axes] == ["eta=0", "eta=1"]
    values = [line[:, 1].tolist() for line in lines_of(figure.axes[1]) if len(line) == 2]
    expected = [
        [cell["metrics"]["frechet"]["value"] for cell in found
         if (cell["sigma"], cell["solver"]) == ("eta=1", solver)]
        for solver in ("first", "adams=2", "deis=3")
    ]  # fmt: skip
    assert [values.count(line) for line in expected] == [1, 1, 1]
    assert figures._solvers_figure(results, grid_of(solver_cells(solvers=["first"])), "f") is None


def test_nine_schedules_have_nine_looks_and_one_s_is_drawn_side_by_side():
    looks = [figures._style(i) for i in range(28)]
    assert len({(look["color"], look["linestyle"]) for look in looks}) == 28
    found = solver_cells(sigmas=[f"eta=0.{i}" for i in range(9)], steps=(10,), solvers=["first"])
    results = {"metrics": {"frechet": "Fréchet"}, "larger_is_better": []}
    (axis,) = figures._metrics_figure(results, grid_of(found)).axes
    points = [line.get_xydata()[0] for line in axis.lines if len(line.get_xdata()) == 1]
    assert {tuple(point) for point in points} >= {(i, i) for i in range(9)}
    assert axis.get_xlabel() == "S=10"


def test_a_difference_is_neither_better_nor_worse_and_tables_come_as_latex(report, tmp_path):
    results = copy.deepcopy(report[0])
    results["metrics"] |= {"change": "RMS difference_1"}
    for cell in results["cells"]:
        cell["metrics"]["change"] = {"value": 0.25, "low": 0.2, "high": 0.3}
    (tmp_path / "solvers.png").write_bytes(b"of an earlier grid")
    write_report(results, report[1], tmp_path)
    assert not (tmp_path / "solvers.png").exists()
    assert "## RMS difference_1, quadratic τ\n" in (tmp_path / "table.md").read_text("utf-8")
    data = page_data(tmp_path)
    assert data["metrics"]["change"] == ["RMS difference_1", ""]
    assert data["metrics"]["recall"][1] == "larger is better"
    assert data["latex"]["change"] == (
        "% RMS difference_1, quadratic τ\n\\begin{tabular}{lrr}\n\\toprule\n & S=5 & S=10 \\\\\n"
        "\\midrule\n"
        + "".join(
            f"{sigma} & 0.250 $\\pm$ 0.050 & 0.250 $\\pm$ 0.050 \\\\\n"
            for sigma in ("eta=0", "eta=1", "sigma-hat")
        )
        + "\\bottomrule\n\\end{tabular}\n"
    )
    assert data["latex"]["change"] in (tmp_path / "table.tex").read_text("utf-8")
    assert data["links"]["configuration of the run"] == "../../config.json"


def test_the_same_input_gives_the_same_bytes(report, tmp_path):
    results, sprites, directory = report
    write_report(results, dict(reversed(sprites.items())), tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == REPORT  # no temporary file is left either
    for name in REPORT:
        assert (tmp_path / name).read_bytes() == (directory / name).read_bytes(), name
        assert not name.endswith(".png") or Image.open(
            BytesIO((tmp_path / name).read_bytes())
        ).info.keys() <= {"dpi"}


def test_the_page_says_what_differs_from_the_baseline(report):
    results, sprites, directory = report
    data = page_data(directory)
    verdicts = {
        (name, key): shown["verdict"]
        for name, cell in data["cells"].items()
        for key, shown in cell["metrics"].items()
    }
    assert verdicts["eta=0 quadratic S=10", "frechet"] == "baseline"
    for cell in results["cells"]:
        for key, gap in cell.get("difference", {}).items():
            larger, smaller = gap["low"] > 0, gap["high"] < 0
            better, worse = (larger, smaller) if key == "recall" else (smaller, larger)
            assert verdicts[cell["id"], key] == ("better" if better else "worse" if worse else "")
    for name, images in sprites.items():
        sheet = np.asarray(
            Image.open(BytesIO(b64decode(data["cells"][name]["sprite"].split(",")[1])))
        )
        np.testing.assert_array_equal(sheet.reshape(images.shape), images)


def test_infinite_numbers_are_shown_as_such(tmp_path):
    results, sprites = example(sigmas={"eta=0": 0.0, "eta=1": 1.0}, steps=(5, 10), images=3)
    broken = results["cells"][3]
    broken["metrics"]["frechet"] = {"value": np.float32("nan"), "low": -np.inf, "high": np.inf}
    broken["x0_rms"] = [np.inf] * 10
    broken["schedule"]["sigma"][0] = float("nan")
    write_report(results, sprites, tmp_path)
    found = json.loads((tmp_path / "results.json").read_text(), parse_constant=pytest.fail)
    assert found["cells"][3]["metrics"]["frechet"] == {"value": None, "low": None, "high": None}
    assert re.search(
        r"\| eta=1 \| [^|]* \| nan ± inf \|", (tmp_path / "table.md").read_text("utf-8")
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda results, sprites: results.update(cells=[]), "no cells"),
        (lambda results, sprites: results["cells"].append(results["cells"][0]), "one name"),
        (lambda results, sprites: results.update(baseline="eta=7"), "baseline is 'eta=7'"),
        (
            lambda results, sprites: sprites.update(other=np.zeros((3, 8, 8, 1), np.uint8)),
            "sprites are given for",
        ),
        (
            lambda results, sprites: sprites.update(
                {results["baseline"]: np.zeros((2, 8, 8, 1), np.uint8)}
            ),
            "unequal|must have one",
        ),
    ],
)
def test_results_that_do_not_fit_together_are_refused(tmp_path, change, message):
    results, sprites = example(sigmas={"eta=0": 0.0}, steps=(5, 10), images=3)
    change(results, sprites)
    with pytest.raises(ValueError, match=message):
        write_report(results, sprites, tmp_path / "none")
    assert not (tmp_path / "none").exists()
