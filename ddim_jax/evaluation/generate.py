"""Images from a run directory, into a PNG or an npz."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import jax
import numpy as np
import tyro
from rich.console import Console
from rich.progress import track

from ..devices import describe, full_batch, make_mesh, replicated
from ..diffusion.prediction import Denoiser, clip_x0
from ..diffusion.reverse import StepTable, step_table
from ..diffusion.sigmas import ddpm, eta, sigma_hat
from ..diffusion.timesteps import linspace_timesteps, quadratic_timesteps, trailing_timesteps, uniform_timesteps
from ..generation import generate, make_sampler
from ..images import save_grid, to_uint8
from ..model import unet_apply
from ..training import load_run


@dataclass(frozen=True)
class GenerateConfig:
    """Draw images from the averaged (EMA) weights of a run's newest checkpoint."""

    run: tyro.conf.Positional[Path]
    """The run directory, as train.py leaves it."""
    out: Path = Path("samples.png")
    """FILE.png: a grid. FILE.npz: uint8 (N, H, W, C) under the key `images`."""
    num_images: int = 64
    """N: the images 0 … N−1 of the seed."""
    steps: int = 50
    """S, the number of reverse steps."""
    timesteps: Literal["uniform", "quadratic", "trailing", "linspace"] = "uniform"
    """Which S times are visited: uniform from t = 1, trailing up to T, linspace both, or quadratic, denser near the data."""
    sigma: Literal["eta", "ddpm", "hat"] = "eta"
    """σ schedule: eta, ddpm (η = 1), or hat (DDPM's larger σ̂ as the noise, the mean of η = 1)."""
    eta: float = 0.0
    """η of --sigma eta: 0 is DDIM, 1 is DDPM."""
    clip: Literal["official", "none", "x0", "rederive"] = "official"
    """Clip x̂_0 to [−1, 1]: none, x0 (ε̂ stays), rederive (ε̂ follows), or official: rederive for hat, none for the others."""
    label: tuple[int, ...] = ()
    """Classes of a class-conditional model, 0 to num-classes − 1: image i has the (i modulo their number)-th; empty: no label."""
    guidance: float = 1.0
    """Scale of classifier-free guidance towards the labels: 1 is none, more exaggerates them, at two network calls a step."""
    checkpoint: str = "latest"
    """latest, best (the lowest validation loss of those kept), or a step number."""
    seed: int = 0
    """Seed of the noise, 0 to 2³²−1. Image i has its own noise, whatever else is drawn."""
    batch_size: int = 64
    """Images a batch. The last batch is filled up, so fewer images than this take as long as this many."""

    def check(self) -> None:
        """Raise ValueError if a field is out of range, alone or beside another."""
        for name, value in (("num-images", self.num_images), ("batch-size", self.batch_size)):
            if value < 1:
                raise ValueError(f"--{name} is {value}; it must be 1 or more.")
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"--seed is {self.seed}; it must be from 0 to {2**32 - 1}.")
        if self.out.suffix not in (".png", ".npz"):
            raise ValueError(f"--out is {self.out}; its name must end in .png (a grid) or .npz (uint8 arrays).")
        if self.guidance != 1 and not self.label:
            raise ValueError(f"--guidance is {self.guidance:g} without --label; give the classes to guide to.")
        if self.sigma != "eta" and self.eta:
            raise ValueError(f"--eta is {self.eta:g}, which --sigma {self.sigma} does not use; leave one of the two out.")

    def table(self, alpha_bar: np.ndarray) -> StepTable:
        """The steps that the flags describe."""
        sequences = {"uniform": uniform_timesteps, "quadratic": quadratic_timesteps, "trailing": trailing_timesteps,
                     "linspace": linspace_timesteps}  # fmt: skip
        tau = sequences[self.timesteps](len(alpha_bar) - 1, self.steps)
        return step_table(alpha_bar, tau, {"eta": eta(self.eta), "ddpm": ddpm(), "hat": sigma_hat()}[self.sigma])

    def wrap(self, denoise: Denoiser) -> Denoiser:
        """The Denoiser with the clipping that the flags describe."""
        clip = {"hat": "rederive"}.get(self.sigma, "none") if self.clip == "official" else self.clip
        return denoise if clip == "none" else clip_x0(denoise, rederive_epsilon=clip == "rederive")


def generate_images(config: GenerateConfig, console: Console) -> None:
    """Draw images and write them to `config.out`.

    Args:
        config: what to draw.
        console: where progress goes.

    Raises:
        ValueError: a flag out of range, a run without a readable checkpoint, a file that cannot be written.
    """
    config.check()
    try:
        config.out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(
            f"--out is {config.out} and {error.filename} cannot be made ({error.strerror}); choose another place."
        ) from error
    run, params = load_run(config.run, config.checkpoint)
    _check_labels(config, run.model.num_classes)
    alpha_bar = run.diffusion.alpha_bar()
    table = config.table(alpha_bar)
    apply = unet_apply(run.model)
    size = full_batch(config.batch_size)
    mesh = make_mesh(size)
    kind, guide = run.diffusion.prediction, config.guidance != 1
    sampler = make_sampler(apply, alpha_bar, run.model.image_shape(), mesh, config.wrap, kind=kind, guide=guide)
    parts = generate(
        sampler,
        jax.device_put(jax.tree.map(np.asarray, params), replicated(mesh)),
        table,
        seed=config.seed,
        count=config.num_images,
        batch_size=size,
        labels=config.label,
        guidance=config.guidance,
    )
    quiet = not console.is_terminal
    batches = -(-config.num_images // size)
    images = np.concatenate(
        [to_uint8(part) for part in track(parts, "sampling", batches, console=console, transient=True, disable=quiet)]
    )
    if jax.process_index():  # each process has all the images; the first writes them
        return
    if config.out.suffix == ".npz":
        np.savez_compressed(config.out, images=images)
    else:
        save_grid(images, config.out)
    sigma = f"eta={config.eta:g}" if config.sigma == "eta" else f"sigma={config.sigma}"
    labels = f", labels {' '.join(map(str, config.label))}, guidance {config.guidance:g}" if config.label else ""
    console.print(
        f"{config.out}: {len(images):,} images {images.shape[1:]}, S={config.steps} {config.timesteps}, {sigma}, "
        f"seed={config.seed}{labels}, on {mesh.size} of {describe()}"
    )


def _check_labels(config: GenerateConfig, num_classes: int) -> None:
    if config.label and not num_classes:
        raise ValueError(f"--label is {config.label[0]}, but {config.run} is unconditional; leave --label out.")
    for label in config.label:
        if not 0 <= label < num_classes:
            raise ValueError(f"--label is {label}; {config.run} has the classes 0 to {num_classes - 1}.")
