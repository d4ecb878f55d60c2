"""The benchmark: what it writes, what it refuses, and that it times nothing before both sides agree."""

import json
from dataclasses import replace

import numpy as np
import pytest

from ddim_jax.bench import __main__ as bench
from ddim_jax.bench.networks import bench_network
from ddim_jax.cli import run
from ddim_jax.config import UNetConfig, presets


@pytest.fixture(autouse=True)
def _small_products(monkeypatch):
    monkeypatch.setattr("ddim_jax.bench.rounds.SIZE", 64)


@pytest.fixture
def call(monkeypatch, capsys):
    """The command line: arguments → (exit status, what it wrote on stderr)."""

    def call(*arguments):
        monkeypatch.setattr("sys.argv", ["bench", *map(str, arguments)])
        status = run(bench.main)
        return status, capsys.readouterr().err

    return call


def test_the_table_is_written_as_json(call, tmp_path, monkeypatch):
    monkeypatch.setattr("ddim_jax.bench.sampler.STEPS", 5)
    out = tmp_path / "bench.json"
    assert call("--what", "overhead", "--rounds", 1, "--out", out)[0] in (None, 0)
    report = json.loads(out.read_text())
    rows = report["measures"]["overhead"]
    assert [row["measure"][-3:] for row in rows] == ["η=0", "η=1"]
    assert all(
        0 < row["value"] < 1e4 and row["unit"] == "ms" and row["peer"] is None for row in rows
    )
    assert report["settings"]["rounds"] == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--rounds", "0"], ["--rounds is 0", "1 or more"]),
        (["--batch-size", "-1"], ["--batch-size is -1"]),
        (["--out", "nowhere/bench.json"], ["--out is nowhere/bench.json", "make it"]),
        (
            ["--what", "overhead", "--against", "diffusers"],
            ["--against is diffusers", "torch", "pip install"],
        ),
    ],
)
def test_mistakes_are_one_sentence(call, monkeypatch, arguments, words):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    status, err = call(*arguments)
    assert status == 1
    assert len(err.strip().splitlines()) == 1
    assert all(word in err for word in words), err


@pytest.fixture(scope="module")
def tiny():
    model = UNetConfig(
        8, 1, channels=4, multipliers=(1,), blocks=1, attention_resolutions=(), groups=2
    )
    config = presets()["digits"]
    return replace(config, model=model, train=replace(config.train, batch_size=8))


def test_a_network_alone(tiny):
    rows = {row.measure: row for row in bench_network(tiny, 1, None)}
    assert all(row.value > 0 and row.ratio is None for row in rows.values())
    assert {"forward", "sampling, S=10", "training", "forward ÷ matrix products"} <= rows.keys()


def test_a_peer_with_other_images_is_not_timed(tiny):
    asked = []

    def ask(call, **arguments):
        asked.append(call)
        if "out" in arguments:
            np.save(arguments["out"], np.ones((8, 1, 8, 8), np.float32))
        return {"seconds": 1.0}

    with pytest.raises(
        RuntimeError, match=r"images: we and diffusers differ by .* nothing was timed"
    ):
        bench_network(tiny, 1, ask)
    assert asked == ["load", "sample"]
