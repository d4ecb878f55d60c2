import ast
import inspect
import itertools
import json
from dataclasses import replace

import numpy as np
import pytest

import ddim_jax.config
from ddim_jax.config import (
    Config,
    DiffusionConfig,
    TrainConfig,
    config_from_dict,
    differences,
    load_config,
    presets,
    save_config,
)


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
    assert (model.channels, model.multipliers, model.blocks, model.attention_resolutions) == (
        128,
        (1, 2, 2, 2),
        2,
        (16,),
    )
    assert (model.groups, model.dropout, model.zero_init, model.image_shape()) == (
        32,
        0.1,
        True,
        (32, 32, 3),
    )
    assert (train.steps, train.batch_size, train.learning_rate, train.warmup_steps) == (
        800_000,
        128,
        2e-4,
        5000,
    )
    assert (train.decay, train.clip_norm, train.ema_decay, config.data.flip) == (
        "constant",
        1.0,
        0.9999,
        True,
    )
    np.testing.assert_allclose(config.diffusion.alpha_bar()[1000], 4.0358e-5, rtol=1e-4)


def test_small_presets_keep_four_channels_a_group():
    for config in presets().values():
        assert config.model.channels // config.model.groups >= 4


def test_schedules():
    assert DiffusionConfig(schedule="cosine").alpha_bar()[500] == pytest.approx(0.494, abs=0.01)
    assert DiffusionConfig(num_steps=3, beta_start=0.1, beta_end=0.3).alpha_bar() == pytest.approx(
        [1, 0.9, 0.72, 0.504]
    )


def test_every_field_has_a_help_text():
    classes = [
        node
        for node in ast.parse(inspect.getsource(ddim_jax.config)).body
        if isinstance(node, ast.ClassDef)
    ]
    assert len(classes) == 6
    for node in classes:
        for field, text in itertools.pairwise(node.body):
            if isinstance(field, ast.AnnAssign) and not ast.unparse(field.annotation).endswith(
                "Config"
            ):
                assert isinstance(text, ast.Expr), ast.unparse(field)
                assert text.value.value.endswith("."), ast.unparse(field)


def test_differences_are_named_as_flags():
    other = replace(Config(), seed=4, train=replace(TrainConfig(), learning_rate=0.1))
    assert differences(Config(), other) == {"seed": (0, 4), "train.learning-rate": (2e-4, 0.1)}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"train": {"stepz": 3}}, r"a field train.stepz, which this version does not know"),
        ({"train": {"steps": "three"}}, r"train.steps is 'three'; it must be of type int"),
        ({"train": {"steps": 2.5}}, r"train.steps is 2.5"),
        (
            {"train": {"decay": "sudden"}},
            r"train.decay is 'sudden'; it must be one of constant, cosine",
        ),
        ({"model": {"multipliers": [1, "2"]}}, r"model.multipliers is '2'"),
        ({"model": {"multipliers": 2}}, r"model.multipliers is 2"),
        ({"model": 3}, r"model. is 3; it must be an object"),
        ([1], r"content is \[1\]"),
    ],
)
def test_a_saved_configuration_is_checked_by_name_and_type(values, message):
    with pytest.raises(ValueError, match=message):
        config_from_dict(values)


def test_an_integer_will_do_for_a_real_number():
    assert config_from_dict({"train": {"learning_rate": 1}}).train.learning_rate == 1.0


def test_a_file_that_is_no_configuration(tmp_path):
    with pytest.raises(
        ValueError, match=r"nowhere cannot be read .*; give a preset \(digits, emoji, cifar10\)"
    ):
        load_config(tmp_path / "nowhere")
    (tmp_path / "cut.json").write_text(json.dumps({"seed": 1})[:5])
    with pytest.raises(ValueError, match=r"cut.json is no JSON"):
        load_config(tmp_path / "cut.json")


@pytest.mark.parametrize(
    ("part", "changes", "message"),
    [
        (
            "data",
            {"source": "digit"},
            "--data.source is digit; it must be digits, emoji, cifar10, tfds:NAME or folder:PATH",
        ),
        ("diffusion", {"num_steps": 0}, "--diffusion.num-steps is 0"),
        ("diffusion", {"beta_end": 1.5}, "--diffusion.beta-end is 1.5"),
        ("train", {"batch_size": 0}, "--train.batch-size is 0; it must be 1 or more"),
        ("train", {"learning_rate": 0.0}, "--train.learning-rate is 0.0"),
        ("train", {"learning_rate": float("nan")}, "--train.learning-rate is nan"),
        ("train", {"ema_decay": 1.0}, "--train.ema-decay is 1.0"),
        (
            "train",
            {"decay": "cosine", "steps": 10},
            "--train.warmup-steps is 5000; it must be fewer than train.steps = 10",
        ),
        (
            "train",
            {"sample_steps": 1001},
            "--train.sample-steps is 1001; it must be at most diffusion.num-steps = 1000",
        ),
    ],
)
def test_ranges(part, changes, message):
    config = Config()
    with pytest.raises(ValueError, match=message):
        replace(config, **{part: replace(getattr(config, part), **changes)}).check()
    with pytest.raises(ValueError, match="--seed is -1"):
        replace(config, seed=-1).check()
