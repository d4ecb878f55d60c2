"""Feature extractors, from images to (N, D): raw pixels, or a layer of a small classifier.

    image ─ conv 3×3 ─ conv 3×3 /2 ─ conv 3×3 /2 ─ mean over positions ─ dense = features ─ classes

Neither is Inception, so a distance on them is not FID; it is labelled with its features.
"""

import contextlib
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ..files import digest, whole
from ..images import to_unit_range
from .source import Source

_WIDTH = 64


class Features(NamedTuple):
    """A way from images (N, H, W, C) to float (N, D), its name, and a hash of all that it is."""

    name: str
    extract: Callable[[np.ndarray], np.ndarray]
    identity: str
    cached: bool  # whether extraction costs more than reading a file


def pixels(images: np.ndarray) -> np.ndarray:
    """The images in [−1, 1]: (N, H, W, C) uint8 or float → (N, H·W·C) float64."""
    return _in_range(images).reshape(len(images), -1).astype(np.float64)


def classifier_path(source: Source) -> Path:
    """The path of a model's classifier."""
    return source.directory / "ablations" / "classifier.npz"


def kept_features(
    features: Features, images: Callable[[], np.ndarray], content: str, directory: Path
) -> np.ndarray:
    """The features of some images, read from a file in the directory if they were computed before.

    `content` is a hash of the images.
    """
    if not features.cached:
        return features.extract(images())
    file = directory / f"features-{digest(content, features.identity)[:32]}.npy"
    with contextlib.suppress(OSError, EOFError, ValueError):  # missing, or damaged
        return np.load(file)
    made = features.extract(images()).astype(np.float32)
    with whole(file) as partial, open(partial, "wb") as out:
        np.save(out, made)
    return made


def _classifier_features(source: Source) -> Features:
    """The hidden layer of the classifier that `sample.py classifier` trained."""
    path = classifier_path(source)
    try:
        with np.load(path) as file:
            leaves = [file[name] for name in file.files]
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"{path} cannot be read ({error}); `python sample.py classifier` makes it."
        ) from error
    classes = leaves[-1].shape[-1] if leaves and leaves[-1].ndim else 0
    template = initial_classifier(jax.random.key(0), source.image_shape[-1], classes)
    if [leaf.shape for leaf in leaves] != [leaf.shape for leaf in jax.tree.leaves(template)]:
        raise ValueError(
            f"{path} is a classifier of other images; train it again with `sample.py classifier`."
        )
    params = jax.tree.unflatten(jax.tree.structure(template), leaves)

    def extract(images: np.ndarray) -> np.ndarray:
        parts = np.array_split(images, max(1, -(-len(images) // 1000)))
        layers = [apply_classifier(params, _in_range(part))[0] for part in parts]
        return np.concatenate([np.asarray(layer, np.float64) for layer in layers])

    return Features("classifier", extract, digest(*leaves), cached=True)


EXTRACTORS: dict[str, Callable[[Source], Features]] = {
    "pixels": lambda source: Features("pixels", pixels, "pixels", cached=False),
    "classifier": _classifier_features,
}


def _in_range(images: np.ndarray) -> np.ndarray:
    return to_unit_range(images) if images.dtype == np.uint8 else images


def initial_classifier(key: Any, channels: int, classes: int) -> dict[str, Any]:
    """He initialisation; biases are 0."""
    shapes = {"conv1": (3, 3, channels, 32), "conv2": (3, 3, 32, _WIDTH),
              "conv3": (3, 3, _WIDTH, _WIDTH), "hidden": (_WIDTH, _WIDTH),
              "out": (_WIDTH, classes)}  # fmt: skip
    keys = jax.random.split(key, len(shapes))
    return {
        name: {
            "kernel": jax.random.normal(k, shape) * np.sqrt(2 / np.prod(shape[:-1])),
            "bias": jnp.zeros(shape[-1]),
        }
        for k, (name, shape) in zip(keys, shapes.items(), strict=True)
    }


@jax.jit
def apply_classifier(params: dict[str, Any], x: Any) -> tuple[Any, Any]:
    """(features, scores of the classes)."""
    for name, stride in (("conv1", 1), ("conv2", 2), ("conv3", 2)):
        layer = params[name]
        x = jax.lax.conv_general_dilated(
            x,
            layer["kernel"],
            (stride, stride),
            "SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            precision="highest",
        )
        x = jax.nn.relu(x + layer["bias"].reshape(1, 1, 1, -1))
    dense = partial(jnp.matmul, precision="highest")
    features = jax.nn.relu(
        dense(x.mean((1, 2)), params["hidden"]["kernel"]) + params["hidden"]["bias"].reshape(1, -1)
    )
    return features, dense(features, params["out"]["kernel"]) + params["out"]["bias"].reshape(1, -1)
