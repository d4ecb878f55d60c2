"""A run directory: one training at a time, names that work, what can be written."""

import json
import os
import socket
import subprocess
import sys

import pytest
from filelock import FileLock
from rich.console import Console

from ddim_jax.config import load_config, presets, save_config
from ddim_jax.files import check_output, check_path, make_directory, read_arrays, whole, write
from ddim_jax.training import directory, train
from ddim_jax.training.directory import only_one
from tests.commands import metrics, start, tree
from tests.conftest import ROOT, tiny_config

HOLD = """
import sys, time
from pathlib import Path
from ddim_jax.training.directory import only_one
with only_one(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds a run directory."""
    command = [sys.executable, "-c", HOLD, str(tmp_path / "run")]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


@pytest.mark.slow
def test_a_second_training_names_the_first_and_a_killed_one_does_not_count(
    holder, tmp_path, counted_steps
):
    config = tiny_config(presets()["digits"], tmp_path / "run")
    before = tree(tmp_path)
    name = f"in use by process {holder.pid} on {socket.gethostname()}; wait for its end"
    with pytest.raises(ValueError, match=name):
        train(config, Console(quiet=True))
    assert tree(tmp_path) == before
    holder.kill()
    holder.wait()
    assert (tmp_path / "run" / ".lock").exists()  # what the kill left
    train(config, Console(quiet=True))
    assert [line["step"] for line in metrics(tmp_path / "run")] == [1, 2, 3]
    assert not list((tmp_path / "run").glob(".*"))


def test_a_lock_without_a_readable_name(tmp_path):
    with FileLock(tmp_path / ".lock"), pytest.raises(ValueError, match="in use by another process"):
        only_one(tmp_path).__enter__()


def test_a_directory_without_locks(tmp_path, monkeypatch):
    def fail(_):
        raise OSError(37, "No locks available")

    monkeypatch.setattr(directory.FileLock, "acquire", fail)
    with pytest.raises(ValueError, match="cannot be locked \\(No locks available\\)"):
        only_one(tmp_path).__enter__()


@pytest.mark.slow
def test_a_run_that_another_process_trained_meanwhile(copy_of_run, monkeypatch):
    """Between this process's look at the directory and its lock."""
    config = tiny_config(presets()["digits"], copy_of_run, steps=4)
    steps = iter([3, 4])
    monkeypatch.setattr("ddim_jax.training.loop.resumable_step", lambda *_: next(steps))
    with pytest.raises(ValueError, match="was trained by another process meanwhile; start again"):
        train(config, Console(quiet=True))


@pytest.mark.parametrize(
    ("path", "sentence"),
    [
        ("a\0b", "must be text that UTF-8 can encode"),
        ("a\udcff", "must be text that UTF-8 can encode"),
        ("x/" + "ä" * 150 + "/y", "has a name of 300 bytes, 'ääääääääää…'; a file system takes"),
        ("abc/" * 1000, "is a path of .* bytes; it may have up to 3,800"),
    ],
)
def test_names_that_no_file_can_have(path, sentence, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"out": path}))
    before = tree(tmp_path)
    for check in (
        lambda: check_path(path, "--out"),
        lambda: check_output(tmp_path / path),
        lambda: make_directory(tmp_path / path, tmp_path / path),
        lambda: load_config(tmp_path / "config.json").check(),
    ):
        with pytest.raises(ValueError, match=sentence):
            check()
    assert tree(tmp_path) == before


@pytest.mark.skipif(os.sep != "/", reason="a backslash separates names there")
@pytest.mark.parametrize("command_line", [["train"], ["train", "--dry-run"], ["sample"]])
def test_a_backslash_in_the_path_of_a_run(command_line, command, tmp_path, monkeypatch):
    """TensorStore takes it for a slash, and the arrays would lie outside the run."""
    (tmp_path / "a\\b").mkdir()
    monkeypatch.chdir(tmp_path / "a\\b")
    name, *flags = command_line
    place = ["generate", "run"] if name == "sample" else ["--out", "run"]
    status, out, err = command(name, *flags, *place)
    assert (status, out) == (1, "")
    assert "with a backslash in its path" in err
    assert err.count("\n") == 1
    assert not list(tmp_path.glob("*/*"))


@pytest.mark.parametrize("name", ["checkpoints", "config.json", "data.json", "metrics.jsonl"])
def test_a_file_in_the_place_of_a_directory_and_the_reverse(name, command, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    if name == "checkpoints":
        (run / name).write_text("")
    else:
        (run / name).mkdir()
    status, _, err = command("train", "--out", run)
    assert status == 1
    assert f"{run / name} cannot be written" in err
    assert err.count("\n") == 1


def test_a_failed_write_leaves_what_was_there(tmp_path):
    path = tmp_path / "a.txt"
    write(path, "before")

    def fail():
        with whole(path) as partial:
            partial.write_text("half")
            raise OSError(28, "No space left on device")

    with pytest.raises(ValueError, match=f"{path} cannot be written \\(No space left on device\\)"):
        fail()
    assert {file.name: file.read_text() for file in tmp_path.iterdir()} == {"a.txt": "before"}


def test_writers_of_one_file_have_names_of_their_own(tmp_path):
    with whole(tmp_path / "a.txt") as one, whole(tmp_path / "a.txt") as two:
        assert one != two
        one.write_text("one")
        two.write_text("two")
    assert (tmp_path / "a.txt").read_text() == "one"  # the last to end
    long = tmp_path / ("ä" * 120 + ".npz")
    write(long, "x")
    assert long.read_text() == "x"


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "statvfs"), reason="POSIX")
def test_a_full_disk_says_one_sentence(tmp_path):
    """Orbax, asyncio and TensorStore's threads would print pages."""
    often = {"checkpoint_every": 10, "log_every": 30}
    config = tiny_config(presets()["digits"], tmp_path / "run", steps=30, **often)
    save_config(config, tmp_path / "config.json")
    done = subprocess.run(
        [sys.executable, "-c", FULL, tmp_path / "config.json"],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 1
    assert "the checkpoint of step 20 cannot be written" in done.stderr
    assert "that of step 10 is intact" in done.stderr
    assert done.stderr.count("\n") == 1


FULL = """
import resource, sys, time
from pathlib import Path
import tests
from ddim_jax.commands import train
from ddim_jax.training import loop
from tests.training import count_steps
loop.prepare_step = count_steps
save = loop.save_checkpoint
def limited(manager, state, *rest):
    if int(state.step) == 20:
        loop.seal(manager)
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
    save(manager, state, *rest)
loop.save_checkpoint = limited
status = train()
time.sleep(0.5)  # the threads of TensorStore
sys.exit(status)
"""


PLAIN = "from ddim_jax.evaluation import report; report.draw_figures = lambda *_: {}"


@pytest.mark.slow
def test_two_ablations_at_once_into_one_directory(copy_of_run, command, without_figures):
    """Each draws what it does not find; no file is half one's and half the other's."""
    flags = ["--sigma", "eta=0", "eta=1", "--steps", 2, 3, "--num-images", 24, "--batch-size", 8]
    processes = [start("sample", "ablate", copy_of_run, *flags, before=PLAIN) for _ in range(2)]
    for process in processes:
        assert process.communicate()[1] == ""
        assert process.returncode == 0
    files = list((copy_of_run / "ablations" / "cells").rglob("*"))
    assert len([file for file in files if file.name.startswith("000000")]) == 4 * 3
    assert all(file.is_dir() or read_arrays(file) for file in files)
    assert not [path for path in tree(copy_of_run) if ".partial-" in path]
    status, out, err = command("sample", "ablate", copy_of_run, *flags)
    assert (status, err) == (0, "")
    assert "12 of 12 batches already exist" in out
    assert "4 of 4 cells are already measured" in out
