"""The benchmark: what it writes and refuses, and that it times nothing before both sides agree."""

import json
from dataclasses import replace

import numpy as np
import pytest

from bench import __main__ as bench
from bench.networks import SAMPLING, bench_network, peer_sides
from ddim_jax.config import UNetConfig, presets
from ddim_jax.model import build_unet


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr("bench.rounds.SIZE", 64)
    monkeypatch.setattr("time.sleep", lambda seconds: None)


@pytest.fixture
def call(monkeypatch, capsys):
    """The command line: arguments → (exit status, what it wrote on stderr)."""

    def call(*arguments):
        monkeypatch.setattr("sys.argv", ["bench", *map(str, arguments)])
        status = bench.main()
        return status, capsys.readouterr().err

    return call


def test_the_table_is_written_as_json(call, tmp_path, monkeypatch):
    monkeypatch.setattr("bench.sampler.STEPS", 5)
    monkeypatch.setattr("bench.sampler.SHAPE", (1, 4, 4, 3))
    out = tmp_path / "bench.json"
    assert call("--what", "overhead", "--rounds", 1, "--out", out)[0] == 0
    report = json.loads(out.read_text())
    rows = report["measures"]["overhead"]
    assert [row["measure"][-3:] for row in rows] == ["η=0", "η=1"]
    for row in rows:
        assert 0 < row["value"] < 1e4
        assert (row["unit"], row["peer"]) == ("ms", None)
    assert report["settings"]["rounds"] == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("--rounds 0", ["--rounds is 0", "1 or more"]),
        ("--batch-size -1", ["--batch-size is -1"]),
        ("--out nowhere/bench.json", ["--out is nowhere/bench.json", "make it"]),
        ("--what overhead --against diffusers", ["--against is diffusers", "torch", "pip install"]),
    ],
)
def test_mistakes_are_one_sentence(call, monkeypatch, arguments, words):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    status, err = call(*arguments.split())
    assert status == 1
    assert len(err.strip().splitlines()) == 1
    assert all(word in err for word in words), err


def tiny():
    model = UNetConfig(
        8, 1, channels=4, multipliers=(1,), blocks=1, attention_resolutions=(), groups=2
    )
    config = presets()["digits"]
    return replace(config, model=model, train=replace(config.train, batch_size=1))


@pytest.mark.slow
def test_a_network_alone():
    rows = {row.measure: row for row in bench_network(tiny(), 1, None)}
    assert all(row.value > 0 and row.ratio is None for row in rows.values())
    assert {"forward", SAMPLING, "training", "forward ÷ matrix products"} <= rows.keys()


def test_a_peer_with_other_images_is_not_timed(tmp_path):
    asked, config = [], tiny()
    params, x_T = build_unet(config.model, 0)[1], np.ones((1, 8, 8, 1), np.float32)

    def ask(call, **arguments):
        asked.append(call)
        if "out" in arguments:
            np.save(arguments["out"], np.ones((1, 1, 8, 8), np.float32))
        return {"seconds": 1.0}

    with pytest.raises(RuntimeError, match=r"images: we and .* differ by .* nothing was timed"):
        peer_sides(config, params, x_T, np.ones(1, np.int32), 2 * x_T, 1, tmp_path, ask)
    assert asked == ["load", "sample"]
