"""The cost of feeding a training step, and the memory that the step needs."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ddim_jax.config import Config
from ddim_jax.data import Dataset
from ddim_jax.devices import batch_sharding, make_mesh, state_shardings
from ddim_jax.diffusion.objective import draw_examples, prediction_loss
from ddim_jax.model import unet_apply, unet_shapes
from ddim_jax.training import initial_state, make_optimizer
from ddim_jax.training.prepare import device_batches, prepare_state, prepare_step

from .rounds import Row, in_turn, median_ratio, seconds


def bench_loop(config: Config, rounds: int) -> list[Row]:
    """Steps fed by the loop's own pipeline against bare calls of the compiled step on one batch."""
    shape, size, count = config.model.image_shape(), 4096, 20
    images = jax.random.randint(jax.random.key(0), (size, *shape), 0, 256)
    images = jax.device_get(images).astype("uint8")
    dataset = Dataset("made up", size, shape, True, images.__getitem__)
    mesh = make_mesh(config.train.batch_size)
    state, shardings = prepare_state(config, mesh, Path("no run"), None)
    step = prepare_step(config, None, shardings, flip=True)
    stream = device_batches(config, dataset, mesh, 0)
    batch = next(stream)

    def steps(next_batch: Callable[[], Any]) -> Any:
        nonlocal state
        for _ in range(count):
            state, metrics = step(state, *next_batch())
        return metrics

    bare, fed = in_turn(
        rounds,
        lambda: seconds(lambda: steps(lambda: batch)),
        lambda: seconds(lambda: steps(lambda: next(stream))),
    )
    return [
        Row(f"{count} bare training steps", float(np.median(bare)), "s"),
        Row(f"{count} steps through the loop", float(np.median(fed)), "s"),
        Row("loop ÷ bare", median_ratio(fed, bare), ""),
    ]


def bench_training_memory(config: Config) -> list[Row]:
    """The memory plan of the compiled step, and what its forward pass keeps for the backward pass.

    Nothing is run.
    """
    count, size = jax.device_count(), config.train.batch_size
    rows = [_kept(config, remat) for remat in (False, True)]
    meshes = [(1, 1)] + ([(1, count)] if count > 1 and size % count == 0 else [])
    init = partial(initial_state, optimizer=make_optimizer(config.train))
    for data, fsdp in meshes:
        mesh = make_mesh(size, data, fsdp)
        shapes = jax.eval_shape(init, unet_shapes(config.model))
        shardings = state_shardings(shapes, mesh)
        state = jax.tree.map(
            lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
            shapes,
            shardings,
        )
        images = (size, *config.model.image_shape())
        x_0 = jax.ShapeDtypeStruct(images, "float32", sharding=batch_sharding(mesh))
        where = f"{mesh.size} device{'s' if mesh.size > 1 else ''}, fsdp={fsdp}"
        for remat in (False, True):
            variant = replace(config, train=replace(config.train, remat=remat))
            step: Any = prepare_step(variant, None, shardings, flip=True)
            memory = step.lower(state, x_0).compile().memory_analysis()
            name = f"temporary memory of a train step, {where}, {'remat' if remat else 'no remat'}"
            rows.append(Row(name, memory.temp_size_in_bytes / 2**20, "MiB per device"))
            if not remat:
                held = memory.argument_size_in_bytes - x_0.size * 4 // mesh.size
                rows.append(Row(f"training state, {where}", held / 2**20, "MiB per device"))
    return rows


def _kept(config: Config, remat: bool) -> Row:
    """The size of the arrays that differentiation keeps, weights included.

    Not from XLA's plan: on CPUs, XLA undoes rematerialisation.
    """
    apply = unet_apply(config.model, config.train.dtype, remat, to_train=True)

    def backward(params: Any) -> Any:
        x_0 = jnp.zeros((config.train.batch_size, *config.model.image_shape()))
        examples = draw_examples(x_0, config.diffusion.alpha_bar(), jax.random.key(0))
        loss = partial(prediction_loss, apply, examples=examples, dropout_key=jax.random.key(1))
        return jax.vjp(loss, params)[1]

    kept = jax.tree.leaves(jax.eval_shape(backward, unet_shapes(config.model)))
    arrays = [leaf for leaf in kept if not jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)]
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in arrays)
    name = f"kept for the backward pass, {'remat' if remat else 'no remat'}"
    return Row(name, size / 2**20, "MiB")
