"""The report: what is written is read back, and the page is used in a real browser."""

import copy
import csv
import json
import re
import shutil
from base64 import b64decode
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ddim_jax.evaluation.figures import grid_of
from ddim_jax.evaluation.paper import paper_table
from ddim_jax.evaluation.report import write_report

DIGITS = Path(__file__).parents[2] / "ddim_jax" / "data" / "embedded" / "digits8.npz"
SIGMAS = {"eta=0": 0.0, "eta=0.2": 0.2, "eta=0.5": 0.5, "eta=1": 1.0, "sigma-hat": 1.6}
METRICS = {
    "frechet": "Fréchet distance, pixels, n=512",
    "kernel": "Kernel distance, pixels, n=512",
    "recall": "Recall, pixels, k=3",
    "w2_covariance": "Squared 2-Wasserstein, covariance part, exact",
}


def example(sigmas=SIGMAS, kinds=("quadratic",), steps=(5, 10, 20, 50), images=64):
    """Results with plausible numbers, and digits with more noise where σ is larger."""
    rng = np.random.default_rng(0)
    digits = np.load(DIGITS)["train_image"][:images].astype(float)
    noise = rng.normal(size=digits.shape)
    cells, sprites = [], {}
    for kind in kinds:
        for sigma, level in sigmas.items():
            for S in steps:
                name = f"{sigma} {kind} S={S}"
                value = 0.36 + (3 + 9 * level**2) / S * (1 + 0.03 * rng.normal())
                interval = {"value": value, "low": value * 0.96, "high": value * 1.05}
                gap = value - 0.42
                t = np.linspace(1, 1000, S).round().astype(int)[::-1]
                size = level * np.sqrt(t / 1000) * 0.7
                cells.append(
                    {
                        "id": name,
                        "sigma": sigma,
                        "timesteps": kind,
                        "steps": S,
                        "metrics": {
                            "frechet": interval,
                            "kernel": {k: v / 40 for k, v in interval.items()},
                            "recall": {
                                "value": 1 / (1 + value),
                                "low": 0.9 / (1 + value),
                                "high": 1.1 / (1 + value),
                            },
                            "w2_covariance": {"value": value / 3},
                        },
                        "difference": {
                            "frechet": {"value": gap, "low": gap - 0.1, "high": gap + 0.1},
                            "kernel": {
                                "value": gap / 40,
                                "low": gap / 40 - 0.01,
                                "high": gap / 40 + 0.01,
                            },
                            "recall": {
                                "value": -gap / 9,
                                "low": -gap / 9 - 0.01,
                                "high": -gap / 9 + 0.01,
                            },
                        },
                        "seconds": 0.031 * S,
                        "network_calls": 512 * S,
                        "schedule": {
                            "t": t.tolist(),
                            "s": [*t[1:].tolist(), 0],
                            "sigma": np.minimum(size, 0.5).tolist(),
                            "noise": [*size[:-1].tolist(), 0.0],
                        },
                        "x0_rms": (0.75 + 0.2 * (1 + level) * np.linspace(1, 0, S) ** 2).tolist(),
                    }
                )
                sprites[name] = (
                    np.clip(digits + noise * 90 * (level + 0.3) / np.sqrt(S), 0, 255)
                    .round()
                    .astype(np.uint8)
                )
    baseline = f"eta=0 {kinds[0]} S={max(steps)}"
    next(cell for cell in cells if cell["id"] == baseline).pop("difference")
    results = {
        "name": "paper grid",
        "run": "runs/digits",
        "oracle": None,
        "seed": 0,
        "n": 512,
        "baseline": baseline,
        "settings": {
            "--sigma": ["eta=0", "hat"],
            "--steps": list(steps),
            "--timesteps": list(kinds),
        },
        "versions": {"ddim_jax": "0.1.0", "jax": "0.10.2"},
        "device": "2 × cpu",
        "compilations": 1,
        "wall_seconds": 1234.5,
        "metrics": METRICS,
        "larger_is_better": ["recall"],
        "cells": cells,
    }
    return results, sprites


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """(results, sprites, the directory of their report)."""
    results, sprites = example(
        steps=(5, 10), sigmas={"eta=0": 0.0, "eta=1": 1.0, "sigma-hat": 1.6}, images=10
    )
    directory = tmp_path_factory.mktemp("report") / "ablations" / "new"
    write_report(results, sprites, directory)
    return results, sprites, directory


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
        assert "not comparable" in paper_table(results | other, grid)[0]
    title, rows = paper_table(results, grid)
    assert "standard errors" in title
    # 0.1 above the paper, whose interval of ±0.1 is 1.96 standard errors.
    assert rows[1][0] == "eta=0, quadratic"
    assert rows[1][1] == "13.46 ± 0.10; paper 13.36 (13.36–13.74) [+2.0]"


def test_the_same_input_gives_the_same_bytes(report, tmp_path):
    results, sprites, directory = report
    write_report(results, dict(reversed(sprites.items())), tmp_path)
    names = {
        "results.json",
        "results.csv",
        "table.md",
        "metrics.png",
        "steps.png",
        "drift.png",
        "index.html",
    }
    assert {file.name for file in tmp_path.iterdir()} == names  # no temporary file is left either
    for name in names:
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


@pytest.fixture(scope="module")
def browser():
    """Headless Chromium that logs its console and its requests."""
    paths = [shutil.which(name) for name in ("chromium", "chromedriver")]
    if None in paths:
        pytest.skip("chromium and chromedriver are not on the PATH")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = paths[0]
    for flag in (
        "headless",
        "no-sandbox",
        "disable-gpu",
        "disable-quic",
        "no-first-run",
        "disable-background-networking",
        "disable-component-update",
        "disable-sync",
        "disable-dev-shm-usage",
        "window-size=1200,1000",
    ):
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(paths[1]))
    yield driver
    driver.quit()


class Page:
    """The open page, as a person uses it."""

    def __init__(self, driver, directory):
        self.driver = driver
        driver.get_log("performance")  # what an earlier page did
        driver.get((directory / "index.html").as_uri())

    def find(self, selector):
        return self.driver.find_element("css selector", selector)

    def press(self, key):
        self.driver.switch_to.active_element.send_keys(key)

    def wait(self, cell, image=0, flipped=False):
        """Until the images that are shown are those of a cell."""
        shown = f"{cell}|{image}|{'true' if flipped else 'false'}"
        self.until(lambda: self.find("#images").get_attribute("data-shown") == shown, shown)

    def until(self, condition, message):
        from selenium.webdriver.support.ui import WebDriverWait

        WebDriverWait(self.driver, 10, poll_frequency=0.05).until(lambda _: condition(), message)

    def pixels(self, selector):
        """The canvas as uint8 (H, W, 4)."""
        uri = self.driver.execute_script(
            "return document.querySelector(arguments[0]).toDataURL()", selector
        )
        return np.asarray(Image.open(BytesIO(b64decode(uri.split(",")[1]))).convert("RGBA"))

    def sheet(self, side, shape):
        """The images of a sheet, uint8 (K, H, W, C)."""
        count, height, width, channels = shape
        picture = self.pixels(f"#{side} canvas")[..., :channels]
        columns = (picture.shape[1] + 1) // (width + 1)
        corners = [(i // columns * (height + 1), i % columns * (width + 1)) for i in range(count)]
        return np.stack([picture[y : y + height, x : x + width] for y, x in corners])

    def check(self, sprites, left, right, cell=None, image=0):
        """That the sheets and the enlarged images are those of two cells, and the difference is
        theirs."""
        for side, name in (("left", left), ("right", right)):
            assert self.find(f"#{side} canvas").get_attribute("data-cell") == name
            np.testing.assert_array_equal(self.sheet(side, sprites[name].shape), sprites[name])
            np.testing.assert_array_equal(
                self.pixels(f"#big-{side}")[..., : sprites[name].shape[3]], sprites[name][image]
            )
        difference = np.abs(sprites[cell or left][image].astype(int) - sprites[right][image])
        np.testing.assert_array_equal(
            self.pixels("#big-difference")[..., : difference.shape[2]], difference
        )
        assert (
            self.find("#difference").text
            == f"Of 255 levels: {difference.mean():.1f} on average, {difference.max()} at most."
        )
        assert self.find("#detail-title").text == f"Image {image}"

    def check_quiet(self):
        """That nothing was logged to the console, and nothing but the page and data URIs was asked
        for."""
        assert self.driver.get_log("browser") == []
        events = [
            json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")
        ]
        urls = {
            event["params"]["request"]["url"]
            for event in events
            if event["method"] == "Network.requestWillBeSent"
        }
        assert {url.split(":")[0] for url in urls} <= {"file", "data"}
        assert len([url for url in urls if url.startswith("file:")]) == 1


def test_the_page_by_mouse_and_by_keyboard(browser, report):
    from selenium.webdriver import ActionChains, Keys

    results, sprites, directory = report
    page, base = Page(browser, directory), results["baseline"]
    first, hat = "eta=0 quadratic S=5", "sigma-hat quadratic S=10"
    page.wait(first)
    page.check(sprites, first, base)
    page.find(f"button[data-cell='{hat}']").click()
    page.wait(hat)
    page.check(sprites, hat, base)
    assert page.find("[aria-pressed=true][data-cell]").get_attribute("data-cell") == hat
    page.press(Keys.ARROW_LEFT)
    page.wait("sigma-hat quadratic S=5")
    page.press(Keys.ARROW_LEFT)  # the edge of the table
    page.press(Keys.ARROW_UP)
    page.wait("eta=1 quadratic S=5")
    page.check(sprites, "eta=1 quadratic S=5", base)
    assert page.driver.switch_to.active_element.get_attribute("data-cell") == "eta=1 quadratic S=5"
    page.press("b")
    page.wait("eta=1 quadratic S=5", flipped=True)
    page.check(sprites, base, base, cell="eta=1 quadratic S=5")
    page.press("1")
    page.wait("eta=1 quadratic S=5")
    page.find("#cell").send_keys(hat)
    page.wait(hat)
    sheet = page.find("#left")
    columns = (page.pixels("#left canvas").shape[1] + 1) // 9
    tile = sheet.size["width"] / columns
    x, y = tile * 2.5 - sheet.size["width"] / 2, tile * 1.5 - sheet.size["height"] / 2
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", sheet)
    ActionChains(browser).move_to_element_with_offset(sheet, round(x), round(y)).click().perform()
    page.wait(hat, image=columns + 2)
    page.check(sprites, hat, base, image=columns + 2)
    sheet.send_keys(Keys.ARROW_LEFT, Keys.ARROW_UP)
    page.wait(hat, image=1)
    page.check(sprites, hat, base, image=1)
    page.check_quiet()


def test_names_cannot_break_the_page(browser, tmp_path):
    evil = "</script><script>document.title='broken'</script><b>&\"'{{data}} | $x_"
    results, sprites = example(
        sigmas={"eta=0": 0.0, evil: 1.0}, kinds=("<i>kind",), steps=(5,), images=2
    )
    results |= {"name": evil, "settings": {evil: evil}, "metrics": {"frechet": evil}}
    write_report(results, sprites, tmp_path)
    page, cell = Page(browser, tmp_path), f"{evil} <i>kind S=5"
    page.wait(cell)
    page.check(sprites, cell, "eta=0 <i>kind S=5")
    assert browser.title == f"{evil} – σ ablation"
    assert page.find("h1").text == evil
    assert page.driver.find_elements("css selector", "main i, h1 *") == []
    assert evil.replace("|", "\\|") in (tmp_path / "table.md").read_text("utf-8")
    page.check_quiet()
