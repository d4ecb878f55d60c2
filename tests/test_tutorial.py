"""The tutorial: its cells run, what they say holds, and the notebook is the text, executed."""

import json
import re

import matplotlib.pyplot
import numpy as np
import pytest

from ddim_jax.config import presets
from tests.conftest import ROOT, tiny_config

TEXT = ROOT / "docs" / "tutorial.py"
NOTEBOOK = ROOT / "docs" / "tutorial.ipynb"


def cells():
    """(kind, source) of the cells of the text, in jupytext's percent format."""
    for part in re.split(r"^# %%", TEXT.read_text(), flags=re.MULTILINE)[1:]:
        head, _, body = part.partition("\n")
        if "markdown" in head:
            yield "markdown", re.sub(r"^# ?", "", body, flags=re.MULTILINE).strip()
        else:
            yield "code", body.strip()


def test_the_notebook_is_the_text_executed():
    notebook = json.loads(NOTEBOOK.read_text())["cells"]
    assert [(cell["cell_type"], "".join(cell["source"])) for cell in notebook] == list(cells())
    code = [cell for cell in notebook if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell["outputs"]]
    assert {output["output_type"] for output in outputs} <= {"stream", "display_data"}
    assert {output.get("name") for output in outputs} <= {None, "stdout"}  # no warnings
    figures = [output for output in outputs if "image/png" in output.get("data", {})]
    assert len(figures) == "".join(source for _, source in cells()).count("plt.show()") + 1


def numbers(pattern):
    """The numbers in the notebook's lines that begin like this."""
    texts = [
        "".join(output.get("text", []))
        for cell in json.loads(NOTEBOOK.read_text())["cells"]
        for output in cell.get("outputs", [])
    ]
    (line,) = re.findall(rf"^ *{pattern}(.*)", "\n".join(texts), flags=re.MULTILINE)
    return [float(value) for value in re.findall(r"(?<![=\d])\d+\.\d+", line)]


def test_what_the_notebook_says_of_its_own_numbers():
    rows = [numbers(re.escape(name)) for name in ("η = 0 (DDIM)", "η = 1 (DDPM)  ", "σ̂")]
    assert rows[0][0] < rows[1][0] < rows[2][0]  # with five steps, a larger σ costs quality
    late = numbers("η = 0: ")
    assert late[0] < late[1] < late[2]
    first, *second = (
        numbers(re.escape(name)) for name in ("first", "adams(2)", "dpm_solver_pp(2)")
    )
    assert all(row[0] < first[0] for row in second)
    for eta in ("η = 0.5", r"η = 1 \(DDPM\)"):  # more steps give a tighter bound
        (few,), (many,) = (numbers(f"{eta}, S = {S}: ") for S in (10, 50))
        assert many < few


@pytest.mark.slow
def test_its_cells_run(tmp_path, monkeypatch):
    monkeypatch.setattr("ddim_jax.devices.setup", lambda: None)
    monkeypatch.setattr("matplotlib.pyplot.show", lambda: matplotlib.pyplot.close())
    matplotlib.use("agg")
    monkeypatch.chdir(tmp_path)
    names = {}
    for kind, source in cells():
        if kind == "code":
            exec(source, names)
        if "OUT" in names and "config" not in names:
            names |= {"OUT": "run", "CHANNELS": 4, "STEPS": 4, "IMAGES": 8}
            names["presets"] = lambda: {"digits": tiny_config(presets()["digits"], "run")}
    assert names["few"].shape == (5, 8, 8, 8, 1)
    assert np.isfinite([*names["own"].values(), *names["bits"].values()]).all()
    # The error grows with η at every S, and order 2 is better than order 1 at every S.
    exact = np.array(list(names["exact"].values()))
    assert (np.diff(exact[:4], axis=0) > 0).all()
    assert (exact[5] < exact[0]).all()
    assert (exact[4] < exact[3]).all()  # σ̂ does not lose
    np.testing.assert_allclose(names["sampled"].mean(0), names["moments"].mean, atol=0.06)
    assert np.trace(np.cov(names["sampled"].T)) == pytest.approx(
        np.trace(names["moments"].covariance), rel=0.02
    )
