"""What feeding a training step costs, and what memory the step needs."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..config import Config
from ..data import Dataset
from ..devices import batch_sharding, make_mesh, state_shardings
from ..model import unet_apply, unet_shapes
from ..training import initial_state, make_optimizer
from ..training.loop import device_batches, prepare_state, prepare_step
from ..training.loss import draw_examples, prediction_loss
from .rounds import Row, in_turn, median_ratio, seconds


def bench_loop(config: Config, rounds: int) -> list[Row]:
    """Steps fed by the loop's own pipeline against bare calls of the compiled step on one batch."""
    shape, size, count = config.model.image_shape(), 4096, 20
    images = jax.device_get(jax.random.randint(jax.random.key(0), (size, *shape), 0, 256)).astype(
        "uint8"
    )
    dataset = Dataset("made up", size, shape, True, images.__getitem__)
    mesh = make_mesh(config.train.batch_size)
    state, shardings = prepare_state(config, mesh, Path("no run"), None)
    step = prepare_step(config, config.diffusion.alpha_bar(), None, shardings, flip=True)
    stream = device_batches(config, dataset, mesh, 0)
    batch = next(stream)

    def steps(feed: Callable[[], Any]) -> Any:
        nonlocal state
        for _ in range(count):
            state, metrics = step(state, *feed())
        return metrics

    bare, fed = in_turn(
        rounds,
        lambda: seconds(lambda: steps(lambda: batch)),
        lambda: seconds(lambda: steps(lambda: next(stream))),
    )
    return [Row(f"{count} bare training steps", float(np.median(bare)), "s"),
            Row(f"{count} steps through the loop", float(np.median(fed)), "s"),
            Row("loop ÷ bare", median_ratio(fed, bare), "")]  # fmt: skip


def bench_training_memory(config: Config) -> list[Row]:
    """What the compiled step says that it needs, and what its forward pass keeps for the backward pass; nothing is run."""
    count = jax.device_count()
    rows = [_kept(config, remat) for remat in (False, True)]
    meshes = [(1, 1)] + ([(1, count)] if count > 1 and config.train.batch_size % count == 0 else [])
    for data, fsdp in meshes:
        mesh = make_mesh(config.train.batch_size, data, fsdp)
        optimizer = make_optimizer(config.train)
        state = jax.eval_shape(
            partial(initial_state, optimizer=optimizer), unet_shapes(config.model)
        )
        shardings = state_shardings(state, mesh)
        state = jax.tree.map(
            lambda a, place: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=place),
            state,
            shardings,
        )
        shape = (config.train.batch_size, *config.model.image_shape())
        x_0 = jax.ShapeDtypeStruct(shape, "float32", sharding=batch_sharding(mesh))
        for remat in (False, True):
            some = replace(config, train=replace(config.train, remat=remat))
            step: Any = prepare_step(some, config.diffusion.alpha_bar(), None, shardings, flip=True)
            found = step.lower(state, x_0).compile().memory_analysis()
            where = f"{mesh.size} device{'s' if mesh.size > 1 else ''}, fsdp={fsdp}"
            name = f"temporary memory of a train step, {where}, {'remat' if remat else 'no remat'}"
            rows.append(Row(name, found.temp_size_in_bytes / 2**20, "MiB a device"))
            if not remat:
                held = found.argument_size_in_bytes - x_0.size * 4 // mesh.size
                rows.append(Row(f"training state, {where}", held / 2**20, "MiB a device"))
    return rows


def _kept(config: Config, remat: bool) -> Row:
    """The arrays that differentiation carries over, weights included (XLA for CPUs undoes rematerialisation in its plan)."""
    apply = unet_apply(config.model, config.train.dtype, remat, to_train=True)

    def backward(params: Any) -> Any:
        x_0 = jnp.zeros((config.train.batch_size, *config.model.image_shape()))
        examples = draw_examples(x_0, config.diffusion.alpha_bar(), jax.random.key(0))
        return jax.vjp(
            lambda some: prediction_loss(apply, some, examples, dropout_key=jax.random.key(1)),
            params,
        )[1]

    kept = jax.tree.leaves(jax.eval_shape(backward, unet_shapes(config.model)))
    size = sum(
        leaf.size * leaf.dtype.itemsize
        for leaf in kept
        if not jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    )
    return Row(
        f"kept for the backward pass, {'remat' if remat else 'no remat'}", size / 2**20, "MiB"
    )
