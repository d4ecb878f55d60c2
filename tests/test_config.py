import ast
import inspect
import itertools
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import ddim_jax.config
from ddim_jax.config import (
    Config,
    DiffusionConfig,
    TrainConfig,
    config_from_dict,
    load_config,
    presets,
    save_config,
)
from ddim_jax.settings import differences


@pytest.mark.parametrize("name", presets())
def test_presets_are_valid_and_survive_saving(name, tmp_path):
    config = presets()[name]
    config.check()
    save_config(config, tmp_path / "config.json")
    assert load_config(tmp_path / "config.json") == config
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


def test_the_cifar10_preset_is_the_papers():
    config = presets()["cifar10"]
    model, train = config.model, config.train
    assert (model.channels, model.multipliers, model.blocks) == (128, (1, 2, 2, 2), 2)
    assert (model.attention_resolutions, model.groups, model.dropout) == ((16,), 32, 0.1)
    assert (model.zero_init, model.image_shape()) == (True, (32, 32, 3))
    assert (train.steps, train.batch_size, train.learning_rate) == (800_000, 128, 2e-4)
    assert (train.warmup_steps, train.decay, train.clip_norm) == (5000, "constant", 1.0)
    assert (train.ema_decay, config.data.flip) == (0.9999, None)  # known: CIFAR-10 is mirrored
    np.testing.assert_allclose(config.diffusion.alpha_bar()[1000], 4.0358e-5, rtol=1e-4)


def test_small_presets_keep_four_channels_a_group():
    for config in presets().values():
        assert config.model.channels // config.model.groups >= 4


def test_schedules():
    assert DiffusionConfig(schedule="cosine").alpha_bar()[500] == pytest.approx(0.494, abs=0.01)
    linear = DiffusionConfig(num_steps=3, beta_start=0.1, beta_end=0.3)
    assert linear.alpha_bar() == pytest.approx([1, 0.9, 0.72, 0.504])


def test_every_field_has_a_help_text():
    sources = [inspect.getsource(module) for module in (ddim_jax.config, ddim_jax.architecture)]
    nodes = [node for source in sources for node in ast.parse(source).body]
    classes = [node for node in nodes if isinstance(node, ast.ClassDef)]
    assert len(classes) == 11
    for node in classes:
        for field, text in itertools.pairwise(node.body):
            if not isinstance(field, ast.AnnAssign):
                continue
            if not ast.unparse(field.annotation).endswith(("Config", "Variants")):
                assert isinstance(text, ast.Expr), ast.unparse(field)
                assert text.value.value.endswith("."), ast.unparse(field)


def test_differences_are_named_as_flags():
    other = replace(Config(), seed=4, train=replace(TrainConfig(), learning_rate=0.1))
    assert differences(Config(), other) == {"seed": (0, 4), "train.learning-rate": (2e-4, 0.1)}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"train": {"stepz": 3}}, "a field train.stepz, which this version does not know"),
        ({"train": {"steps": "three"}}, "train.steps is 'three'; it must be of type int"),
        ({"train": {"steps": 2.5}}, "train.steps is 2.5"),
        (
            {"train": {"decay": "sudden"}},
            "train.decay is 'sudden'; it must be one of constant, cos",
        ),
        ({"model": {"multipliers": [1, "2"]}}, "model.multipliers is '2'"),
        ({"model": {"multipliers": 2}}, "model.multipliers is 2"),
        ({"model": 3}, "model. is 3; it must be an object"),
        ([1], r"content is \[1\]"),
    ],
)
def test_a_saved_configuration_is_checked_by_name_and_type(values, message):
    with pytest.raises(ValueError, match=message):
        config_from_dict(values)


def test_an_integer_will_do_for_a_real_number():
    assert config_from_dict({"train": {"learning_rate": 1}}).train.learning_rate == 1.0


def test_a_file_that_is_no_configuration(tmp_path):
    message = r"nowhere cannot be read .*; give a preset \(digits, emoji, cifar10\)"
    with pytest.raises(ValueError, match=message):
        load_config(tmp_path / "nowhere")
    (tmp_path / "cut.json").write_text(json.dumps({"seed": 1})[:5])
    with pytest.raises(ValueError, match=r"cut.json is not JSON"):
        load_config(tmp_path / "cut.json")


@pytest.mark.parametrize(
    ("part", "changes", "message"),
    [
        (
            "data",
            {"source": "digit"},
            "is digit; it must be digits, emoji, cifar10, tfds:NAME or f",
        ),
        ("diffusion", {"num_steps": 0}, "--diffusion.num-steps is 0"),
        ("diffusion", {"beta_end": 1.5}, "--diffusion.beta-end is 1.5"),
        (
            "diffusion",
            {"num_steps": 10**12},
            "it must be 1 or more, up to 1,000,000",
        ),
        (
            "train",
            {"batch_size": 10**9},
            "--train.batch-size is 1000000000; it must",
        ),
        ("train", {"steps": 2**31}, "it must be 1 or more, up to 2,147,483,647"),  # of int32
        ("model", {"channels": 10**9}, "--model.channels is 1000000000"),
        ("model", {"image_size": 4098}, "--model.image-size is 4098; it must be at most 4096"),
        ("model", {"num_classes": 10**6 + 1}, "--model.num-classes is 1000001; it must be 0 to 1"),
        ("train", {"batch_size": 0}, "--train.batch-size is 0; it must be 1 or more"),
        ("train", {"learning_rate": 0.0}, "--train.learning-rate is 0.0"),
        ("train", {"learning_rate": float("nan")}, "--train.learning-rate is nan"),
        ("train", {"ema_decay": 1.0}, "--train.ema-decay is 1.0"),
        ("train", {"sample_steps": 1001}, "is 1001; it must be at most diffusion.num-steps = 1000"),
    ],
)
def test_ranges(part, changes, message):
    config = Config()
    with pytest.raises(ValueError, match=message):
        replace(config, **{part: replace(getattr(config, part), **changes)}).check()


def test_the_seed_is_a_number_of_32_bits():
    replace(Config(), seed=2**32 - 1).check()
    for seed in (-1, 2**32):
        with pytest.raises(ValueError, match=f"--seed is {seed}"):
            replace(Config(), seed=seed).check()


def test_the_configuration_of_a_run_that_was_moved_continues_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = replace(Config(), out="old")
    for directory in ("old", "new", "elsewhere"):
        save_config(config, tmp_path / directory / "config.json")
    for directory in ("old", "new"):
        (tmp_path / directory / "checkpoints").mkdir()
    assert load_config(Path("old/config.json")) == config
    assert load_config(Path("new/config.json")) == replace(config, out="new")
    absolute = tmp_path / "new" / "config.json"
    assert load_config(absolute).out == str(tmp_path / "new")
    assert load_config(Path("elsewhere/config.json")) == config  # not a run
    monkeypatch.chdir(tmp_path / "new")
    assert load_config(Path("config.json")).out == "."
