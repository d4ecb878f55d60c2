"""The configuration of a run: frozen dataclasses, and the named presets.

Every field is a flag of train.py: the string below it is its help text, and its type carries its
range. A configuration is saved as JSON in every run directory, and can be used as a preset.
"""

import dataclasses
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np

from .architecture import UNetConfig
from .diffusion.schedules import BETAS, alpha_bars, zero_terminal_snr
from .files import check_path, read_json, to_json, write
from .settings import (
    ABOVE_0,
    BETWEEN_0_AND_1,
    FRACTION,
    MANY,
    SEED,
    Free,
    Range,
    at_least,
    check_ranges,
    flag,
    from_dict,
    require,
)

_SOURCE = Range(lambda value: value in ("digits", "emoji", "cifar10") or (
                value.startswith(("tfds:", "folder:")) and value[-1] != ":" and "\0" not in value),
                "digits, emoji, cifar10, tfds:NAME or folder:PATH")  # fmt: skip


@dataclass(frozen=True)
class Place(Free):
    """Where a run is stored."""

    out: str = "runs/digits"
    """Run directory: checkpoints, config.json, metrics.jsonl, samples."""


@dataclass(frozen=True)
class DataSource:
    """The source of the training images."""

    source: Annotated[str, _SOURCE] = "digits"
    """digits | emoji | cifar10 | tfds:NAME (prepared in data_dir) | folder:PATH (of images)."""


@dataclass(frozen=True)
class DataFiles(Free):
    """Where the data are stored."""

    data_dir: str = ""
    """Where tensorflow-datasets keeps its data; empty: $TFDS_DATA_DIR or ~/tensorflow_datasets."""
    archive: str = ""
    """cifar-10-binary.tar.gz; empty: the one in data_dir, downloaded if it is not there."""
    archive_sha256: str = "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"
    """Required SHA-256 of the archive; change it only for an archive that you built yourself."""

    def directory(self) -> Path:
        """The data directory in use."""
        default = os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
        return Path(self.data_dir or default).expanduser()


@dataclass(frozen=True)
class DataConfig(DataFiles, DataSource):
    """The training images."""

    flip: bool | None = None
    """Mirror images with probability ½; None: CIFAR-10 only. Never digits and emoji (letters)."""


@dataclass(frozen=True)
class DiffusionConfig:
    """The noising process."""

    num_steps: Annotated[int, at_least(1, MANY)] = 1000
    """T, the number of noising steps."""
    schedule: Literal[*BETAS] = "linear"  # type: ignore[valid-type]
    """β schedule: linear (DDPM, DDIM), cosine (Nichol and Dhariwal), or another of DDPM's code."""
    beta_start: Annotated[float, BETWEEN_0_AND_1] = 1e-4
    """β_1 of the linear, quadratic and sigmoid schedules."""
    beta_end: Annotated[float, BETWEEN_0_AND_1] = 0.02
    """β_T of the linear, quadratic and sigmoid schedules, and every β of the constant one."""
    zero_terminal_snr: bool = False
    """Rescale the schedule to ᾱ_T = 0, pure noise (Lin et al.); the network predicts v or x0."""
    prediction: Literal["epsilon", "x0", "v"] = "epsilon"
    """What the network predicts: epsilon (DDPM, DDIM), x0, or v = √ᾱ ε − √(1−ᾱ) x_0."""

    def alpha_bar(self) -> np.ndarray:
        """ᾱ_0 … ᾱ_T, shape (T+1,), float64."""
        bars = alpha_bars(BETAS[self.schedule](self.num_steps, self.beta_start, self.beta_end))
        return zero_terminal_snr(bars) if self.zero_terminal_snr else bars

    def check(self) -> None:
        """Raise a ValueError if a field is out of range, or does not fit another field."""
        check_ranges(self, "diffusion.")
        require(self.num_steps >= 1 + self.zero_terminal_snr, "diffusion.num-steps",
                self.num_steps, "2 or more with zero-terminal-snr")  # fmt: skip
        if self.alpha_bar()[-1] == 0:
            require(self.prediction != "epsilon", "diffusion.prediction", self.prediction,
                    "v or x0 where ᾱ_T = 0 (zero-terminal-snr, jsd): x_T is noise")  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Conduct(Free):
    """How a run is logged, validated and saved."""

    remat: bool = False
    """Recompute each block's activations in the backward pass: less memory, more time."""
    max_loss: Annotated[float, ABOVE_0] = 100.0
    """Stop the run if the loss exceeds this (a network that predicts 0 has a loss of about 1)."""
    log_every: Annotated[int, at_least(1)] = 100
    """Steps between lines of metrics.jsonl."""
    tracker: Literal["none", "tensorboard", "wandb"] = "none"
    """Also send numbers and samples to TensorBoard (RUN/tensorboard) or Weights & Biases."""
    sample_every: Annotated[int, at_least(0)] = 5_000
    """Steps between sample grids, besides the one at the end; 0: none at all."""
    sample_images: Annotated[int, at_least(1, MANY)] = 64
    """Images in a sample grid."""
    sample_steps: Annotated[int, at_least(1)] = 50
    """Reverse steps S (quadratic τ, η = 0) of the samples drawn during training."""
    evaluate_images: Annotated[int, at_least(0, MANY)] = 0
    """Samples for a Fréchet distance to the training images, at the end; 0: none."""
    evaluate_every: Annotated[int, at_least(0)] = 0
    """Steps between such Fréchet distances, in metrics.jsonl; 0: only at the end."""
    evaluate_features: Literal["pixels", "classifier", "inception"] = "pixels"
    """What the Fréchet distance compares; classifier: the one of `sample.py classifier RUN`."""
    evaluate_family: Literal["tf1", "pytorch-fid"] = "tf1"
    """Inception's resize and scaling, as --family of `sample.py evaluate`."""
    evaluate_inception: str = ""
    """Inception's weights, as --inception of `sample.py evaluate`; empty: the default."""
    evaluate_inception_sha256: str = ""
    """SHA-256 of --train.evaluate-inception, if it is not the published file's."""
    checkpoint_every: Annotated[int, at_least(1)] = 5_000
    """Steps between checkpoints; the last step is always saved."""
    keep_checkpoints: Annotated[int, at_least(1)] = 3
    """How many of the newest checkpoints to keep, besides the best one."""
    keep_best: Literal["validation-loss", "frechet"] = "validation-loss"
    """The best checkpoint has the lowest of these; frechet needs --train.evaluate-every."""
    validate_images: Annotated[int, at_least(0)] = 1024
    """Images of the test split (without one: train) for the validation loss; 0: no such loss."""

    def frechet_name(self) -> str:
        """What the Fréchet distance is called in metrics.jsonl and checkpoints."""
        return f"frechet_{self.evaluate_features}"

    def best_by(self) -> str:
        """The name of the value whose lowest makes a checkpoint the best."""
        return self.frechet_name() if self.keep_best == "frechet" else "validation_loss"


@dataclass(frozen=True)
class TrainConfig(Conduct):
    """Optimisation, and what a run writes."""

    steps: Annotated[int, at_least(1)] = 800_000
    """Total number of training steps, including those before an interruption."""
    batch_size: Annotated[int, at_least(1, MANY)] = 128
    """Images per step, over all devices."""
    accumulate: Annotated[int, at_least(1, MANY)] = 1
    """Process a batch in this many parts and average the gradients: less memory, same step."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of activations and matrix products; weights, EMA, statistics and loss stay float32."""
    learning_rate: Annotated[float, ABOVE_0] = 2e-4
    """Adam's step size after the warm-up."""
    warmup_steps: Annotated[int, at_least(0)] = 5_000
    """Steps over which the learning rate rises linearly; with cosine at most half of all steps."""
    decay: Literal["constant", "cosine"] = "constant"
    """After the warm-up: constant (the paper), or cosine to 0 at the last step."""
    adam_b1: Annotated[float, FRACTION] = 0.9
    """Adam's decay rate for the mean gradient."""
    adam_b2: Annotated[float, FRACTION] = 0.999
    """Adam's decay rate for the mean squared gradient."""
    clip_norm: Annotated[float, ABOVE_0] = 1.0
    """Largest global gradient norm; larger gradients are scaled down to it."""
    ema_decay: Annotated[float, FRACTION] = 0.9999
    """Decay of the averaged (EMA) weights, warmed up as min(decay, (1 + step)/(10 + step))."""
    loss_weight: Literal["constant", "min-snr", "gamma"] = "constant"
    """Loss weight per time: constant (the paper's γ = 1), min-snr (Hang et al.), gamma (J_σ)."""
    min_snr_gamma: Annotated[float, ABOVE_0] = 5.0
    """The value at which min-snr clips the signal-to-noise ratio."""
    gamma_eta: Annotated[float, Range(lambda v: 0 < v <= 1, "above 0 and at most 1")] = 1.0
    """η of the σ in J_σ, for --train.loss-weight gamma."""
    label_dropout: Annotated[float, FRACTION] = 0.1
    """Probability of hiding a label in training, so that the network also learns without labels."""
    matmul_precision: Literal["default", "high", "highest"] = "default"
    """Matrix product precision in training; default may mean TF32 or bfloat16 on accelerators."""

    def check(self) -> None:
        """Raise a ValueError if a field is out of range, or does not fit another field."""
        check_ranges(self, "train.")
        require(self.batch_size % self.accumulate == 0, "train.accumulate", self.accumulate,
                f"a divisor of train.batch-size = {self.batch_size}")  # fmt: skip
        require(not self.evaluate_every or self.evaluate_images >= 2, "train.evaluate-images",
                self.evaluate_images, "2 or more with train.evaluate-every")  # fmt: skip
        require(self.keep_best != "frechet" or (self.evaluate_every > 0 and
                self.checkpoint_every % self.evaluate_every == 0), "train.evaluate-every",
                self.evaluate_every, "a divisor of train.checkpoint-every = "
                f"{self.checkpoint_every} with train.keep-best frechet")  # fmt: skip


@dataclass(frozen=True)
class MeshConfig(Free):
    """The devices of all processes, as a grid data × fsdp."""

    data: Annotated[int, at_least(0)] = 0
    """Number of parts of a batch on this axis; 0: as many as devices and batch size allow."""
    fsdp: Annotated[int, at_least(1)] = 1
    """Number of parts of weights, EMA and optimizer state; also splits the batch."""


@dataclass(frozen=True)
class Config(Place):
    """The configuration of a run."""

    seed: Annotated[int, SEED] = 0
    """Seed of initial weights, data order, noise and samples; 0 to 2³²−1."""
    data: DataConfig = field(default_factory=DataConfig)
    diffusion: DiffusionConfig = field(default_factory=DiffusionConfig)
    model: UNetConfig = field(default_factory=UNetConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    mesh: MeshConfig = field(default_factory=MeshConfig)

    def check(self) -> None:
        """Raise a ValueError if a field is out of range, or does not fit another field."""
        require(bool(self.out), "out", repr(self.out), "a directory")
        check_path(self.out, "--out")
        check_ranges(self)
        for name in ("source", "data_dir", "archive"):
            check_path(getattr(self.data, name), f"--data.{flag(name)}")
        for part in (self.diffusion, self.model, self.train):
            part.check()
        require(self.model.variants.null_class or self.train.label_dropout == 0,
                "train.label-dropout", self.train.label_dropout,
                "0 without model.variants.null-class: each image needs its label")  # fmt: skip
        require(self.train.sample_steps <= self.diffusion.num_steps, "train.sample-steps",
                self.train.sample_steps,
                f"at most diffusion.num-steps = {self.diffusion.num_steps}")  # fmt: skip


def presets() -> dict[str, Config]:
    """Named configurations: digits (minutes on a laptop), emoji, and cifar10 as in the paper."""
    digits = Config(
        model=UNetConfig(8, 1, channels=32, multipliers=(1, 2), blocks=1,
                         attention_resolutions=(4,), groups=8, dropout=0.0),
        train=TrainConfig(steps=800, learning_rate=2e-3, warmup_steps=50, decay="cosine",
                          ema_decay=0.999, log_every=20, sample_every=200, evaluate_images=1024,
                          checkpoint_every=200),
    )  # fmt: skip
    emoji = Config(
        out="runs/emoji", data=DataConfig(source="emoji"),
        model=UNetConfig(32, 3, channels=64, multipliers=(1, 2, 2), blocks=1,
                         attention_resolutions=(8,), groups=16),
        train=TrainConfig(steps=20_000, batch_size=64, learning_rate=5e-4, warmup_steps=500,
                          decay="cosine", ema_decay=0.999, sample_every=1_000,
                          checkpoint_every=1_000),
    )  # fmt: skip
    cifar10 = Config(out="runs/cifar10", data=DataConfig(source="cifar10"))
    return {"digits": digits, "emoji": emoji, "cifar10": cifar10}


def save_config(config: Config, path: Path) -> None:
    """Write a configuration as JSON."""
    write(path, to_json(dataclasses.asdict(config), indent=2) + "\n")


def load_config(path: Path) -> Config:
    """Read a configuration that `save_config` wrote; a problem with it raises a ValueError.

    That of a run continues the directory that it is in, which may have been moved or copied.
    """
    config = config_from_dict(
        read_json(path, f"a preset ({', '.join(presets())}) or a config.json")
    )
    run = path.parent
    moved = (run / "checkpoints").is_dir() and run.resolve() != Path(config.out).resolve()
    return dataclasses.replace(config, out=str(run)) if moved else config


def config_from_dict(values: Any) -> Config:
    """The configuration of a nested dict; fields that are absent take their defaults.

    >>> config_from_dict({"train": {"steps": 5}}).train.steps
    5
    """
    return from_dict(Config, values)
