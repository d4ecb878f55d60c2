"""What a grid samples from: a trained run, or an exact oracle of known data; and the images to compare with."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import numpy as np

from ..config import DataConfig, DiffusionConfig, presets
from ..data import Dataset, load_dataset
from ..diffusion.oracle import empirical_oracle, gaussian_oracle, mixture_oracle
from ..diffusion.prediction import Denoiser, denoiser
from ..images import to_unit_range
from ..model import unet_apply
from ..training import load_run

Oracle = Literal["gaussian", "mixture", "digits", "emoji"]
_RIDGE = (
    0.02**2
)  # variance added to every pixel, so that the covariance is not singular and the KL is finite


class Source(NamedTuple):
    """A denoiser, its noising process, and the distribution that it should sample."""

    name: str
    denoise: Callable[[Any], Denoiser]  # params → Denoiser
    params: Any
    alpha_bar: np.ndarray
    image_shape: tuple[int, int, int]
    reference: np.ndarray  # float32 (N, H, W, C), what samples are compared with
    labels: np.ndarray | None
    num_classes: int
    moments: (
        tuple[np.ndarray, np.ndarray] | None
    )  # mean (D,) and covariance (D, D) of Gaussian data, exactly known
    identity: str  # changes with anything that changes an image


def run_source(directory: Path, checkpoint: str) -> Source:
    """The averaged weights of a run, to be compared with its training images."""
    config, params = load_run(directory, checkpoint)
    shape, alpha_bar, apply = (
        config.model.image_shape(),
        config.diffusion.alpha_bar(),
        unet_apply(config.model),
    )
    dataset = load_dataset(config.data, shape)
    return Source(
        name=str(directory),
        denoise=lambda leaves: denoiser(apply, leaves, alpha_bar, config.diffusion.prediction),
        params=params,
        alpha_bar=alpha_bar,
        image_shape=shape,
        reference=to_unit_range(dataset.read(np.arange(dataset.size))),
        labels=_labels(dataset),
        num_classes=len(dataset.classes),
        moments=None,
        identity=digest("run", config.model, config.diffusion, *jax.tree.leaves(params)),
    )


def oracle_source(kind: Oracle) -> Source:
    """The exact denoiser of a distribution fitted to digits (gaussian, mixture), or of the images themselves."""
    name = "emoji" if kind == "emoji" else "digits"
    shape, alpha_bar = presets()[name].model.image_shape(), DiffusionConfig().alpha_bar()
    dataset = load_dataset(DataConfig(name), shape)
    images, labels = to_unit_range(dataset.read(np.arange(dataset.size))), _labels(dataset)
    assert labels is not None  # both data sets have classes
    flat, rng, moments = (
        images.reshape(len(images), -1).astype(np.float64),
        np.random.default_rng(0),
        None,
    )
    if kind == "gaussian":
        moments = flat.mean(0), np.cov(flat, rowvar=False) + _RIDGE * np.eye(flat.shape[1])
        denoise = gaussian_oracle(moments[0].reshape(shape), moments[1], alpha_bar)
        flat = rng.multivariate_normal(*moments, size=2_000, method="cholesky")
    elif kind == "mixture":
        weights = np.bincount(labels) / len(labels)
        means = np.stack([flat[labels == k].mean(0) for k in range(len(weights))])
        std = np.array([np.sqrt(flat[labels == k].var(0).mean()) for k in range(len(weights))])
        denoise = mixture_oracle(weights, means.reshape(-1, *shape), std, alpha_bar)
        labels = rng.choice(len(weights), 2_000, p=weights)
        flat = means[labels] + std[labels, None] * rng.standard_normal((len(labels), flat.shape[1]))
    else:
        denoise = empirical_oracle(images, alpha_bar)
    return Source(
        name=f"oracle {kind}",
        denoise=lambda _: denoise,
        params=None,
        alpha_bar=alpha_bar,
        image_shape=shape,
        reference=flat.reshape(-1, *shape).astype(np.float32),
        labels=labels,
        num_classes=len(dataset.classes),
        moments=moments,
        identity=digest("oracle", kind, _RIDGE, images),
    )


def _labels(dataset: Dataset) -> np.ndarray | None:
    return dataset.label(np.arange(dataset.size)) if dataset.label else None


def digest(*parts: Any) -> str:
    """A SHA-256 of texts, numbers and arrays."""
    found = hashlib.sha256()
    for part in parts:
        array = isinstance(part, np.ndarray | jax.Array)
        found.update(f"{part.shape}{part.dtype}".encode() if array else repr(part).encode())
        found.update(np.ascontiguousarray(part).tobytes() if array else b"")
    return found.hexdigest()
