"""Feature extractors, functions from images to (N, D): raw pixels, or the hidden layer of a small classifier of the same data.

    image ─ conv 3×3 ─ conv 3×3 /2 ─ conv 3×3 /2 ─ mean over positions ─ dense = features ─ dense ─ classes

None of them is Inception: a distance on them is not FID, and carries their name.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from rich.console import Console

from ..images import to_unit_range
from .sources import Oracle, Source, digest, oracle_source, run_source

Features = Callable[[np.ndarray], np.ndarray]
_WIDTH = 64


@dataclass(frozen=True)
class ClassifierConfig:
    """Train a small classifier on the labels of a model's data, for `ablate --features classifier`."""

    run: tyro.conf.Positional[Path | None] = None
    """The run directory; leave it out with --oracle."""
    oracle: Oracle | None = None
    """The exact denoiser that is to be ablated."""
    epochs: int = 20
    """Passes over the training images."""
    seed: int = 0
    """Seed of the initial weights and of the order of the images."""

    def check(self) -> None:
        """Raise ValueError if a field is out of range, alone or beside another."""
        if (self.run is None) == (self.oracle is None):
            raise ValueError(f"RUN is {self.run} and --oracle {self.oracle}; give one of the two.")
        if self.epochs < 1:
            raise ValueError(f"--epochs is {self.epochs}; it must be 1 or more.")


def pixels(images: np.ndarray) -> np.ndarray:
    """The images as they are, in [−1, 1]: (N, H, W, C) uint8 or float → (N, H·W·C) float64."""
    return _in_range(images).reshape(len(images), -1).astype(np.float64)


def train_classifier(config: ClassifierConfig, console: Console) -> None:
    """Train the classifier of a run, or of an oracle, and save it beside its ablations.

    Args:
        config: the model and the training.
        console: where the result is said.

    Raises:
        ValueError: a flag out of range, a run that cannot be read, data without labels.
    """
    config.check()
    source = (
        run_source(config.run, "latest") if config.run else oracle_source(config.oracle or "digits")
    )
    if source.labels is None:
        raise ValueError(
            f"{source.name} has data without labels; only --features pixels can be used with it."
        )
    order = np.random.default_rng(config.seed).permutation(len(source.reference))
    held_out = order[: len(order) // 5]
    params = _fit(source, order[len(held_out) :], config)
    scores = np.concatenate(
        [_apply(params, source.reference[part])[1] for part in np.array_split(held_out, 8)]
    )
    accuracy = float(np.mean(scores.argmax(1) == source.labels[held_out]))
    path = classifier_path(config.run, config.oracle)
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, *jax.tree.leaves(params))
    console.print(
        f"{path}: {accuracy:.1%} of {len(held_out):,} held-out images in the right one of {source.num_classes} classes"
    )


def classifier_path(run: Path | None, oracle: str | None) -> Path:
    """Where the classifier of a model is kept."""
    return (run or Path("runs") / f"oracle-{oracle}") / "ablations" / "classifier.npz"


def load_features(name: str, source: Source, path: Path) -> tuple[Features, str]:
    """A feature extractor, and a hash of it.

    Args:
        name: "pixels" or "classifier".
        source: the model that is ablated.
        path: the classifier's file.

    Raises:
        ValueError: a classifier that is not there, or of images of another shape.
    """
    if name == "pixels":
        return pixels, "pixels"
    try:
        with np.load(path) as file:
            leaves = [file[name] for name in file.files]
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(
            f"{path} cannot be read ({error}); `python sample.py classifier` makes it."
        ) from error
    template = _init(jax.random.key(0), source.image_shape[-1], source.num_classes)
    if [leaf.shape for leaf in leaves] != [leaf.shape for leaf in jax.tree.leaves(template)]:
        raise ValueError(
            f"{path} is a classifier of other images; make it anew with `python sample.py classifier`."
        )
    params = jax.tree.unflatten(jax.tree.structure(template), leaves)

    def features(images: np.ndarray) -> np.ndarray:
        parts = np.array_split(images, max(1, -(-len(images) // 1000)))
        return np.concatenate(
            [np.asarray(_apply(params, _in_range(part))[0], np.float64) for part in parts]
        )

    return features, digest(*leaves)


def _in_range(images: np.ndarray) -> np.ndarray:
    return to_unit_range(images) if images.dtype == np.uint8 else images


def _init(key: Any, channels: int, classes: int) -> dict[str, Any]:
    """He's initial weights; biases 0."""
    shapes = {"conv1": (3, 3, channels, 32), "conv2": (3, 3, 32, _WIDTH), "conv3": (3, 3, _WIDTH, _WIDTH),
              "hidden": (_WIDTH, _WIDTH), "out": (_WIDTH, classes)}  # fmt: skip
    keys = jax.random.split(key, len(shapes))
    return {
        name: {
            "kernel": jax.random.normal(k, shape) * np.sqrt(2 / np.prod(shape[:-1])),
            "bias": jnp.zeros(shape[-1]),
        }
        for k, (name, shape) in zip(keys, shapes.items(), strict=True)
    }


@jax.jit
def _apply(params: dict[str, Any], x: Any) -> tuple[Any, Any]:
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


def _fit(
    source: Source, chosen: np.ndarray, config: ClassifierConfig, batch_size: int = 128
) -> dict[str, Any]:
    """Adam on the cross-entropy."""
    labels, optimizer = np.asarray(source.labels), optax.adam(2e-3)
    params = _init(jax.random.key(config.seed), source.image_shape[-1], source.num_classes)
    state, rng = optimizer.init(params), np.random.default_rng(config.seed)

    @jax.jit
    def step(params: Any, state: Any, x: Any, label: Any) -> tuple[Any, Any]:
        def loss(params: Any) -> Any:
            return optax.softmax_cross_entropy_with_integer_labels(
                _apply(params, x)[1], label
            ).mean()

        updates, state = optimizer.update(jax.grad(loss)(params), state)
        return optax.apply_updates(params, updates), state

    size = min(batch_size, len(chosen))
    for _ in range(config.epochs):
        for part in rng.permutation(chosen)[: len(chosen) // size * size].reshape(-1, size):
            params, state = step(
                params, state, source.reference[part], labels[part].astype(np.int32)
            )
    return params
