"""Mistakes: one sentence, the value, the fix, a non-zero exit, and nothing changed on disk."""

import os
import re
import shutil

import jax
import pytest

from ddim_jax.config import load_config, save_config
from tests.commands import tree

TRAIN = [
    (["--train.steps", "0"], "--train.steps is 0; it must be 1 or more"),
    (
        ["--model.groups", "5"],
        "--model.channels is 32; it must be a multiple of 2 and of model.groups = 5",
    ),
    (["--data.source", "cat"], "--data.source is cat; it must be digits, emoji"),
    (
        ["--data.source", "emoji"],
        "emoji has images of shape (32, 32, 3), the model takes (8, 8, 1): use --model.image-",
    ),
    (["--data.source", "folder:{tmp}/broken"], "broken/x.png is not a readable image"),
    (["--data.source", "folder:{tmp}/none"], "none is not a directory"),
    (
        ["nopreset"],
        "nopreset cannot be read (No such file or directory); give a preset (digits, emoji, ",
    ),
    (["--train.sample-steps", "2000"], "--train.sample-steps is 2000"),
    (["--seed", "-3"], "--seed is -3"),
    (
        ["--train.batch-size", "12", "--train.accumulate", "5"],
        "--train.accumulate is 5; it must be a divisor of",
    ),
    (["--diffusion.zero-terminal-snr"], "--diffusion.prediction is epsilon; it must be v or x0"),
    (
        ["--model.num-classes", "7"],
        "--model.num-classes is 7, and digits has 10 classes; use 10, or 0 for an uncondition",
    ),
    (["--mesh.fsdp", "16"], "--mesh.fsdp 16 needs more devices than 8 × cpu"),
    (["import", "{tmp}/broken/x.png", "{tmp}/run"], "x.png is not a PyTorch checkpoint of tensors"),
    (["import", "{tmp}/empty", "{tmp}/run"], "config.json cannot be read (No such file"),
    (["export", "{tmp}/empty", "{tmp}/folder"], "holds no checkpoint"),
    (["export", "{run}", ""], "an argument after {run} is empty; give a path or a name"),
    (["import", "", "{tmp}/run"], "an argument after import is empty"),
    ([""], "an argument after the command is empty"),
    (
        ["export", "{run}", "{tmp}/broken/x.png"],
        "x.png cannot be made (File exists); choose another place",
    ),
    (
        ["--out", "{tmp}/broken/x.png/run"],
        "x.png/run cannot be made (Not a directory); choose another place",
    ),
]
SAMPLE = [
    ([""], "an argument after generate is empty; give a path or a name"),
    (["{run}", "--out", ""], "--out is empty; give a path"),
    (["{run}", "--out="], "--out is empty; give a path"),
    (["{run}", "--sigma", "eta=-0.5"], "eta is -0.5; it must be ≥ 0"),
    (["{run}", "--sigma", "eta=30"], "sigma is"),
    (["{run}", "--steps", "1001"], "S is 1001 reverse steps; choose 1 to T = 1000"),
    (["{run}", "--steps", "0"], "--steps is 0; it must be 1 or more"),
    (
        ["{run}", "--steps", "7", "--timesteps", "1,21,41"],
        "--steps is 7, and --sigma eta=0 or --timesteps 1,21,41 has 3",
    ),
    (["{run}", "--eta", "0.5"], "--eta is now --sigma eta=VALUE"),
    ([], "RUN is None and --oracle None; give one of the two"),
    (["{run}", "--num-images", "0"], "--num-images is 0; it must be 1 or more"),
    (["{run}", "--batch-size", "-1"], "--batch-size is -1"),
    (["{run}", "--batch-size", "1000000000000"], "it must be 1 or more, up to 1,000,000"),
    (["{run}", "--sigma", "eta=inf"], "eta is inf; it must be"),
    (["{run}", "--checkpoint", "²"], "the checkpoint asked for is ²; {run} has latest, best and"),
    (["{run}", "--seed", "-1"], "--seed is -1"),
    (["{run}", "--out", "{tmp}/x.jpg"], "x.jpg; its name must end in .png (a grid) or .npz"),
    (["{run}", "--out", "{tmp}/broken/x.png/y.png"], "cannot be made"),
    (["{run}", "--sigma", "eta"], "--sigma is eta; give eta=NUMBER"),
    (["{run}", "--label", "3"], "--label is 3, but {run} is unconditional; leave --label out"),
    (["{run}", "--guidance", "3"], "--guidance is 3 without --label"),
    (["--oracle", "digits", "--dtype", "bfloat16"], "--dtype is bfloat16, but an oracle has no"),
    (
        ["--oracle", "digits", "--matmul-precision", "high"],
        "--matmul-precision is high, but an oracle has no network; leave it out",
    ),
    (
        ["{run}", "--checkpoint", "2000"],
        "the checkpoint asked for is 2000; {run} has latest, best and",
    ),
    (["{tmp}/empty"], "the run directory {tmp}/empty holds no checkpoint"),
    (["{tmp}/nowhere"], "the run directory {tmp}/nowhere does not exist"),
]


@pytest.mark.parametrize(
    ("name", "arguments", "sentence"),
    [("train", *case) for case in TRAIN] + [("sample", *case) for case in SAMPLE],
)
def test_a_mistake_is_one_sentence(name, arguments, sentence, tmp_path, command, tiny_run):
    (tmp_path / "broken").mkdir()
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken" / "x.png").write_text("no image")
    fill = {"tmp": tmp_path, "run": tiny_run}
    arguments = [argument.format(**fill) for argument in arguments]
    arguments = ["generate", *arguments] if name == "sample" else arguments
    if name == "train" and "--out" not in arguments and arguments[0] not in ("import", "export"):
        arguments += ["--out", tmp_path / "run"]
    before = tree(tmp_path), tree(tiny_run)
    status, out, err = command(name, *arguments)
    assert status == 1
    assert sentence.format(**fill) in err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert out == ""
    assert (tree(tmp_path), tree(tiny_run)) == before


def test_an_empty_value_of_a_flag_is_a_value(command, tmp_path):
    status, _, err = command("train", "--dry-run", "--out", tmp_path, "--data.archive", "")
    assert (status, err) == (0, "")


def test_a_flag_that_does_not_exist(command):
    status, out, err = command("train", "--train.stepz", "3")
    assert status == 2
    assert "stepz" in out + err
    assert "Traceback" not in out + err


def test_a_checkpoint_of_another_configuration(tiny_run, command, tmp_path):
    config = load_config(tiny_run / "config.json")
    save_config(config, tmp_path / "config.json")
    before = tree(tiny_run)
    status, _, err = command("train", tmp_path / "config.json", "--train.learning-rate", "0.5")
    assert status == 1
    assert (
        f"{tiny_run} holds checkpoints of another configuration: --train.learning-rate was 0.002 "
        "there and is 0.5 now" in err
    )
    assert tree(tiny_run) == before


def test_a_truncated_checkpoint(tiny_run, command, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(tiny_run, run)
    for item in ("ema", "train"):
        files = [path for path in (run / "checkpoints" / "3" / item).rglob("*") if path.is_file()]
        largest = max(files, key=os.path.getsize)
        os.truncate(largest, os.path.getsize(largest) // 2)
    before = tree(run)
    for name, arguments in (
        ("sample", ["generate", run, "--out", tmp_path / "x.png"]),
        ("train", [run / "config.json", "--out", run, "--train.steps", 4]),
    ):
        status, _, err = command(name, *arguments)
        assert status == 1
        assert re.search(r"^error: the checkpoint .*/checkpoints/3 is damaged .*; remove it", err)
        assert err.count("\n") == 1
        assert tree(run) == before


def test_a_bug_of_ours_keeps_its_traceback(monkeypatch):
    from ddim_jax.runtime import run

    with pytest.raises(ValueError, match="invalid literal"):
        run(lambda: int("x"))  # a library's ValueError is no message for a user
    with pytest.raises(ZeroDivisionError):
        run(lambda: 1 / 0)
    with pytest.raises(ValueError, match="nope"):
        run(lambda: jax.random.key(0, impl="nope"))  # nor is one of JAX's
