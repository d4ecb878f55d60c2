"""Two processes on loopback against one: the same batches, checkpoints that either continues, the same images."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from ddim_jax.training.checkpoint import latest_step
from tests.conftest import ROOT

TRAIN = [
    *(
        "--model.channels",
        "8",
        "--model.groups",
        "2",
        "--model.multipliers",
        "1",
        "--model.blocks",
        "1",
    ),
    *("--model.attention-resolutions", "--model.num-classes", "10"),
    *("--train.batch-size", "16", "--train.warmup-steps", "2", "--train.decay", "constant"),
    *(
        "--train.sample-every",
        "0",
        "--train.sample-images",
        "4",
        "--train.sample-steps",
        "2",
        "--train.evaluate-images",
        "0",
    ),
    *("--train.validate-images", "32", "--train.log-every", "1"),
]


def start(name, *arguments):
    """The same command in two processes, each with a device."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    job = {
        "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
        "JAX_NUM_PROCESSES": "2",
        "JAX_NUM_CPU_DEVICES": "1",
    }
    command = [sys.executable, str(ROOT / f"{name}.py"), *map(str, arguments)]
    options = {"cwd": ROOT, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return [
        subprocess.Popen(command, env=os.environ | job | {"JAX_PROCESS_ID": str(k)}, **options)
        for k in range(2)
    ]


def finish(processes):
    texts = [process.communicate(timeout=300) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], texts
    quiet = re.sub(r"\[Gloo\].*\n", "", texts[1][0])
    assert quiet == ""  # only the first process speaks
    return texts[0][0]


def lines(out):
    path = out / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def losses(out):
    return {line["step"]: (line["loss"], line["grad_norm"]) for line in lines(out)}


def close(found, expected):
    """Equal but for rounding, which Adam magnifies from step to step."""
    assert found.keys() == expected.keys()
    for step in expected:
        np.testing.assert_allclose(found[step], expected[step], rtol=1e-3)


@pytest.mark.slow
def test_two_processes_and_one_do_the_same(tmp_path, command):
    one = tmp_path / "one"
    arguments = [
        "--out",
        one,
        *TRAIN,
        "--train.checkpoint-every",
        2,
        "--train.steps",
        4,
        "--mesh.data",
        2,
    ]
    status, _, err = command("train", *arguments)
    assert (status, err) == (0, "")

    # Two processes go on from the checkpoint that one made, on another mesh.
    shutil.copytree(one, tmp_path / "then_two")
    shutil.rmtree(tmp_path / "then_two" / "checkpoints" / "4")
    text = finish(start("train", "--out", tmp_path / "then_two", *TRAIN, "--train.checkpoint-every", 2, "--train.steps", 4,
                        "--mesh.fsdp", 2))  # fmt: skip
    assert "goes on from step 2" in text
    assert "2 of 2 × cpu in 2 processes" in text
    close(losses(tmp_path / "then_two"), losses(one))

    # Two from the start, until one of them is told to stop; then one goes on.
    two = tmp_path / "two"
    processes = start("train", "--out", two, *TRAIN, "--train.steps", 1000)
    deadline = time.monotonic() + 200
    while len(lines(two)) < 6:
        assert all(process.poll() is None for process in processes), [
            process.communicate() for process in processes
        ]
        assert time.monotonic() < deadline
        time.sleep(0.01)
    processes[1].send_signal(signal.SIGTERM)
    text = finish(processes)
    stopped = latest_step(two)
    assert f"stopped at step {stopped} of 1000; checkpoint saved" in text
    close({step: loss for step, loss in losses(two).items() if step <= 4}, losses(one))
    status, out, err = command(
        "train", "--out", two, *TRAIN, "--train.steps", stopped + 2, "--mesh.data", 1
    )
    assert (status, err) == (0, "")
    assert f"goes on from step {stopped}" in out
    assert latest_step(two) == stopped + 2 == len(lines(two))

    # The images of a seed are those of the seed.
    draw = ["generate", one, "--num-images", 5, "--steps", 3, "--eta", 1, "--label", 1, 2]
    text = finish(
        start("sample", *draw, "--out", tmp_path / "two.npz", "--batch-size", 3)
    )  # filled up to 4, for two devices
    assert "5 images" in text
    assert command("sample", *draw, "--out", tmp_path / "one.npz")[0] == 0
    with np.load(tmp_path / "one.npz") as expected, np.load(tmp_path / "two.npz") as found:
        assert np.abs(found["images"].astype(int) - expected["images"]).max() <= 1
