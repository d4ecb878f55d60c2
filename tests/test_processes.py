"""Two processes on loopback against one: same batches, checkpoints that go on, same images."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest

from ddim_jax.config import presets, save_config
from ddim_jax.training.checkpoint import latest_step
from tests.conftest import ROOT, tiny_config

PROGRAM = """
import json, os, resource, signal, sys, tests
from ddim_jax import commands
from ddim_jax.training import loop
from tests.training import count_steps

def save(*arguments, save=loop.save_checkpoint):
    # No file can grow while a checkpoint is written.
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, resource.RLIM_INFINITY))
    save(*arguments)

if os.environ["JAX_PROCESS_ID"] == os.environ.get("FULL"):
    loop.save_checkpoint = save
if "FULL" in os.environ:
    loop.prepare_step = count_steps
for name, *sys.argv[1:] in json.loads(sys.argv[1]):
    if getattr(commands, name)():
        sys.exit(1)
"""


def start(*commands, others=None, **environment):
    """The same commands, one after the other, in two processes, each with a device.

    `others` are the second one's, if they differ.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    job = {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": "2", "JAX_NUM_CPU_DEVICES": "1"}
    return [
        subprocess.Popen(
            [
                sys.executable,
                "-c",
                PROGRAM,
                json.dumps([[*map(str, command)] for command in (k and others) or commands]),
            ],
            cwd=ROOT,
            env=os.environ | job | environment | {"JAX_PROCESS_ID": str(k)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for k in range(2)
    ]


def finish(processes):
    texts = [process.communicate(timeout=300) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], texts
    quiet = re.sub(r"\[Gloo\].*\n", "", texts[1][0])
    assert quiet == ""  # only the first process speaks
    return texts[0][0]


def fail(processes):
    """What the processes say when both end with an error."""
    texts = [process.communicate(timeout=100)[1] for process in processes]
    assert [process.returncode for process in processes] == [1, 1], texts
    return texts


@pytest.mark.slow
def test_processes_with_different_flags_refuse_all(tmp_path):
    train = ["train", "--out", tmp_path / "run", "--seed"]
    first, second = fail(start([*train, 1], others=[[*train, 2]]))
    reason = "--seed is 2 in process 1 and 1 in process 0; start all with the same command line.\n"
    assert second == f"error: {reason}"
    assert first == f"error: process 1 ended: {reason}"
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_full_disk_on_one_machine_ends_all(tmp_path):
    config = tiny_config(presets()["digits"], tmp_path / "run", batch_size=8)
    config = replace(config, mesh=replace(config.mesh, data=1, fsdp=2))
    save_config(config, tmp_path / "c.json")
    first, second = fail(start(["train", tmp_path / "c.json"], FULL="1"))
    reason = (
        f"the checkpoint of step 2 cannot be written to {tmp_path}/run/checkpoints "
        "(File too large); none was saved before.\n"
    )
    assert (first, second) == (f"error: process 1 ended: {reason}", f"error: {reason}")


def lines(out):
    path = out / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def losses(out):
    """Loss, gradient norm and, where a checkpoint was judged, validation loss of each step."""
    names = ("loss", "grad_norm", "validation_loss")
    return {line["step"]: [line.get(name, np.nan) for name in names] for line in lines(out)}


def assert_close(actual, expected):
    """Equal but for rounding, which Adam magnifies from step to step."""
    assert actual.keys() == expected.keys()
    for step in expected:
        np.testing.assert_allclose(actual[step], expected[step], rtol=1e-3)


@pytest.mark.slow
def test_two_processes_and_one_do_the_same(tmp_path, command):
    one, two, then_two, file = (tmp_path / name for name in ("one", "two", "then_two", "c.json"))
    options = {"sample_images": 3, "sample_steps": 2, "validate_images": 8, "checkpoint_every": 2}
    config = tiny_config(presets()["digits"], one, batch_size=8, **options)
    save_config(replace(config, model=replace(config.model, num_classes=10)), file)
    draw = ["sample", "generate", one, "--num-images", 5, "--steps", 2, "--sigma", "eta=1"]
    draw += ["--label", 1, 2]
    mesh = ["--mesh.data", 1, "--mesh.fsdp", 2]  # one process has another: 2 and 1
    until_stopped = ["--train.steps", 1_000_000, "--train.validate-images", 0]
    processes = start(
        # From the start, until one of them is told to stop.
        ["train", file, "--out", two, *mesh, *until_stopped],
        # On from a checkpoint that one process made.
        ["train", file, "--out", then_two, *mesh, "--train.steps", 4],
        # A batch of 3 is filled up to 4, for two devices.
        [*draw, "--batch-size", 3, "--out", tmp_path / "two.npz"],
    )
    status, _, err = command("train", file, "--train.steps", 4, "--mesh.data", 2)
    assert (status, err) == (0, "")
    shutil.copytree(one, then_two)
    shutil.rmtree(then_two / "checkpoints" / "4")

    deadline = time.monotonic() + 200
    while len(lines(two)) < 6:
        assert all(process.poll() is None for process in processes), finish(processes)
        assert time.monotonic() < deadline
        time.sleep(0.01)
    processes[1].send_signal(signal.SIGTERM)
    text = finish(processes)
    stopped = latest_step(two)
    assert f"stopped at step {stopped} of 1000000; checkpoint saved" in text
    assert "2 of 2 × cpu in 2 processes" in text
    assert "resumes from step 2" in text
    assert "5 images" in text
    expected = losses(one)
    assert_close({step: losses(then_two)[step] for step in expected}, expected)
    unjudged = {step: [*values[:2], np.nan] for step, values in expected.items()}
    assert_close({step: losses(two)[step] for step in expected}, unjudged)

    # What two began, one continues.
    flags = ["--train.steps", stopped + 2, "--mesh.data", 2]
    status, out, err = command("train", file, "--out", two, *flags)
    assert (status, err) == (0, "")
    assert f"resumes from step {stopped}" in out
    assert latest_step(two) == stopped + 2 == len(lines(two))

    # The images of a seed are those of the seed.
    assert command(*draw, "--batch-size", 5, "--out", tmp_path / "one.npz")[0] == 0
    with np.load(tmp_path / "one.npz") as expected, np.load(tmp_path / "two.npz") as images:
        assert np.abs(images["images"].astype(int) - expected["images"]).max() <= 1
