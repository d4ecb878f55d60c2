"""The pages: every public name, links that lead somewhere, commands that parse, code that runs."""

import re
import shlex
import textwrap
from importlib import import_module

import numpy as np
import pytest

import ddim_jax
from ddim_jax.config import Config, presets, save_config
from tests.conftest import ROOT

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
PAGES += [ROOT / "docs" / "tutorial.py"]
PACKAGES = ("metrics", "model", "data", "training")


def test_the_api_has_every_public_name_once_in_the_order_of_the_package():
    page = (ROOT / "docs" / "api.md").read_text()
    names = re.findall(r"^::: ddim_jax\.(?!diffusion\.)([\w.]+)", page, flags=re.MULTILINE)
    public = list(ddim_jax.__all__)
    for package in PACKAGES:
        public += [f"{package}.{name}" for name in import_module(f"ddim_jax.{package}").__all__]
    assert names == public
    modules = re.findall(r"^::: (ddim_jax\.diffusion\.\w+)", page, flags=re.MULTILINE)
    assert all(import_module(module).__doc__ for module in modules)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files(page):
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text())
    assert [link for link in links if not (page.parent / link).exists()] == []


def commands(page):
    """Every command line of train.py and sample.py in a page."""
    text = re.sub("^# ", "", page.read_text(), flags=re.MULTILINE)
    blocks = re.findall(r"^```sh\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    inline = re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S))
    for line in [*"\n".join(blocks).splitlines(), *inline]:
        found = re.search(r"(?:python (?:train|sample)\.py|ddim-(?:train|sample))(?= ) .*", line)
        if found and not re.search(r"[…\[]|COMMAND|--flags", found[0].split("#")[0]):
            yield found[0]


def name_and_arguments(line):
    """train or sample, and the rest of the command line."""
    name, *arguments = shlex.split(line, comments=True)
    if name == "python":
        name, *arguments = arguments
    return re.sub(r"ddim-|\.py", "", name), arguments


LINES = [pytest.param(line, id=f"{page.name}: {line}") for page in PAGES for line in commands(page)]


@pytest.mark.parametrize("line", LINES)
def test_commands_parse(line, command, monkeypatch, tmp_path):
    """Every flag exists and takes the values that a page gives it."""
    from ddim_jax import evaluation, training
    from ddim_jax.training import import_export

    done = []
    real = evaluation.load_commands()
    stubs = {
        name: (config, lambda *asked: done.append(asked)) for name, (config, _) in real.items()
    }
    monkeypatch.setattr(evaluation, "load_commands", lambda: stubs)
    for module, name in [(training, "train"), (training, "describe_run"),
                         (import_export, "import_run"), (import_export, "export_run")]:  # fmt: skip
        monkeypatch.setattr(module, name, lambda *asked: done.append(asked))
    name, arguments = name_and_arguments(line)
    monkeypatch.chdir(tmp_path)
    save_config(presets()["digits"], tmp_path / "RUN" / "config.json")
    status, _, err = command(name, *arguments)
    assert (status, err) == (0, "")
    assert len(done) == ("--help" not in arguments)
    for config, *_ in done:
        if isinstance(config, Config):
            config.check()


def python_blocks(page):
    return re.findall(r"^```python\n(.*?)^```", page.read_text(), flags=re.MULTILINE | re.DOTALL)


def test_the_code_of_the_readme_runs():
    own, oracle = python_blocks(ROOT / "README.md")
    names = {}
    exec(textwrap.dedent(own), names)
    table = ddim_jax.step_table(
        ddim_jax.alpha_bars(ddim_jax.linear_betas()), [1, 300, 500], names["late"]
    )
    assert (table.noise > 0).tolist() == [False, True, False]  # s = 300, 1, 0
    names = {}
    exec(textwrap.dedent(oracle), names)
    assert names["samples"].shape == (4, 4096, 2)
    for samples, exact in zip(names["samples"], names["exact"], strict=True):
        np.testing.assert_allclose(np.mean(samples, 0), exact.mean, atol=0.05)
        np.testing.assert_allclose(np.cov(samples.T), exact.covariance, atol=0.05)
