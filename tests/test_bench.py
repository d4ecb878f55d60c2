"""The benchmark: what it writes and refuses, and that it times nothing before both sides agree."""

import inspect
import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bench import __main__ as bench
from bench import peak
from bench.machine import machine, peak_bytes, processor
from bench.networks import SAMPLING, peer_sides, without_zeros
from bench.peer import diffusers_peer
from bench.rounds import Row, in_turn
from ddim_jax.config import UNetConfig, presets
from ddim_jax.model import build_unet, unet_apply
from ddim_jax.training.prepare import prepare_step


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr("bench.rounds.SIZE", 64)
    monkeypatch.setattr("bench.rounds.LEAST", 0.0)
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    monkeypatch.setattr(bench, "in_child", lambda module, *arguments: machine(*arguments))


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
    assert {"processor", "instruction sets", "versions"} <= report["machine"].keys()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("--rounds 0", ["--rounds is 0", "1 or more"]),
        ("--batch-size -1", ["--batch-size is -1"]),
        ("--out nowhere/bench.json", ["--out is nowhere/bench.json", "make it"]),
        ("--report nowhere/page.md", ["--report is nowhere/page.md", "make it"]),
        ("--sizes 3", ["--sizes is (3,)", "16 or more"]),
        ("--what overhead --against diffusers", ["--against is diffusers", "torch", "pip install"]),
    ],
)
def test_mistakes_are_one_sentence(call, monkeypatch, arguments, words):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    status, err = call(*arguments.split())
    assert status == 1
    assert len(err.strip().splitlines()) == 1
    assert all(word in err for word in words), err


def test_a_compiled_peer_needs_a_compiler(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    monkeypatch.setenv("CXX", "no-such-compiler")
    with (
        pytest.raises(ValueError, match="no-such-compiler, cannot be found; install it, or name"),
        diffusers_peer("diffusers-compiled"),
    ):
        pass


@pytest.mark.parametrize(
    ("text", "model", "sets"),
    [
        ("model name\t: EPYC\ncpu family\t: 25\nmodel\t\t: 1\nflags\t\t: sse avx2 amx_tile\n",
         "EPYC (cpu family 25, model 1)", ("avx2", "amx_tile")),
        ("processor\t: 0\nFeatures\t: fp asimd sve\n", None, ("asimd", "sve")),
        (None, None, ()),
    ],
)  # fmt: skip
def test_the_processor_is_named(tmp_path, monkeypatch, text, model, sets):
    monkeypatch.setattr("platform.processor", lambda: "")
    monkeypatch.setattr("platform.machine", lambda: "arm64")
    if text:
        (tmp_path / "cpuinfo").write_text(text)
    assert processor(tmp_path / "cpuinfo") == (model or "arm64", sets)
    assert all(f"{name} " in machine("optax")["versions"] for name in ("jaxlib", "optax"))


def test_a_peak_stays_when_the_memory_is_free_again():
    before = peak_bytes()
    np.ones(2**24).sum()
    assert peak_bytes() == peak_bytes("self") >= before > 2**20


def test_measurements_are_warm_and_last_long_enough(monkeypatch):
    monkeypatch.setattr("bench.rounds.LEAST", 0.5)
    clock, calls = [0.0], {"short": 0, "long": 0}
    monkeypatch.setattr("time.perf_counter", lambda: clock[0])
    monkeypatch.setattr("time.sleep", lambda seconds: calls.update(cold=True))

    def side(name, seconds):
        def call():
            # After a rest the other side's threads and caches are in the way.
            taken = seconds * (3 if calls.pop("cold", False) else 1)
            calls[name] += 1
            clock[0] += taken
            return taken

        return call

    short, long = in_turn(3, side("short", 0.125), side("long", 4.0))
    np.testing.assert_allclose(short, 0.125)
    assert calls["short"] == 1 + 3 * (1 + 4)
    np.testing.assert_allclose(long, 4.0)
    assert calls["long"] == 1 + 3 * 2


@pytest.mark.slow
def test_the_page_has_every_measure(call, tmp_path, monkeypatch):
    """With a tiny network; without train steps, what starts processes and what only compiles."""
    monkeypatch.setattr(bench, "presets", lambda: {"digits": tiny()})
    monkeypatch.setattr("bench.sampler.STEPS", 5)
    monkeypatch.setattr("bench.scaling.jax.device_count", lambda: 2)  # of the suite's 8
    for module in ("networks", "scaling", "training"):
        monkeypatch.setattr(f"bench.{module}.prepare_step", prepare_no_step)
    for name in ("start", "grid", "sampler_memory", "training_memory"):
        monkeypatch.setattr(bench, f"bench_{name}", lambda *_, name=name: [Row(name, 1.0, "s")])
    monkeypatch.setattr(peak, "in_child", lambda *_: {"host": 2**20, "device": 2**21})
    file, out = tmp_path / "page.md", tmp_path / "bench.json"
    arguments = ("--networks", "digits", "--dtype", "bfloat16", "--rounds", 1, "--batch-size", 2)
    assert call("--report", file, *arguments, "--out", out)[0] == 0
    text = file.read_text()
    titles = [line.split(",")[0] for line in text.splitlines() if line.startswith("## ")]
    assert titles == [
        "## peak", "## start", "## overhead", "## digits", "## memory", "## scaling", "## loop",
        "## grid",
    ]  # fmt: skip
    for words in (
        "processor", "jaxlib", "training ÷ bfloat16 matrix products", "loop ÷ bare",
        "training_memory", "2 devices ÷ 2 × one", "on each device | 2 | MiB", SAMPLING,
    ):  # fmt: skip
        assert words in text, words
    measures = json.loads(out.read_text())["measures"]
    assert all(row["value"] > 0 for rows in measures.values() for row in rows)


def prepare_no_step(*arguments, **options):
    inspect.signature(prepare_step).bind(*arguments, **options)
    return jax.jit(lambda state, x_0, _=None: (state, {"loss": x_0.sum()}))


def tiny():
    model = UNetConfig(
        8, 1, channels=4, multipliers=(1,), blocks=1, attention_resolutions=(), groups=2
    )
    config = presets()["digits"]
    return replace(config, model=model, train=replace(config.train, batch_size=1))


def test_a_peer_with_other_results_is_not_timed(tmp_path, capsys):
    config = without_zeros(tiny())
    apply, params = unet_apply(config.model), build_unet(config.model, 0)[1]
    rng = np.random.default_rng(0)
    x_T = rng.normal(size=(2, 8, 8, 1)).astype(np.float32)
    t, asked = np.array([3, 500], np.int32), []

    def loss(params):
        return jnp.mean((apply(params, jnp.asarray(x_T), jnp.asarray(t)) - x_T[::-1]) ** 2)

    kernel = np.array(jax.jit(jax.grad(loss))(params)["conv_in"]["kernel"])
    kernel = kernel.transpose(3, 2, 0, 1)  # as PyTorch's
    theirs = {"sample": x_T.transpose(0, 3, 1, 2), "gradient": kernel}

    def ask(call, **arguments):
        asked.append(call)
        if call in theirs:
            np.save(arguments["out"], theirs[call])
        return {"seconds": 1.0}

    def sides():
        return peer_sides(config, params, x_T, t, x_T, 1, tmp_path, ask)

    assert list(sides()) == ["forward", SAMPLING, "training"]
    kernel[0] *= 1.01
    assert list(sides()) == ["forward", SAMPLING]
    assert "training is not compared" in capsys.readouterr().err
    theirs["sample"] = theirs["sample"] * 1.01
    asked.clear()
    with pytest.raises(RuntimeError, match=r"images: we and .* differ by .* nothing was timed"):
        sides()
    assert asked == ["load", "sample"]
