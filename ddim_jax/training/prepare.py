"""What a run needs before its first step: devices, data, state, the compiled step, batches."""

import math
from collections import deque
from collections.abc import Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from ..config import Config
from ..data import Dataset, batches, load_dataset
from ..data.dataset import check_record
from ..devices import batch_sharding, make_mesh, process_rows, state_shardings, to_global
from ..model import build_unet, unet_apply, unet_shapes
from .checkpoint import restore_state
from .state import TrainState, initial_state, make_optimizer
from .step import Step, make_train_step
from .validation import held_out_data


def prepare_state(
    config: Config, mesh: Mesh, out: Path, saved: int | None
) -> tuple[TrainState, TrainState]:
    """The initial state, restored or new, placed on the devices; and its shardings."""
    optimizer = make_optimizer(config.train)

    def init() -> TrainState:
        return initial_state(build_unet(config.model, config.seed)[1], optimizer)

    shapes = jax.eval_shape(partial(initial_state, optimizer=optimizer), unet_shapes(config.model))
    shardings = state_shardings(shapes, mesh)
    if saved is None:
        return jax.jit(init, out_shardings=shardings)(), shardings

    def on_devices(leaf: Any, place: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place)

    return restore_state(out, saved, jax.tree.map(on_devices, shapes, shardings)), shardings


def prepare_step(config: Config, weights: np.ndarray | None, shardings: Any, *, flip: bool) -> Step:
    """The train step of a configuration."""
    settings = config.train
    return make_train_step(
        unet_apply(config.model, settings.dtype, settings.remat, to_train=True),
        make_optimizer(settings),
        config.diffusion.alpha_bar(),
        seed=config.seed,
        ema_decay=settings.ema_decay,
        flip=flip,
        kind=config.diffusion.prediction,
        weights=weights,
        num_classes=config.model.num_classes,
        label_dropout=settings.label_dropout,
        accumulate=settings.accumulate,
        shardings=shardings,
    )


def device_batches(
    config: Config, dataset: Dataset, mesh: Mesh, start: int
) -> Iterator[tuple[Any, Any]]:
    """(x_0, label or None) of every step from `start` on, sent to the devices two batches ahead."""
    size, split = config.train.batch_size, batch_sharding(mesh)
    local = batches(dataset, size, config.seed, start, process_rows(size))
    stream = (
        to_global((x_0, label if config.model.num_classes else None), split) for x_0, label in local
    )
    ahead = deque(islice(stream, 2))
    while ahead:
        yield ahead.popleft()
        ahead.extend(islice(stream, 1))


def run_mesh(config: Config) -> Mesh:
    """The devices of a run, for the part of a batch that is computed at once."""
    part = config.train.batch_size // config.train.accumulate
    return make_mesh(part, config.mesh.data, config.mesh.fsdp)


def open_data(
    config: Config, saved: int | None, prepare: bool = True
) -> tuple[Dataset, Dataset | None]:
    """The training images and, if it is asked for, those of the validation loss.

    They are checked against the run.
    """
    dataset = load_dataset(config.data, config.model.image_shape(), prepare=prepare)
    asked, there = config.model.num_classes, len(dataset.classes)
    if asked and asked != there:
        raise ValueError(
            f"--model.num-classes is {asked}, and {dataset.name} has {there or 'no'} classes; "
            f"use {f'{there}, or ' if there else ''}0 for an unconditional model."
        )
    held_out = None
    if config.train.validate_images:
        held_out = held_out_data(config, dataset, prepare=prepare)
    if saved:
        check_record(Path(config.out), dataset, held_out)
    return dataset, held_out


def count_parameters(params: Any) -> int:
    """The number of scalars in a pytree.

    >>> count_parameters({"a": np.zeros((2, 3)), "b": [np.zeros(4)]})
    10
    """
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))
