"""Images from a run directory, into a PNG or an npz; and what every command that draws from a run shares."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
import tyro
from jax.sharding import Mesh
from rich.console import Console
from rich.progress import track

from ..config import Config
from ..devices import batch_sharding, describe, full_batch, make_mesh, replicated
from ..diffusion.prediction import Denoiser, clip_x0, denoiser
from ..diffusion.reverse import StepTable, step_table
from ..diffusion.sigmas import SigmaSchedule, ddpm, eta, sigma_hat
from ..generation import generate, make_sampler
from ..images import save_grid, to_uint8
from ..model import unet_apply
from ..training import load_run
from ..training.checkpoint import load_run_config
from .grid import SEQUENCES, Kind


class LoadedRun(NamedTuple):
    """A run's averaged (EMA) weights on the devices, and how many images they work on together."""

    config: Config
    step: int
    params: Any
    apply: Callable[..., Any]
    alpha_bar: np.ndarray
    mesh: Mesh
    batch_size: int

    def denoiser(self, params: Any) -> Denoiser:
        """The Denoiser of the network without a label, for the body of a jitted function."""
        return denoiser(self.apply, params, self.alpha_bar, self.config.diffusion.prediction)

    def jit(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The jitted function(params, batch, *rest), the batch split over the devices; each process gives and gets all of it."""
        split, whole = batch_sharding(self.mesh), replicated(self.mesh)

        def run(params, batch, *rest):
            return function(params, jax.lax.with_sharding_constraint(batch, split), *rest)

        return jax.jit(run, in_shardings=whole, out_shardings=whole)

    def in_batches(
        self, call: Callable[[np.ndarray], Any], count: int, console: Console, doing: str
    ) -> Any:
        """call(indices) for the indices 0 … count−1, a batch at a time, the last one filled up; results as one, in NumPy."""
        parts = []
        for first in track(
            range(0, count, self.batch_size),
            doing,
            console=console,
            transient=True,
            disable=not console.is_terminal,
        ):
            # Full float32: accelerators would multiply in TF32 or bfloat16.
            with jax.default_matmul_precision("highest"):
                found = call(np.arange(first, first + self.batch_size) % count)
            parts.append(
                jax.tree.map(lambda leaf, left=count - first: np.asarray(leaf)[:left], found)
            )
        return jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)


@dataclass(frozen=True)
class RunFlags:
    """What every command that draws from a run asks for."""

    run: tyro.conf.Positional[Path]
    """The run directory, as train.py leaves it."""
    timesteps: Kind = "uniform"
    """Which S times are visited: uniform from t = 1, trailing up to T, linspace both, or quadratic, denser near the data."""
    checkpoint: str = "latest"
    """latest, best (the lowest validation loss of those kept), or a step number."""
    seed: int = 0
    """Seed of the noise, 0 to 2³²−1. Image i has its own noise, whatever else is drawn."""
    batch_size: int = 64
    """Images a batch; the last batch is filled up."""

    def check(self, **least: int) -> None:
        """Raise ValueError if a field is out of range; `least` has the lowest value of some."""
        for name, lowest in {**least, "batch_size": 1}.items():
            if getattr(self, name) < lowest:
                flag = name.replace("_", "-")
                raise ValueError(f"--{flag} is {getattr(self, name)}; it must be {lowest} or more.")
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"--seed is {self.seed}; it must be from 0 to {2**32 - 1}.")

    def load(self, batch_size: int) -> LoadedRun:
        """The weights on as many devices as that many images divide into.

        Raises:
            ValueError: a run without a readable checkpoint.
        """
        _, step = load_run_config(self.run, self.checkpoint)
        config, params = load_run(self.run, step)
        size = full_batch(batch_size)
        mesh = make_mesh(size)
        params = jax.device_put(jax.tree.map(np.asarray, params), replicated(mesh))
        return LoadedRun(
            config, step, params, unet_apply(config.model), config.diffusion.alpha_bar(), mesh, size
        )

    def steps_of(
        self, alpha_bar: np.ndarray, steps: int, schedule: SigmaSchedule | None = None
    ) -> StepTable:
        """S steps with a σ schedule, η = 0 unless given."""
        return step_table(
            alpha_bar, SEQUENCES[self.timesteps](len(alpha_bar) - 1, steps), schedule or eta(0.0)
        )


@dataclass(frozen=True)
class SamplingFlags(RunFlags):
    """The reverse process: how many steps, which σ, and what is clipped."""

    steps: int = 50
    """S, the number of reverse steps."""
    sigma: Literal["eta", "ddpm", "hat"] = "eta"
    """σ schedule: eta, ddpm (η = 1), or hat (DDPM's larger σ̂ as the noise, the mean of η = 1)."""
    eta: float = 0.0
    """η of --sigma eta: 0 is DDIM, 1 is DDPM."""
    clip: Literal["official", "none", "x0", "rederive"] = "official"
    """Clip x̂_0 to [−1, 1]: none, x0 (ε̂ stays), rederive (ε̂ follows), or official: rederive for hat, none for the others."""

    def check(self, **least: int) -> None:
        """Raise ValueError if a field is out of range, alone or beside another."""
        super().check(**least)
        if self.sigma != "eta" and self.eta:
            raise ValueError(
                f"--eta is {self.eta:g}, which --sigma {self.sigma} does not use; leave one of the two out."
            )

    def table(self, alpha_bar: np.ndarray) -> StepTable:
        """The steps that the flags describe."""
        return self.steps_of(
            alpha_bar,
            self.steps,
            {"eta": eta(self.eta), "ddpm": ddpm(), "hat": sigma_hat()}[self.sigma],
        )

    def wrap(self, denoise: Denoiser) -> Denoiser:
        """The Denoiser with the clipping that the flags describe."""
        clip = {"hat": "rederive"}.get(self.sigma, "none") if self.clip == "official" else self.clip
        return denoise if clip == "none" else clip_x0(denoise, rederive_epsilon=clip == "rederive")

    def describe(self) -> str:
        """The steps and their σ, for a person."""
        sigma = f"eta={self.eta:g}" if self.sigma == "eta" else f"sigma={self.sigma}"
        return f"S={self.steps} {self.timesteps}, {sigma}, seed={self.seed}"


@dataclass(frozen=True)
class GenerateConfig(SamplingFlags):
    """Draw images from the averaged (EMA) weights of a run's newest checkpoint."""

    out: Path = Path("samples.png")
    """FILE.png: a grid. FILE.npz: uint8 (N, H, W, C) under the key `images`."""
    num_images: int = 64
    """N: the images 0 … N−1 of the seed."""
    label: tuple[int, ...] = ()
    """Classes of a class-conditional model, 0 to num-classes − 1: image i has the (i modulo their number)-th; empty: no label."""
    guidance: float = 1.0
    """Scale of classifier-free guidance towards the labels: 1 is none, more exaggerates them, at two network calls a step."""
    batch_size: int = 64
    """Images a batch. The last batch is filled up, so fewer images than this take as long as this many."""

    def check(self, **least: int) -> None:
        """Raise ValueError if a field is out of range, alone or beside another."""
        super().check(num_images=1, **least)
        if self.out.suffix not in (".png", ".npz"):
            raise ValueError(
                f"--out is {self.out}; its name must end in .png (a grid) or .npz (uint8 arrays)."
            )
        if self.guidance != 1 and not self.label:
            raise ValueError(
                f"--guidance is {self.guidance:g} without --label; give the classes to guide to."
            )


def make_directory(directory: Path, flag: Path) -> None:
    """Make a directory for what --out names.

    Raises:
        ValueError: it cannot be made.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(
            f"--out is {flag} and {error.filename} cannot be made ({error.strerror}); choose another place."
        ) from error


def generate_images(config: GenerateConfig, console: Console) -> None:
    """Draw images and write them to `config.out`.

    Args:
        config: what to draw.
        console: where progress goes.

    Raises:
        ValueError: a flag out of range, a run without a readable checkpoint, a file that cannot be written.
    """
    config.check()
    make_directory(config.out.parent, config.out)
    run = config.load(config.batch_size)
    model = run.config.model
    _check_labels(config, model.num_classes)
    table = config.table(run.alpha_bar)
    kind, guide = run.config.diffusion.prediction, config.guidance != 1
    sampler = make_sampler(
        run.apply, run.alpha_bar, model.image_shape(), run.mesh, config.wrap, kind=kind, guide=guide
    )
    parts = generate(
        sampler,
        run.params,
        table,
        seed=config.seed,
        count=config.num_images,
        batch_size=run.batch_size,
        labels=config.label,
        guidance=config.guidance,
    )
    quiet = not console.is_terminal
    batches = -(-config.num_images // run.batch_size)
    images = np.concatenate(
        [
            to_uint8(part)
            for part in track(
                parts, "sampling", batches, console=console, transient=True, disable=quiet
            )
        ]
    )
    if jax.process_index():  # each process has all the images; the first writes them
        return
    if config.out.suffix == ".npz":
        np.savez_compressed(config.out, images=images)
    else:
        save_grid(images, config.out)
    labels = (
        f", labels {' '.join(map(str, config.label))}, guidance {config.guidance:g}"
        if config.label
        else ""
    )
    console.print(
        f"{config.out}: {len(images):,} images {images.shape[1:]}, {config.describe()}{labels}, "
        f"on {run.mesh.size} of {describe()}"
    )


def _check_labels(config: GenerateConfig, num_classes: int) -> None:
    if config.label and not num_classes:
        raise ValueError(
            f"--label is {config.label[0]}, but {config.run} is unconditional; leave --label out."
        )
    for label in config.label:
        if not 0 <= label < num_classes:
            raise ValueError(
                f"--label is {label}; {config.run} has the classes 0 to {num_classes - 1}."
            )
