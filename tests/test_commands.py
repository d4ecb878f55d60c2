"""The two command lines as a user meets them."""

import dataclasses
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from PIL import Image

from ddim_jax.config import load_config, presets, save_config
from ddim_jax.model import build_unet
from ddim_jax.training import initial_state, load_run, make_optimizer
from ddim_jax.training.checkpoint import latest_step, restore_state
from tests.conftest import ROOT, tiny_config
from tests.data.synthetic import write_archive


def metrics(out):
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


# The same program in every process, whatever machine this is.
TWO_DEVICES = os.environ | {"JAX_NUM_CPU_DEVICES": "2"}


def pixels(path):
    with Image.open(path) as image:
        return np.asarray(image)


# ---- train.py


@pytest.mark.slow
@pytest.mark.parametrize("source", ["digits", "emoji"])
def test_train_and_sample_each_embedded_data_set(source, tmp_path, command):
    config = tiny_config(presets()[source], tmp_path / "run", sample_every=2, evaluate_images=16 if source == "digits" else 0)
    save_config(config, tmp_path / "config.json")
    status, out, err = command("train", tmp_path / "config.json")
    assert (status, err) == (0, "")
    run = tmp_path / "run"
    assert latest_step(run) == config.train.steps == 3
    assert [line["step"] for line in metrics(run)] == [1, 2, 3]
    assert all(np.isfinite(line["loss"]) and line["images_per_second"] > 0 for line in metrics(run))
    assert load_config(run / "config.json") == load_run(run)[0] == config
    assert sorted(path.name for path in (run / "samples").iterdir()) == ["step_0000002.png"]
    assert re.search(r"step 3/3  loss \d\.\d+  [\d,]+ images/s  \d:\d\d:\d\d left", out)
    match = re.search(r"Fréchet distance, pixels in \[-1, 1\], 64 dimensions, n=16 .* S=4, eta=0: ([\d.]+)", out)
    assert bool(match) == (source == "digits")

    # The picture of the end is what sample.py draws for the same seed, S and batch.
    arguments = ["generate", run, "--num-images", 4, "--steps", 4, "--batch-size", 4, "--out", tmp_path / "again.png"]
    status, out, err = command("sample", *arguments)
    assert (status, err) == (0, "")
    np.testing.assert_array_equal(pixels(tmp_path / "again.png"), pixels(run / "samples.png"))
    assert pixels(run / "samples.png").ndim == (2 if source == "digits" else 3)


@pytest.mark.slow
def test_a_synthetic_cifar10_archive_is_prepared_and_trained_on_without_tensorflow(tmp_path):
    sha256, _ = write_archive(tmp_path / "cifar-10-binary.tar.gz")
    out = tmp_path / "run"
    flags = f"""cifar10 --out {out} --data.data-dir {tmp_path} --data.archive-sha256 {sha256} --model.channels 8
                --model.groups 2 --model.multipliers 1 --model.blocks 1 --model.attention-resolutions
                --train.steps 2 --train.batch-size 8 --train.sample-images 4 --train.sample-steps 2 --train.log-every 1""".split()
    code = "import sys, train; from ddim_jax.cli import run; s = run(train.main); sys.exit(s or 'tensorflow' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code, *flags], cwd=ROOT, capture_output=True, text=True, env=TWO_DEVICES)
    assert done.returncode == 0, done.stderr
    assert "60 images (32, 32, 3)" in done.stdout
    assert latest_step(out) == 2


def test_dry_run_describes_and_writes_nothing(tmp_path, command):
    status, out, _ = command("train", "--dry-run", "--out", tmp_path / "run", "--train.learning-rate", "0.001")
    assert status == 0
    described = json.loads(out[: out.rindex("}") + 1])
    digits = presets()["digits"]
    train = dataclasses.replace(digits.train, learning_rate=0.001)
    expected = dataclasses.asdict(dataclasses.replace(digits, out=str(tmp_path / "run"), train=train))
    assert described == json.loads(json.dumps(expected))
    parameters = jax.eval_shape(lambda: build_unet(digits.model, 0)[1])
    assert f"parameters: {sum(leaf.size for leaf in jax.tree.leaves(parameters)):,}" in out
    assert "digits, 1,437 images of shape (8, 8, 1); batches (128, 8, 8, 1)" in out
    assert not (tmp_path / "run").exists()


def test_dry_run_of_the_papers_model_prepares_nothing(tmp_path, command):
    status, out, _ = command("train", "cifar10", "--dry-run", "--data.data-dir", tmp_path)
    assert status == 0
    assert "parameters: 35,746,307" in out
    assert "batches (128, 32, 32, 3)" in out
    assert list(tmp_path.iterdir()) == []


def test_every_field_is_a_flag_with_help(command):
    status, out, _ = command("train", "--help")
    assert status == 0
    text = re.sub(r"[\s│]+", "", out)

    def fields(values, prefix="--"):
        for name, value in values.items():
            if isinstance(value, dict):
                yield from fields(value, f"{prefix}{name}.")
            else:
                yield prefix + name.replace("_", "-")

    flags = list(fields(dataclasses.asdict(presets()["digits"])))
    assert len(flags) > 35
    assert [flag for flag in flags if flag not in text] == []
    assert "Parameters" not in text


# ---- stopping and going on


STEPS = 300
ARGUMENTS = f"""--model.channels 4 --model.groups 2 --model.multipliers 1 --model.attention-resolutions --train.batch-size 8
                --train.steps {STEPS} --train.warmup-steps 5 --train.sample-every 0 --train.sample-images 2 --train.sample-steps 2
                --train.evaluate-images 0 --train.validate-images 0 --train.log-every 1 --train.checkpoint-every 100""".split()


def start(out, arguments=None):
    command = [sys.executable, str(ROOT / "train.py"), *(arguments or [*ARGUMENTS, "--out", str(out)])]
    return subprocess.Popen(command, env=TWO_DEVICES, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)


def steps_logged(out):
    path = out / "metrics.jsonl"
    return path.read_text().count("\n") if path.exists() else 0


def wait_for_step(process, out, step):
    deadline = time.monotonic() + 120
    while steps_logged(out) < step:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.002)


def final_state(out):
    config, _ = load_run(out)
    params = jax.eval_shape(lambda: build_unet(config.model, 0)[1])
    template = jax.eval_shape(lambda p: initial_state(p, make_optimizer(config.train)), params)
    assert latest_step(out) == STEPS
    return restore_state(out, STEPS, template)


@pytest.mark.slow
def test_ctrl_c_then_sigterm_then_kill_9_and_the_end_is_bit_for_bit_that_of_a_run_never_stopped(tmp_path):
    whole, out = tmp_path / "whole", tmp_path / "run"
    uninterrupted = start(whole)
    assert (uninterrupted.communicate()[1], uninterrupted.returncode) == ("", 0)

    process, stopped = start(out), 0
    for number in (signal.SIGINT, signal.SIGTERM):
        wait_for_step(process, out, stopped + 10)
        process.send_signal(number)
        text, err = process.communicate()
        assert (process.returncode, err) == (0, "")
        stopped = int(re.search(rf"stopped at step (\d+) of {STEPS}; checkpoint saved", text)[1])
        assert latest_step(out) == stopped < STEPS
        arguments = shlex.split(re.search(r"python train.py (.*)", text)[1])  # the command that continues
        process = start(out, arguments)

    # Killed once a checkpoint of this process is whole and a later step was logged: between two checkpoints.
    while (saved := latest_step(out)) == stopped:
        assert process.poll() is None, process.communicate()
        time.sleep(0.002)
    wait_for_step(process, out, saved + 1)
    process.kill()
    process.communicate()
    saved = latest_step(out)
    assert stopped < saved < steps_logged(out) < STEPS
    process = start(out)
    text, err = process.communicate()
    assert (process.returncode, err) == (0, "")
    assert f"goes on from step {saved}" in text

    jax.tree.map(np.testing.assert_array_equal, final_state(out), final_state(whole))
    losses = [[(line["step"], line["loss"]) for line in metrics(directory)] for directory in (out, whole)]
    assert losses[0] == losses[1]
    assert [step for step, _ in losses[0]] == list(range(1, STEPS + 1))


@pytest.mark.slow
def test_a_finished_run_is_not_trained_again_but_may_be_extended(tmp_path, command):
    config = tiny_config(presets()["digits"], tmp_path / "run", decay="constant")
    save_config(config, tmp_path / "config.json")
    assert command("train", tmp_path / "config.json")[0] == 0
    before = (tmp_path / "run" / "metrics.jsonl").read_text()
    status, out, _ = command("train", tmp_path / "config.json")
    assert (status, "trained to step 3" in out) == (0, True)
    assert (tmp_path / "run" / "metrics.jsonl").read_text() == before
    assert command("train", tmp_path / "config.json", "--train.steps", 5, "--train.log-every", 5)[0] == 0
    assert latest_step(tmp_path / "run") == 5
    status, _, err = command("train", tmp_path / "config.json")
    assert (status, "already at step 5; --train.steps is 3" in err) == (1, True)


@pytest.mark.slow
def test_a_second_start_compiles_nothing(tmp_path, command):
    """Every program of a run is in the persistent cache, small ones included."""
    events = []

    def count(event, **_):
        events.append(event)

    jax.monitoring.register_event_listener(count)
    try:
        for name in ("one", "two"):
            jax.clear_caches()
            events.clear()
            save_config(tiny_config(presets()["digits"], tmp_path / name, evaluate_images=16), tmp_path / "config.json")
            assert command("train", tmp_path / "config.json")[0] == 0
    finally:
        jax.monitoring.unregister_event_listener(count)
    asked, found = (events.count(f"/jax/compilation_cache/{what}") for what in ("compile_requests_use_cache", "cache_hits"))
    assert asked == found > 5


# ---- weights in and out


@pytest.mark.slow
def test_a_run_exported_and_imported_draws_the_same_and_trains_on(noisy_run, command, tmp_path):
    folder, run = tmp_path / "folder", tmp_path / "run"
    status, out, err = command("train", "export", noisy_run, folder)
    assert (status, err) == (0, "")
    assert f'UNet2DModel.from_pretrained("{folder}")' in out
    status, out, err = command("train", "import", folder, run)
    assert (status, err) == (0, "")
    assert re.search(r"[\d,]+ parameters for images \(8, 8, 1\), from ", out)
    jax.tree.map(np.testing.assert_array_equal, load_run(run)[1], load_run(noisy_run)[1])
    one, two = (draw(command, directory, tmp_path, "--num-images", 4, "--batch-size", 4)[0] for directory in (noisy_run, run))
    np.testing.assert_array_equal(one, two)

    before = tree(run)
    status, _, err = command("train", "import", folder, run)
    assert (status, "holds a checkpoint already" in err, tree(run) == before) == (1, True, True)
    flags = [
        "--train.steps",
        "1",
        "--train.batch-size",
        "8",
        "--train.sample-images",
        "4",
        "--train.sample-steps",
        "2",
        "--train.validate-images",
        "0",
    ]
    status, _, err = command("train", run / "config.json", "--model.dropout", "0.5", *flags)
    assert (status, "--model.dropout was" in err) == (1, True)
    status, out, err = command("train", run / "config.json", "--data.source", "digits", *flags)
    assert (status, err, "goes on from step 0" in out) == (0, "", True)
    assert latest_step(run) == 1


# ---- sample.py


def draw(command, run, tmp_path, *arguments):
    out = tmp_path / "images.npz"
    status, text, err = command("sample", "generate", run, "--steps", 3, "--out", out, *arguments)
    assert (status, err) == (0, "")
    with np.load(out) as file:
        assert file.files == ["images"]
        return file["images"], text


@pytest.fixture(scope="module")
def noisy_run(tiny_run):
    """The tiny run with weights far from zero, so that its images are no mere noise."""
    from ddim_jax.training.checkpoint import checkpoints, save_checkpoint

    config, params = load_run(tiny_run)

    def fill(leaf):
        return leaf + 0.05 * np.sin(np.arange(leaf.size, dtype=np.float32)).reshape(leaf.shape)

    params = jax.tree.map(fill, params)
    state = initial_state(params, make_optimizer(config.train))
    out = tiny_run.parent / "noisy"
    with checkpoints(out, keep=1) as manager:
        save_checkpoint(manager, state, config)
    return out


@pytest.mark.slow
def test_an_image_does_not_depend_on_what_else_is_drawn(noisy_run, command, tmp_path):
    eleven, _ = draw(command, noisy_run, tmp_path, "--num-images", 11, "--batch-size", 8, "--eta", 1)
    assert (eleven.shape, eleven.dtype) == ((11, 8, 8, 1), np.uint8)
    assert len({image.tobytes() for image in eleven}) == 11
    three, _ = draw(command, noisy_run, tmp_path, "--num-images", 3, "--batch-size", 8, "--eta", 1)
    np.testing.assert_array_equal(three, eleven[:3])  # the same batch size: bit for bit
    for batch_size in (3, 16):  # other batches and, with 8 devices here, 3 and 8 of them
        other, _ = draw(command, noisy_run, tmp_path, "--num-images", 11, "--batch-size", batch_size, "--eta", 1)
        assert np.abs(other.astype(int) - eleven).max() <= 1
    seeded, _ = draw(command, noisy_run, tmp_path, "--num-images", 3, "--batch-size", 8, "--eta", 1, "--seed", 1)
    assert np.abs(seeded.astype(int) - three).max() > 10


@pytest.mark.slow
def test_sigma_and_timesteps_are_what_they_say(noisy_run, command, tmp_path):
    def images(*flags):
        return draw(command, noisy_run, tmp_path, "--num-images", 4, "--batch-size", 4, *flags)[0].astype(int)

    ddim, ddpm = images("--eta", 0), images("--sigma", "ddpm")
    np.testing.assert_array_equal(images("--eta", 1), ddpm)
    others = [
        images("--sigma", "hat"),
        images("--sigma", "hat", "--clip", "none"),
        *(images("--timesteps", kind) for kind in ("quadratic", "trailing", "linspace")),
    ]
    np.testing.assert_array_equal(images("--sigma", "hat", "--clip", "rederive"), others[0])
    for i, one in enumerate([ddim, ddpm, *others]):
        for two in [ddim, ddpm, *others][:i]:
            assert np.abs(one - two).max() > 2


# ---- mistakes: one sentence, the value, the fix, a non-zero exit, and nothing changed on disk


def tree(directory):
    return {str(path): path.read_bytes() if path.is_file() else None for path in sorted(directory.rglob("*"))}


TRAIN = [
    (["--train.steps", "0"], "--train.steps is 0; it must be 1 or more"),
    (["--model.groups", "5"], "--model.channels is 32; it must be a multiple of 2 and of model.groups = 5"),
    (["--data.source", "cat"], "--data.source is cat; it must be digits, emoji"),
    (["--data.source", "emoji"], "emoji has images of shape (32, 32, 3), the model takes (8, 8, 1): use --model.image-size 32"),
    (["--data.source", "folder:{tmp}/broken"], "broken/x.png is not a readable image"),
    (["--data.source", "folder:{tmp}/none"], "none is not a directory"),
    (
        ["nopreset"],
        "nopreset cannot be read (No such file or directory); give a preset (digits, emoji, cifar10) or a config.json",
    ),
    (["--train.sample-steps", "2000"], "--train.sample-steps is 2000"),
    (["--seed", "-3"], "--seed is -3"),
    (["--train.batch-size", "12", "--train.accumulate", "5"], "--train.accumulate is 5; it must be a divisor of"),
    (["--diffusion.zero-terminal-snr"], "--diffusion.prediction is epsilon; it must be v or x0"),
    (
        ["--model.num-classes", "7"],
        "--model.num-classes is 7, and digits has 10 classes; use 10, or 0 for an unconditional model",
    ),
    (["--mesh.fsdp", "16"], "--mesh.fsdp 16 needs more devices than the 8 × cpu"),
    (["import", "{tmp}/broken/x.png", "{tmp}/run"], "x.png is no PyTorch checkpoint of tensors"),
    (["import", "{tmp}/empty", "{tmp}/run"], "config.json cannot be read as JSON"),
    (["export", "{tmp}/empty", "{tmp}/folder"], "holds no checkpoint"),
    (["export", "{run}", "{tmp}/broken/x.png"], "x.png cannot be written (File exists); choose another place"),
    (["--out", "{tmp}/broken/x.png/run"], "x.png/run cannot be written (Not a directory); choose another place"),
]
SAMPLE = [
    (["{run}", "--eta", "-0.5"], "eta is -0.5; it must be ≥ 0"),
    (["{run}", "--eta", "30"], "sigma is"),
    (["{run}", "--steps", "1001"], "S is 1001 reverse steps; choose 1 to T = 1000"),
    (["{run}", "--steps", "0"], "S is 0 reverse steps"),
    (["{run}", "--num-images", "0"], "--num-images is 0; it must be 1 or more"),
    (["{run}", "--batch-size", "-1"], "--batch-size is -1"),
    (["{run}", "--seed", "-1"], "--seed is -1"),
    (["{run}", "--out", "{tmp}/x.jpg"], "x.jpg; its name must end in .png (a grid) or .npz"),
    (["{run}", "--out", "{tmp}/broken/x.png/y.png"], "cannot be made"),
    (["{run}", "--sigma", "ddpm", "--eta", "0.5"], "--eta is 0.5, which --sigma ddpm does not use"),
    (["{run}", "--label", "3"], "--label is 3, but {run} is unconditional; leave --label out"),
    (["{run}", "--guidance", "3"], "--guidance is 3 without --label"),
    (["{run}", "--checkpoint", "2000"], "the checkpoint asked for is 2000; {run} has latest, best and"),
    (["{tmp}/empty"], "the run directory {tmp}/empty holds no checkpoint"),
    (["{tmp}/nowhere"], "the run directory {tmp}/nowhere does not exist"),
]


@pytest.mark.parametrize(
    ("name", "arguments", "sentence"), [("train", *case) for case in TRAIN] + [("sample", *case) for case in SAMPLE]
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
    assert f"{tiny_run} holds checkpoints of another configuration: --train.learning-rate was 0.002 there and is 0.5 now" in err
    status, _, err = command("train", tmp_path / "config.json", "--train.steps", "30")
    assert (status, "--train.steps was 3 there and is 30 now" in err) == (1, True)  # its cosine decay ends at step 3
    assert tree(tiny_run) == before


def test_a_truncated_checkpoint(tiny_run, command, tmp_path):
    import shutil

    run = tmp_path / "run"
    shutil.copytree(tiny_run, run)
    for item in ("ema", "train"):
        files = [path for path in (run / "checkpoints" / "3" / item).rglob("*") if path.is_file()]
        largest = max(files, key=os.path.getsize)
        os.truncate(largest, os.path.getsize(largest) // 2)
    before = tree(run)
    for name, arguments in (
        ("sample", ["generate", run, "--out", tmp_path / "x.png"]),
        ("train", [run / "config.json", "--out", run]),
    ):
        status, _, err = command(name, *arguments)
        assert status == 1
        assert re.search(r"^error: the checkpoint .*/checkpoints/3 is damaged .*; remove it", err)
        assert err.count("\n") == 1
        assert tree(run) == before


@pytest.mark.slow
def test_a_loss_that_is_not_finite_stops_the_run_with_the_last_good_checkpoint(tmp_path, command):
    config = tiny_config(
        presets()["digits"], tmp_path / "run", steps=60, learning_rate=1e38, checkpoint_every=1, decay="constant", warmup_steps=60
    )
    save_config(config, tmp_path / "config.json")
    status, _, err = command("train", tmp_path / "config.json")
    assert status == 1
    match = re.search(
        r"^error: the (loss|grad norm) is (nan|inf) at step (\d+); the checkpoint of step (\d+) is good; lower --train.l", err
    )
    assert match, err
    assert int(match[4]) == int(match[3]) - 1 == latest_step(tmp_path / "run")
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(load_run(tmp_path / "run")[1]))


def test_an_exploded_loss_stops_the_run(tmp_path, command):
    save_config(tiny_config(presets()["digits"], tmp_path / "run", max_loss=1e-3), tmp_path / "config.json")
    status, _, err = command("train", tmp_path / "config.json")
    assert status == 1
    assert re.search(
        r"^error: the loss is [\d.]+ at step 1, above --train.max-loss \(0.001\); no checkpoint was saved before it", err
    )


def test_a_bug_of_ours_keeps_its_traceback(monkeypatch):
    from ddim_jax.cli import run

    with pytest.raises(ValueError, match="invalid literal"):
        run(lambda: int("x"))  # a library's ValueError is no message for a user
    with pytest.raises(ZeroDivisionError):
        run(lambda: 1 / 0)
    with pytest.raises(ValueError, match="nope"):
        run(lambda: jax.random.key(0, impl="nope"))  # nor is one of JAX's
