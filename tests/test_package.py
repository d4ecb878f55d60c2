"""What is installed: the wheel of the sdist, its files, its commands, outside the checkout."""

import os
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from ddim_jax.config import presets, save_config
from ddim_jax.training.checkpoint import latest_step
from tests.conftest import ROOT, tiny_config

pytest.importorskip("setuptools", minversion="77", reason="builds the wheel")
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
BUILD = "import sys; from setuptools import build_meta; build_meta.build_{}(sys.argv[1])"


def build(kind, source, out):
    subprocess.run(
        [sys.executable, "-c", BUILD.format(kind), out], cwd=source, check=True, capture_output=True
    )
    (made,) = out.glob("*.whl" if kind == "wheel" else "*.tar.gz")
    return made


@pytest.fixture(scope="module")
def dist(tmp_path_factory):
    """(sdist, the wheel that is built from it)."""
    directory = tmp_path_factory.mktemp("dist")
    left_out = shutil.ignore_patterns(".*", "*.egg-info", "build", "runs", "__pycache__", "site")
    shutil.copytree(ROOT, directory / "tree", ignore=left_out)
    sdist = build("sdist", directory / "tree", directory)
    with tarfile.open(sdist) as archive:
        archive.extractall(directory, filter="data")
    return sdist, build("wheel", directory / f"ddim_jax-{VERSION}", directory)


@pytest.mark.slow
def test_what_is_inside(dist):
    sdist, wheel = dist
    with zipfile.ZipFile(wheel) as archive:
        inside = {Path(name) for name in archive.namelist()}
    assert {path.parts[0] for path in inside} == {"ddim_jax", f"ddim_jax-{VERSION}.dist-info"}
    in_tree = {
        path.relative_to(ROOT)
        for path in (ROOT / "ddim_jax").rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }
    assert {path for path in inside if path.parts[0] == "ddim_jax"} == in_tree
    assert {"py.typed", "viewer.html", "CREDITS.md"} <= {path.name for path in in_tree}
    with tarfile.open(sdist) as archive:
        rooms = {Path(name).parts[1] for name in archive.getnames() if "/" in name}
    assert rooms >= {"train.py", "sample.py", "CHANGELOG.md", "CITATION.cff", "docs"}
    assert not rooms & {"tests", "bench", ".ci"}


@pytest.mark.slow
def test_installed_commands_train_and_sample(dist, tmp_path):
    site = tmp_path / "site"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*pip, "--target", site, dist[1]], check=True, capture_output=True)

    def call(*command):
        done = subprocess.run(
            command,
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(site), "PYTHONSAFEPATH": "1"},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    code = "import ddim_jax; print(ddim_jax.__version__, ddim_jax.__file__)"
    assert call(sys.executable, "-c", code).split() == [VERSION, str(site / "ddim_jax/__init__.py")]

    config = tiny_config(presets()["digits"], "run")
    save_config(replace(config, out="run"), tmp_path / "config.json")
    text = call(site / "bin" / "ddim-train", "config.json", "--train.steps", "2")
    assert latest_step(tmp_path / "run") == 2
    assert "sample with: ddim-sample generate run" in text
    call(site / "bin" / "ddim-sample", "generate", "run", "--num-images", "4", "--steps", "2")
    assert (tmp_path / "samples.png").is_file()
