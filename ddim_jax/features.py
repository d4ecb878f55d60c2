"""Features of images, (N, D): raw pixels, a layer of a small classifier, or Inception's.

Only distances on Inception's features are called FID and KID. Others bear their features' name.
"""

import contextlib
import time
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
from rich.console import Console

from .devices import local_mesh
from .files import digest, whole
from .images import to_uint8, to_unit_range
from .metrics import STATISTICS
from .model.classifier import apply_classifier, initial_classifier
from .model.inception import FAMILIES, inception_features
from .model.inception_file import WEIGHTS, find_inception, load_inception
from .progress import progress
from .runtime import program
from .sampler import batch_program, in_batches


@dataclass(frozen=True)
class FeatureFlags:
    """What images are compared by."""

    features: Literal["pixels", "classifier", "inception"] = "pixels"
    """Raw pixels, the classifier of `sample.py classifier`, or Inception, for FID and KID."""
    family: Literal[*FAMILIES] = "tf1"  # type: ignore[valid-type]
    """Inception's resize and scaling: as TensorFlow, edm and ADM do it, or as pytorch-fid does."""
    inception: Path | None = None
    """Inception's weights; default $DDIM_JAX_INCEPTION, or a download to ~/.cache (96 MB)."""
    inception_sha256: str = ""
    """SHA-256 of --inception, if it is not the published file's; results are then not FID."""


class Features(NamedTuple):
    """A way from images (N, H, W, C) to float (N, D), and what it is called."""

    name: str
    extract: Callable[[np.ndarray], np.ndarray]
    recipe: dict[str, str]  # all that a feature depends on
    traced: Callable[[Any, Any], Any]  # (params, images in [−1, 1]) → (N, D), for gradients
    params: Any = None
    labels: Mapping[str, str] = MappingProxyType({})  # what the field calls a statistic of them

    @property
    def identity(self) -> str:
        """A hash of the recipe."""
        return digest(self.recipe)

    @property
    def kept(self) -> bool:
        """Whether extraction costs more than reading a file."""
        return self.name != "pixels"

    def label(self, statistic: str) -> str:
        """What a statistic of these features is called."""
        return self.labels.get(statistic, STATISTICS[statistic].label)


MOST = 12_288  # dimensions of a covariance that is decomposed: the pixels of 64×64×3


def check_covariance(shape: tuple[int, ...], remedy: str) -> None:
    """Refuse features of a shape (N, D) whose covariance is too large to be decomposed."""
    count, dimensions = shape
    if min(shape) > MOST:
        raise ValueError(
            f"the reference has {count:,} images of {dimensions:,} features, whose covariance "
            f"takes {8 * dimensions**2 / 1e9:.0f} GB; use {remedy}."
        )


def pixels(images: np.ndarray) -> np.ndarray:
    """The images in [−1, 1]: (N, H, W, C) uint8 or float → (N, H·W·C) float64."""
    return _in_range(images).reshape(len(images), -1).astype(np.float64)


def flat(params: None, images: Any) -> Any:
    """Images in [−1, 1] as rows; no parameters are needed."""
    return images.reshape(len(images), -1)


def classifier_path(directory: Path) -> Path:
    """The path of the classifier of a source's data."""
    return directory / "ablations" / "classifier.npz"


def kept_features(
    features: Features, images: Callable[[], np.ndarray], content: str, directory: Path
) -> np.ndarray:
    """The features of some images, read from a file in the directory if they were computed before.

    `content` is a hash of the images.
    """
    if not features.kept:
        return features.extract(images())
    file = directory / f"features-{digest(content, features.identity)[:32]}.npy"
    with contextlib.suppress(OSError, EOFError, ValueError):  # missing, or damaged
        return np.load(file)
    made = features.extract(images()).astype(np.float32)
    with whole(file) as partial, open(partial, "wb") as out:
        np.save(out, made)
    return made


def load_features(
    flags: FeatureFlags, directory: Path, channels: int, console: Console
) -> Features:
    """The features that the flags ask for; a classifier's are in the directory of a source."""
    if flags.features == "inception":
        return _inception(flags, console)
    if flags.features == "classifier":
        return _classifier(directory, channels)
    return Features("pixels", pixels, {"features": "pixels in [-1, 1]"}, flat)


def _inception(flags: FeatureFlags, console: Console) -> Features:
    """The layer of 2048 features, batches split over this process's devices."""
    path = find_inception(flags.inception)
    sha256 = flags.inception_sha256 or WEIGHTS.sha256
    params, mesh = load_inception(path, sha256), local_mesh()
    most = mesh.size * (16 if jax.default_backend() == "cpu" else 128)
    program = batch_program(partial(inception_features, family=flags.family), mesh)

    def extract(images: np.ndarray) -> np.ndarray:
        images = images if images.dtype == np.uint8 else to_uint8(images)

        def part(indices: np.ndarray) -> np.ndarray:
            return np.asarray(program(params, images[indices % len(images)]))

        parts, start = [], time.monotonic()
        size = min(most, -(-len(images) // mesh.size) * mesh.size)
        with progress(console, len(images), "images") as show:
            for features in in_batches(part, len(images), size):
                parts.append(features)
                done = sum(len(done) for done in parts)
                rate = done / (time.monotonic() - start)
                show(f"Inception, {rate:,.0f} images/s", len(features))
        return np.concatenate(parts)

    published = sha256 == WEIGHTS.sha256
    name = f"Inception {flags.family}" + ("" if published else f" with weights {sha256[:8]}")
    labels = {"frechet": "FID", "kernel": "KID"} if published else {}
    recipe = {"features": "Inception", "family": flags.family, "weights": sha256}

    def traced(params: Any, images: Any) -> Any:
        return inception_features(params, (images + 1) * 127.5, family=flags.family)

    return Features(name, extract, recipe, traced, params, labels)


def _classifier(directory: Path, channels: int) -> Features:
    """The hidden layer of the classifier that `sample.py classifier` trained."""
    path = classifier_path(directory)
    try:
        with np.load(path) as file:
            leaves = [file[name] for name in file.files]
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"{path} cannot be read ({error}); `{program('sample')} classifier` makes it."
        ) from error
    classes = leaves[-1].shape[-1] if leaves and leaves[-1].ndim else 0
    template = initial_classifier(jax.random.key(0), channels, classes)
    if [leaf.shape for leaf in leaves] != [leaf.shape for leaf in jax.tree.leaves(template)]:
        raise ValueError(
            f"{path} is a classifier of other images; train it again with "
            f"`{program('sample')} classifier`."
        )
    params = jax.tree.unflatten(jax.tree.structure(template), leaves)

    def extract(images: np.ndarray) -> np.ndarray:
        parts = np.array_split(images, max(1, -(-len(images) // 1000)))
        layers = [apply_classifier(params, _in_range(part))[0] for part in parts]
        return np.concatenate([np.asarray(layer, np.float64) for layer in layers])

    recipe = {"features": "classifier", "weights": digest(*leaves)}
    return Features(
        "classifier", extract, recipe, lambda *given: apply_classifier(*given)[0], params
    )


def _in_range(images: np.ndarray) -> np.ndarray:
    return to_unit_range(images) if images.dtype == np.uint8 else images
