"""The report's page, used in a real browser."""

import json
import shutil
from base64 import b64decode
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from ddim_jax.evaluation.report import write_report
from tests.evaluation.example import example
from tests.evaluation.test_report import page_data


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


@pytest.mark.slow
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


def test_the_address_keeps_what_is_shown_and_tables_are_copied(browser, report):
    from selenium.webdriver.support.ui import Select

    _, _, directory = report
    page = Page(browser, directory)
    cell = "eta=1 quadratic S=10"
    page.find(f"button[data-cell='{cell}']").click()
    page.find("#index").clear()
    page.find("#index").send_keys("3")
    page.wait(cell, image=3)
    Select(page.find("#metric")).select_by_value("recall")
    address = browser.current_url
    browser.get("about:blank")
    browser.get(address)
    page.wait(cell, image=3)
    assert page.find("#metric").get_attribute("value") == "recall"
    browser.execute_script(  # what the browser was asked to copy
        "document.addEventListener('copy', () => { window.copied = "
        "document.activeElement.value ?? document.getSelection().toString(); });"
        "navigator.clipboard.writeText = () => Promise.reject();"
    )
    for kind in ("latex", "markdown"):
        browser.execute_script("window.copied = null")
        page.find(f"#{kind}").click()
        page.until(lambda: browser.execute_script("return window.copied"), "copied")
        text = browser.execute_script("return window.copied")
        assert text == page_data(directory)[kind]["recall"]
    assert text in (directory / "table.md").read_text("utf-8")
    assert page.find("#links a").get_attribute("href").endswith("config.json")
    page.check_quiet()


@pytest.mark.slow
def test_another_report_stands_beside_it(browser, report, tmp_path):
    from selenium.webdriver.support.ui import Select

    name = "<b>other</b>"
    results, sprites = example(sigmas={"eta=0": 0.0, name: 1.0}, steps=(5,), images=2)
    results |= {"name": name, "metrics": {"frechet": "FID, pixels, n=8", "kernel": "KID, n=8"}}
    write_report(results, sprites, tmp_path)
    (tmp_path / "page.html").write_text("no report")
    page = Page(browser, report[2])
    before = page.find("#tables").text
    page.find("#other").send_keys(str(tmp_path / "index.html"))
    page.until(lambda: name in page.find("#other-tables").text, "the other report")
    cell = next(iter(page_data(tmp_path)["cells"].values()))
    for metric in ("frechet", "kernel"):
        Select(page.find("#metric")).select_by_value(metric)
        shown = page.find("#other-tables .cell").text.splitlines()
        assert shown[0] == cell["metrics"][metric]["value"]
    Select(page.find("#metric")).select_by_value("recall")
    assert "it has no Recall" in page.find("#other-tables").text
    page.find("#other").send_keys(str(tmp_path / "page.html"))
    page.until(lambda: "not a report" in page.find("#other-tables").text, "no report")
    Select(page.find("#metric")).select_by_value("frechet")
    assert page.find("#tables").text == before
    assert not browser.find_elements("css selector", "#other-tables b")
    assert browser.get_log("browser") == []


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
