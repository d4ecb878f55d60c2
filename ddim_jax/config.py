"""The configuration of a run: frozen dataclasses, and the named presets.

Every field is a flag of train.py; the string below a field is its help text. A configuration is saved as JSON beside
every run and can be loaded in place of a preset.
"""

import dataclasses
import json
import math
import os
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from .diffusion.schedules import alpha_bars, cosine_betas, linear_betas, zero_terminal_snr


@dataclass(frozen=True)
class DataConfig:
    """The training images."""

    source: str = "digits"
    """digits | emoji | cifar10 | tfds:NAME (prepared, in data_dir) | folder:PATH (images, resized and centre-cropped)."""
    data_dir: str = ""
    """Where tensorflow-datasets keeps its data; empty: $TFDS_DATA_DIR, or ~/tensorflow_datasets."""
    archive: str = ""
    """cifar-10-binary.tar.gz; empty: the one in data_dir, which is downloaded if it is not there."""
    archive_sha256: str = "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"
    """SHA-256 that the CIFAR-10 archive must have; change it only for an archive that you packed yourself."""
    flip: bool = True
    """Mirror each image with probability ½, where the data set allows it (digits and emoji never: they hold letters)."""

    def directory(self) -> Path:
        """The data_dir in force."""
        return Path(
            self.data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
        ).expanduser()

    def check(self) -> None:
        """Raise ValueError if a field is out of range."""
        _require(self.source in ("digits", "emoji", "cifar10") or self.source.startswith(("tfds:", "folder:")),
                 "data.source", self.source, "digits, emoji, cifar10, tfds:NAME or folder:PATH")  # fmt: skip


@dataclass(frozen=True)
class DiffusionConfig:
    """The noising process."""

    num_steps: int = 1000
    """T, the number of noising steps."""
    schedule: Literal["linear", "cosine"] = "linear"
    """β schedule: linear (DDPM, DDIM) or cosine (Nichol and Dhariwal)."""
    beta_start: float = 1e-4
    """β_1 of the linear schedule."""
    beta_end: float = 0.02
    """β_T of the linear schedule."""
    zero_terminal_snr: bool = False
    """Stretch the schedule so that x_T is pure noise, ᾱ_T = 0 (Lin et al.); the network must predict v or x0."""
    prediction: Literal["epsilon", "x0", "v"] = "epsilon"
    """What the network predicts: epsilon (DDPM, DDIM), x0, or v = √ᾱ ε − √(1−ᾱ) x_0 (Salimans and Ho)."""

    def alpha_bar(self) -> np.ndarray:
        """ᾱ_0 … ᾱ_T, shape (T+1,), float64."""
        cosine = self.schedule == "cosine"
        bars = alpha_bars(
            cosine_betas(self.num_steps)
            if cosine
            else linear_betas(self.num_steps, self.beta_start, self.beta_end)
        )
        return zero_terminal_snr(bars) if self.zero_terminal_snr else bars

    def check(self) -> None:
        """Raise ValueError if a field is out of range."""
        _require(self.num_steps >= 1, "diffusion.num-steps", self.num_steps, "1 or more")
        _require(
            0 < self.beta_start < 1, "diffusion.beta-start", self.beta_start, "between 0 and 1"
        )
        _require(0 < self.beta_end < 1, "diffusion.beta-end", self.beta_end, "between 0 and 1")
        if self.zero_terminal_snr:
            _require(
                self.num_steps >= 2,
                "diffusion.num-steps",
                self.num_steps,
                "2 or more with zero-terminal-snr",
            )
            _require(self.prediction != "epsilon", "diffusion.prediction", self.prediction,
                     "v or x0 with zero-terminal-snr, where x_T is pure noise and ε tells nothing of x_0")  # fmt: skip


@dataclass(frozen=True)
class UNetConfig:
    """The network; the defaults are the paper's for CIFAR-10, with 35,746,307 parameters."""

    image_size: int = 32
    """Height and width of the images, in pixels."""
    image_channels: int = 3
    """1 (grey) or 3 (RGB)."""
    channels: int = 128
    """Channels at the highest resolution."""
    multipliers: tuple[int, ...] = (1, 2, 2, 2)
    """Channels of each resolution level, in units of `channels`; each level after the first halves the image."""
    blocks: int = 2
    """Residual blocks a level on the way down; one more on the way up."""
    attention_resolutions: tuple[int, ...] = (16,)
    """Image sizes at which attention follows each block; the middle always has it."""
    groups: int = 32
    """Groups of GroupNorm. Keep at least 4 channels a group: with 1, the normalisation erases the time embedding."""
    dropout: float = 0.1
    """Probability that training drops an activation inside a residual block."""
    zero_init: bool = True
    """Start the last convolution of each block, the attention output and the output at zero, so each block starts as x."""
    num_classes: int = 0
    """Classes that the network is conditioned on, as many as the data set has; 0: unconditional."""

    def image_shape(self) -> tuple[int, int, int]:
        """(H, W, C)."""
        return (self.image_size, self.image_size, self.image_channels)

    def check(self) -> None:
        """Raise ValueError if the architecture does not fit its image size."""
        _require(
            bool(self.multipliers) and min(self.multipliers) >= 1,
            "model.multipliers",
            self.multipliers,
            "one number ≥ 1 a level",
        )
        levels = len(self.multipliers)
        _require(self.image_size >= 1 and self.image_size % 2 ** (levels - 1) == 0, "model.image-size", self.image_size,
                 f"a multiple of {2 ** (levels - 1)}, since {levels} levels halve it {levels - 1} times")  # fmt: skip
        _require(
            self.image_channels in (1, 3),
            "model.image-channels",
            self.image_channels,
            "1 (grey) or 3 (RGB)",
        )
        _require(self.blocks >= 1, "model.blocks", self.blocks, "1 or more")
        _require(self.groups >= 1, "model.groups", self.groups, "1 or more")
        _require(self.channels >= 4 and self.channels % math.lcm(2, self.groups) == 0, "model.channels", self.channels,
                 f"a multiple of 2 and of model.groups = {self.groups}, at least 4")  # fmt: skip
        sizes = [self.image_size >> level for level in range(levels)]
        for size in self.attention_resolutions:
            _require(
                size in sizes,
                "model.attention-resolutions",
                size,
                f"among the sizes of the levels, {sizes}",
            )
        _require(0 <= self.dropout < 1, "model.dropout", self.dropout, "at least 0 and below 1")
        _require(
            self.num_classes >= 0,
            "model.num-classes",
            self.num_classes,
            "0 (unconditional) or more",
        )


@dataclass(frozen=True)
class TrainConfig:
    """Optimisation, and what is written while it runs."""

    steps: int = 800_000
    """Training steps in all, those before an interruption included."""
    batch_size: int = 128
    """Images a step, over all devices."""
    accumulate: int = 1
    """Parts that a batch is worked through in, one after the other, to save memory; the step stays the same."""
    remat: bool = False
    """Recompute the activations of each block in the backward pass instead of keeping them: less memory, more time."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of activations and products in training; parameters, EMA, normalisation statistics and loss stay float32."""
    learning_rate: float = 2e-4
    """Adam's step size after the warm-up."""
    warmup_steps: int = 5_000
    """Steps over which the learning rate rises linearly from 0."""
    decay: Literal["constant", "cosine"] = "constant"
    """After the warm-up: constant (the paper), or cosine to 0 at the last step."""
    adam_b1: float = 0.9
    """Adam's decay of the mean gradient."""
    adam_b2: float = 0.999
    """Adam's decay of the mean squared gradient."""
    clip_norm: float = 1.0
    """Largest global norm of a gradient; longer ones are scaled down to it."""
    ema_decay: float = 0.9999
    """Decay of the averaged weights that sampling uses; warmed up as min(decay, (1 + step)/(10 + step))."""
    loss_weight: Literal["constant", "min-snr", "gamma"] = "constant"
    """Weight of each time: constant (the paper's γ = 1), min-snr (Hang et al.), or gamma, the exact γ of J_σ with mean 1."""
    min_snr_gamma: float = 5.0
    """Largest signal-to-noise ratio that min-snr counts."""
    gamma_eta: float = 1.0
    """η > 0 of the σ that --train.loss-weight gamma takes its γ from."""
    label_dropout: float = 0.1
    """Probability that training hides the label of an image, so that the network learns without; for classes only."""
    max_loss: float = 100.0
    """A loss above this has exploded and stops the run (a network that predicts 0 has about 1)."""
    matmul_precision: Literal["default", "high", "highest"] = "default"
    """Precision of training's matrix products: default may be TF32 or bfloat16 on accelerators; highest is float32."""
    log_every: int = 100
    """Steps between two lines of metrics.jsonl."""
    sample_every: int = 5_000
    """Steps between two sample grids; 0: none."""
    sample_images: int = 64
    """Images in a sample grid."""
    sample_steps: int = 50
    """Reverse steps S (uniform τ, η = 0) of the samples drawn during training."""
    evaluate_images: int = 0
    """Samples at the end for the Fréchet distance of raw pixels to the train split; 0: none."""
    checkpoint_every: int = 5_000
    """Steps between two checkpoints; the last step has one in any case."""
    keep_checkpoints: int = 3
    """How many of the newest checkpoints stay on disk, besides the one with the lowest validation loss."""
    validate_images: int = 1024
    """Images of the test split whose loss each checkpoint is judged by (folder: train split); 0: none is."""

    def check(self) -> None:
        """Raise ValueError if a field is out of range."""
        for name, least in [("steps", 1), ("batch_size", 1), ("warmup_steps", 0), ("log_every", 1), ("sample_every", 0),
                            ("sample_images", 1), ("sample_steps", 1), ("evaluate_images", 0), ("checkpoint_every", 1),
                            ("keep_checkpoints", 1), ("accumulate", 1), ("validate_images", 0)]:  # fmt: skip
            _require(
                getattr(self, name) >= least,
                f"train.{_flag(name)}",
                getattr(self, name),
                f"{least} or more",
            )
        for name in ("learning_rate", "clip_norm", "min_snr_gamma", "max_loss"):
            _require(
                getattr(self, name) > 0, f"train.{_flag(name)}", getattr(self, name), "above 0"
            )
        for name in ("adam_b1", "adam_b2", "ema_decay", "label_dropout"):
            _require(
                0 <= getattr(self, name) < 1,
                f"train.{_flag(name)}",
                getattr(self, name),
                "at least 0 and below 1",
            )
        _require(
            0 < self.gamma_eta <= 1, "train.gamma-eta", self.gamma_eta, "above 0 and at most 1"
        )
        _require(self.batch_size % self.accumulate == 0, "train.accumulate", self.accumulate,
                 f"a divisor of train.batch-size = {self.batch_size}")  # fmt: skip
        _require(self.decay == "constant" or self.warmup_steps < self.steps, "train.warmup-steps", self.warmup_steps,
                 f"fewer than train.steps = {self.steps} with cosine decay")  # fmt: skip


@dataclass(frozen=True)
class MeshConfig:
    """The devices, of all processes, as a grid data × fsdp."""

    data: int = 0
    """Parts that a batch is split into by this axis; 0: as many as there are devices for and the batch divides into."""
    fsdp: int = 1
    """Parts that parameters, EMA and optimizer state are split into; the batch is split over this axis, too."""

    def check(self) -> None:
        """Raise ValueError if a field is out of range."""
        _require(self.data >= 0, "mesh.data", self.data, "0 (all devices) or more")
        _require(self.fsdp >= 1, "mesh.fsdp", self.fsdp, "1 or more")


@dataclass(frozen=True)
class Config:
    """A run, whole."""

    out: str = "runs/digits"
    """Directory of the run: checkpoints, config.json, metrics.jsonl, samples."""
    seed: int = 0
    """Seed of the initial weights, the order of the data, the noise and the samples; 0 to 2³²−1."""
    data: DataConfig = field(default_factory=DataConfig)
    diffusion: DiffusionConfig = field(default_factory=DiffusionConfig)
    model: UNetConfig = field(default_factory=UNetConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    mesh: MeshConfig = field(default_factory=MeshConfig)

    def check(self) -> None:
        """Raise ValueError if any field is out of range, alone or beside another."""
        _require(bool(self.out), "out", self.out, "a directory")
        _require(0 <= self.seed < 2**32, "seed", self.seed, f"from 0 to {2**32 - 1}")
        for part in (self.data, self.diffusion, self.model, self.train, self.mesh):
            part.check()
        _require(self.train.sample_steps <= self.diffusion.num_steps, "train.sample-steps", self.train.sample_steps,
                 f"at most diffusion.num-steps = {self.diffusion.num_steps}")  # fmt: skip


def presets() -> dict[str, Config]:
    """The named configurations: digits (minutes on a laptop), emoji, and cifar10 as in the paper."""
    digits = Config(
        model=UNetConfig(8, 1, channels=32, multipliers=(1, 2), blocks=1, attention_resolutions=(4,), groups=8, dropout=0.0),
        train=TrainConfig(steps=800, learning_rate=2e-3, warmup_steps=50, decay="cosine", ema_decay=0.999, log_every=20,
                          sample_every=200, evaluate_images=1024, checkpoint_every=200),
    )  # fmt: skip
    emoji = Config(
        out="runs/emoji",
        data=DataConfig(source="emoji"),
        model=UNetConfig(32, 3, channels=64, multipliers=(1, 2, 2), blocks=1, attention_resolutions=(8,), groups=16),
        train=TrainConfig(steps=20_000, batch_size=64, learning_rate=5e-4, warmup_steps=500, decay="cosine", ema_decay=0.999,
                          sample_every=1_000, checkpoint_every=1_000),
    )  # fmt: skip
    return {
        "digits": digits,
        "emoji": emoji,
        "cifar10": Config(out="runs/cifar10", data=DataConfig(source="cifar10")),
    }


def save_config(config: Config, path: Path) -> None:
    """Write a configuration as JSON, whole or not at all."""
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(dataclasses.asdict(config), indent=2, ensure_ascii=False) + "\n")
    partial.replace(path)


def load_config(path: Path) -> Config:
    """Read a configuration that `save_config` wrote.

    Raises:
        ValueError: no such file, no JSON, a name that is no field, or a value of another type; the message names it.
    """
    try:
        values = json.loads(path.read_text())
    except OSError as error:
        raise ValueError(
            f"{path} cannot be read ({error.strerror}); give a preset ({', '.join(presets())}) or a config.json."
        ) from error
    except ValueError as error:
        raise ValueError(f"{path} is no JSON ({error}); give the config.json of a run.") from error
    return config_from_dict(values)


def config_from_dict(values: Any) -> Config:
    """The configuration of a nested dict; fields that are absent take their defaults.

    Raises:
        ValueError: a name that is no field, or a value of another type; the message names it.

    >>> config_from_dict({"train": {"steps": 5}}).train.steps
    5
    """
    return _from_dict(Config, values, "")


def differences(saved: Config, asked: Config) -> dict[str, tuple[Any, Any]]:
    """The fields in which two configurations differ, as {flag: (saved, asked)}."""
    saved_fields, asked_fields = (
        _flatten(dataclasses.asdict(saved)),
        _flatten(dataclasses.asdict(asked)),
    )
    return {
        name: (saved_fields[name], asked_fields[name])
        for name in saved_fields
        if saved_fields[name] != asked_fields[name]
    }


def _flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= (
            _flatten(value, f"{prefix}{name}.")
            if isinstance(value, dict)
            else {_flag(prefix + name): value}
        )
    return flat


def _from_dict(kind: Any, values: Any, prefix: str) -> Any:
    hints = typing.get_type_hints(kind)
    if not isinstance(values, dict):
        raise ValueError(
            f"the configuration's {prefix or 'content'} is {values!r}; it must be an object of names and values."
        )
    for name in values.keys() - hints.keys():
        raise ValueError(
            f"the configuration has a field {prefix}{name}, which this version does not know; remove it."
        )
    return kind(
        **{name: _value(hints[name], value, f"{prefix}{name}") for name, value in values.items()}
    )


def _value(hint: Any, value: Any, name: str) -> Any:
    if dataclasses.is_dataclass(hint):
        return _from_dict(hint, value, f"{name}.")
    origin, options = typing.get_origin(hint), typing.get_args(hint)
    if origin is tuple:
        if isinstance(value, list):
            return tuple(_value(options[0], item, name) for item in value)
    elif origin is Literal:
        if value in options:
            return value
        raise ValueError(
            f"the configuration's {name} is {value!r}; it must be one of {', '.join(map(str, options))}."
        )
    elif type(value) is hint or (hint is float and type(value) is int):
        return hint(value)
    raise ValueError(
        f"the configuration's {name} is {value!r}; it must be of type {getattr(hint, '__name__', hint)}."
    )


def _flag(name: str) -> str:
    return name.replace("_", "-")


def _require(good: bool, name: str, value: Any, allowed: str) -> None:
    if not good:
        raise ValueError(f"--{name} is {value}; it must be {allowed}.")
