"""The Fréchet distance during training: its value, its place, and what a signal does to it."""

import signal
import threading
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
from rich.console import Console

from ddim_jax.config import presets
from ddim_jax.data import load_dataset
from ddim_jax.images import to_unit_range
from ddim_jax.metrics import frechet_distance
from ddim_jax.model.classifier import apply_classifier, initial_classifier
from ddim_jax.training import load_run, loop, train
from ddim_jax.training.checkpoint import load_run_config
from ddim_jax.training.halt import Stopped, awaited, refuse_to_go_on
from ddim_jax.training.preview import make_draw
from ddim_jax.training.quality import Quality, make_quality
from tests.commands import metrics
from tests.conftest import tiny_config

QUIET = Console(quiet=True)
NAME = "frechet_pixels"


def config_of(out, **settings):
    return tiny_config(
        presets()["digits"], out, **{"evaluate_images": 8, "evaluate_every": 2} | settings
    )


def flat(images):
    return to_unit_range(images).reshape(len(images), -1)


@pytest.fixture(scope="module")
def judged_run(tmp_path_factory):
    """A run of five steps, stopped and resumed after two, judged at 2, 4 and its end."""
    config = config_of(
        tmp_path_factory.mktemp("judged") / "run",
        steps=5,
        log_every=3,
        keep_checkpoints=9,
    )
    train(replace(config, train=replace(config.train, steps=2)), QUIET)
    train(config, QUIET)
    return config


def values(out):
    return {line["step"]: line[NAME] for line in metrics(out) if NAME in line}


@pytest.mark.slow
def test_the_value_is_that_of_the_first_images_of_the_seed(judged_run):
    out = Path(judged_run.out)
    assert [line["step"] for line in metrics(out)] == [2, 3, 4, 5]
    found = values(out)
    assert found.keys() == {2, 4, 5}
    digits, draw = load_dataset(judged_run.data, (8, 8, 1)), make_draw(judged_run)
    real = flat(digits.read(np.arange(digits.size)))
    for step in (2, 4, 5):
        fake = flat(draw(load_run(out, step)[1], 8))
        assert found[step] == pytest.approx(frechet_distance(real, fake), rel=1e-6)


def scripted(distances, then=None):
    """A `make_quality` with given distances; `then` is called with the stop event."""

    def measure(_, stop):
        if then:
            then()
        refuse_to_go_on(stop)
        return distances.pop(0)

    return lambda *_: Quality(NAME, "scripted", lambda images: 0.0, measure)


def test_the_best_checkpoint_is_the_best_by_what_was_asked(tmp_path, monkeypatch, counted_steps):
    monkeypatch.setattr(loop, "make_quality", scripted([3.0, 1.0, 2.0, 5.0]))
    losses = iter([4.0, 3.0, 0.5, 2.0])
    monkeypatch.setattr(loop, "make_validation", lambda *_: lambda *_: next(losses))
    config = config_of(
        tmp_path, steps=8, keep_checkpoints=1, keep_best="frechet", validate_images=4
    )
    train(config, QUIET)
    kept = {int(path.name) for path in (tmp_path / "checkpoints").iterdir()}
    assert kept == {4, 8}
    assert load_run_config(tmp_path, "best")[1] == 4


def test_a_signal_ends_the_measuring_and_the_state_is_saved(tmp_path, monkeypatch, counted_steps):
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        made = scripted([], then=lambda: signal.raise_signal(signal.SIGTERM))
        monkeypatch.setattr(loop, "make_quality", made)
        train(config_of(tmp_path, steps=9, checkpoint_every=8, keep_best="frechet"), QUIET)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["2"]
    assert values(tmp_path) == {}
    with pytest.raises(ValueError, match="has a frechet pixels; ask for the latest"):
        load_run_config(tmp_path, "best")


@pytest.mark.slow
def test_nothing_is_waited_for_after_a_signal(judged_run):
    class Never:
        def is_ready(self):
            return False

    stop = threading.Event()
    threading.Timer(0.05, stop.set).start()
    with pytest.raises(Stopped):
        awaited((Never(), Never()), stop)
    assert awaited(5, None) == 5
    draw = make_draw(judged_run)
    images = np.zeros((8, 8, 8, 1), np.uint8)
    with pytest.raises(Stopped):
        draw(load_run(judged_run.out)[1], 8, stop)
    quality = make_quality(judged_run, load_dataset(judged_run.data, (8, 8, 1)), draw)
    assert quality.score(images) > 0
    with pytest.raises(Stopped):
        quality.score(images, stop)


@pytest.mark.slow
def test_features_of_the_runs_classifier(judged_run, tmp_path):
    config = replace(judged_run, out=str(tmp_path))
    config = replace(config, train=replace(config.train, evaluate_features="classifier"))
    digits = load_dataset(config.data, (8, 8, 1))
    with pytest.raises(ValueError, match="classifier` makes it"):
        make_quality(config, digits, make_draw(config))
    params = initial_classifier(jax.random.key(0), 1, 10)
    (tmp_path / "ablations").mkdir()
    np.savez(tmp_path / "ablations" / "classifier.npz", *jax.tree.leaves(params))
    images = digits.read(np.arange(20))[:20]
    quality = make_quality(config, digits, make_draw(config))
    real, fake = (
        apply_classifier(params, to_unit_range(part))[0]
        for part in (digits.read(np.arange(digits.size)), images)
    )
    # The features of the training images are kept in float32.
    assert quality.score(images) == pytest.approx(frechet_distance(real, fake), rel=1e-3)
    assert quality.name == "frechet_classifier"
    assert "classifier, n=8 against 1,437 train images, S=4 quadratic, eta=0" in quality.label
    assert list((tmp_path / "ablations" / "reference").glob("features-*.npy"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"evaluate_images": 0}, "--train.evaluate-images is 0; it must be 2 or more with"),
        ({"keep_best": "frechet", "evaluate_every": 0}, "--train.evaluate-every is 0; it must be"),
        ({"keep_best": "frechet", "evaluate_every": 4}, "a divisor of train.checkpoint-every = 2"),
    ],
)
def test_what_cannot_be_judged_is_refused(tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        train(config_of(tmp_path / "none", **settings), QUIET)
    assert not (tmp_path / "none").exists()


def test_pixels_of_large_images_are_refused_before_training(tmp_path):
    config = config_of(tmp_path)
    digits = load_dataset(config.data, (8, 8, 1))
    large = digits._replace(size=20_000, shape=(128, 128, 3))
    with pytest.raises(ValueError, match=r"takes 19 GB; use --train.evaluate-features inception"):
        make_quality(config, large, make_draw(config))
    few = digits._replace(size=1)
    with pytest.raises(ValueError, match="has 1 images; a Fréchet distance needs 2 or more"):
        make_quality(config, few, make_draw(config))
