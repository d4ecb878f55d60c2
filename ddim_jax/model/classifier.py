"""A small classifier of images, whose hidden layer is a feature extractor.

image ─ conv 3×3 ─ conv 3×3 /2 ─ conv 3×3 /2 ─ mean over positions ─ dense = features ─ classes
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

_WIDTH = 64


def initial_classifier(key: Any, channels: int, classes: int) -> dict[str, Any]:
    """He initialisation; biases are 0."""
    shapes = {"conv1": (3, 3, channels, 32), "conv2": (3, 3, 32, _WIDTH),
              "conv3": (3, 3, _WIDTH, _WIDTH), "hidden": (_WIDTH, _WIDTH),
              "out": (_WIDTH, classes)}  # fmt: skip
    keys = jax.random.split(key, len(shapes))
    return {
        name: {
            "kernel": jax.random.normal(k, shape, jnp.float32) * np.sqrt(2 / np.prod(shape[:-1])),
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
