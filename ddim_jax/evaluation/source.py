"""What is sampled: a trained run, or an exact oracle of known data, with one interface."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import numpy as np

from ..config import DataConfig, DiffusionConfig, presets
from ..data import load_dataset
from ..data.dataset import run_classes
from ..diffusion.oracle import empirical_oracle, gaussian_oracle, mixture_oracle
from ..diffusion.prediction import Denoiser
from ..images import to_unit_range
from ..model import unet_apply
from ..sampler import conditional
from ..training.checkpoint import open_run

OracleName = Literal["gaussian", "mixture", "digits", "emoji"]
_RIDGE = 0.02**2  # variance added to every pixel: a regular covariance, and a finite KL


class Reference(NamedTuple):
    """The data that samples should look like: float32 (N, H, W, C), and labels where known."""

    images: np.ndarray
    labels: np.ndarray | None
    num_classes: int


class Precision(NamedTuple):
    """How a network computes; the sampler around it is in float32.

    >>> str(Precision()), str(Precision("bfloat16")), str(Precision(products="default"))
    ('float32', 'bfloat16', 'float32 with default products')
    """

    dtype: Literal["float32", "bfloat16"] = "float32"
    products: Literal["default", "high", "highest"] = "highest"

    def __str__(self) -> str:
        """In words."""
        plain = self.products == "highest"
        return self.dtype if plain else f"{self.dtype} with {self.products} products"


FLOAT32 = Precision()


class Source(NamedTuple):
    """A denoiser, its noising process, and the data distribution that it should reproduce."""

    name: str
    directory: Path  # for its outputs
    denoise: Callable[[Any, Any], Denoiser]  # (params, label (B,) or None) → Denoiser
    params: Any
    alpha_bar: np.ndarray
    image_shape: tuple[int, int, int]
    num_classes: int  # that a label can name; 0: unconditional
    data: DataConfig
    reference: Callable[[], Reference]
    moments: (
        tuple[np.ndarray, np.ndarray] | None
    )  # mean (D,) and covariance (D, D), if known exactly
    identity: tuple[Any, ...]  # changes with anything that changes an image
    bounded: bool = True  # the data are within [−1, 1]; else images stay floats, never clipped
    has_no_label: bool = True  # whether the model was trained to draw without a label
    classes: tuple[str, ...] = ()  # their names, if known
    step: int | None = None  # of the checkpoint
    kind: str = "epsilon"  # what the network predicts
    precision: Precision = FLOAT32


def run_source(
    directory: Path, checkpoint: str = "latest", precision: Precision = FLOAT32
) -> Source:
    """The averaged (EMA) weights of a run, to be compared with its training images."""
    config, params, step = open_run(directory, checkpoint)
    alpha_bar = config.diffusion.alpha_bar()
    apply = unet_apply(config.model, precision.dtype)

    def network(*arguments: Any, **label: Any) -> Any:
        # In place of the sampler's own "highest".
        with jax.default_matmul_precision(precision.products):
            return apply(*arguments, **label)

    return Source(
        name=str(directory) + (f" in {precision}" if precision != FLOAT32 else ""),
        directory=directory,
        denoise=conditional(network, alpha_bar, config.diffusion.prediction),
        params=params,
        alpha_bar=alpha_bar,
        image_shape=config.model.image_shape(),
        num_classes=config.model.num_classes,
        data=config.data,
        reference=lambda: _images(config.data, config.model.image_shape()),
        moments=None,
        identity=("run", config.model, config.diffusion, precision, *jax.tree.leaves(params)),
        step=step,
        kind=config.diffusion.prediction,
        has_no_label=not config.model.num_classes or config.train.label_dropout > 0,
        classes=run_classes(directory),
        precision=precision,
    )


def oracle_source(name: OracleName) -> Source:
    """The exact denoiser of digits or emoji, or of a Gaussian or mixture fitted to digits."""
    data = DataConfig("emoji" if name == "emoji" else "digits")
    shape, alpha_bar = presets()[data.source].model.image_shape(), DiffusionConfig().alpha_bar()
    reference, moments = _images(data, shape), None
    if name == "gaussian":
        moments = _fitted_gaussian(reference)
        oracle = gaussian_oracle(moments[0].reshape(shape), moments[1], alpha_bar)
        samples = np.random.default_rng(0).multivariate_normal(*moments, 2_000, method="cholesky")
        reference = Reference(samples.reshape(-1, *shape).astype(np.float32), None, 0)
    elif name == "mixture":
        weights, means, std = _fitted_mixture(reference)
        oracle = mixture_oracle(weights, means.reshape(-1, *shape), std, alpha_bar)
        rng = np.random.default_rng(0)
        labels = rng.choice(len(weights), 2_000, p=weights)
        noise = rng.standard_normal((len(labels), means.shape[1]))
        samples = means[labels] + std[labels, None] * noise
        images = samples.reshape(-1, *shape).astype(np.float32)
        reference = Reference(images, labels, reference.num_classes)
    else:
        oracle = empirical_oracle(reference.images, alpha_bar)
    return Source(
        name=f"oracle {name}",
        directory=Path("runs") / f"oracle-{name}",
        denoise=lambda _, label: oracle,
        params=None,
        alpha_bar=alpha_bar,
        image_shape=shape,
        num_classes=0,
        data=data,
        reference=lambda: reference,
        moments=moments,
        identity=("oracle", name, _RIDGE, reference.images),
        bounded=name in ("digits", "emoji"),
    )


def _images(data: DataConfig, shape: tuple[int, int, int]) -> Reference:
    """The training images, and their labels."""
    dataset = load_dataset(data, shape)
    indices = np.arange(dataset.size)
    labels = dataset.label(indices) if dataset.label else None
    return Reference(to_unit_range(dataset.read(indices)), labels, len(dataset.classes))


def _fitted_gaussian(data: Reference) -> tuple[np.ndarray, np.ndarray]:
    flat = data.images.reshape(len(data.images), -1).astype(np.float64)
    return flat.mean(0), np.cov(flat, rowvar=False) + _RIDGE * np.eye(flat.shape[1])


def _fitted_mixture(data: Reference) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Weights (K,), means (K, D) and standard deviations (K,) of the classes."""
    flat = data.images.reshape(len(data.images), -1).astype(np.float64)
    labels = np.asarray(data.labels)
    members = [flat[labels == k] for k in range(data.num_classes)]
    std = np.array([np.sqrt(part.var(0).mean()) for part in members])
    return np.bincount(labels) / len(labels), np.stack([part.mean(0) for part in members]), std
