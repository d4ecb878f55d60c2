"""Training from a configuration to a run directory.

    RUN/config.json  metrics.jsonl  checkpoints/  samples/step_*.png  samples.png

Only TrainState is carried from step to step. The batch, the noise and the learning rate of a step
follow from the seed and the step number, so a run that resumes from a checkpoint does the same as
one that was never stopped. Every process of a job runs this: all write checkpoints; the first one
writes everything else and prints.
"""

import dataclasses
import math
import shlex
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from rich.console import Console

from ..config import Config, TrainConfig
from ..data import Dataset, batches, load_dataset
from ..data.dataset import about, check_record, mirrors
from ..devices import batch_sharding, describe, make_mesh, process_rows, state_shardings, to_global
from ..diffusion.objective import loss_weights
from ..files import to_json
from ..model import build_unet, unet_apply, unet_shapes
from ..processes import agree
from ..runtime import program
from .checkpoint import (
    checkpoints,
    latest_step,
    restore_state,
    save_checkpoint,
    seal,
)
from .directory import only_one, open_directory, resumable_step
from .halt import any_process, exploded, stop_signals
from .journal import Metrics, journal
from .preview import Draw, finish, make_draw, save_preview
from .quality import described, judge, make_quality
from .state import TrainState, initial_state, learning_rate, make_optimizer
from .step import Step, make_train_step
from .tracker import Tracker, require_tracker, tracking
from .validation import held_out_data, make_validation


def train(config: Config, console: Console) -> None:
    """Start or resume the run of a configuration.

    A ValueError reports settings that are out of range or differ from the run's, missing or damaged
    files, failed writes, and a diverged loss.
    """
    config.check()
    require_tracker(config)
    agree(config)
    console = console if jax.process_index() == 0 else Console(quiet=True)
    mesh, out = _mesh(config), Path(config.out)
    saved = resumable_step(config, out)
    data = _open_data(config, saved)
    with only_one(out):
        if resumable_step(config, out) != saved:
            raise ValueError(f"{out} was trained by another process meanwhile; start again.")
        drawn = not config.train.sample_every or (out / "samples.png").exists()
        if saved == config.train.steps and drawn:
            console.print(f"{out} is finished at step {saved}; give more --train.steps to go on")
        else:
            _train(config, mesh, saved, *data, console)


def _train(
    config: Config, mesh: Mesh, saved: int | None, dataset: Dataset, held_out: Dataset,
    console: Console,
) -> None:  # fmt: skip
    out, settings = Path(config.out), config.train
    apply, alpha_bar = unet_apply(config.model), config.diffusion.alpha_bar()
    weights = loss_weights(
        alpha_bar, config.diffusion.prediction, settings.loss_weight,
        min_snr_gamma=settings.min_snr_gamma, gamma_eta=settings.gamma_eta,
    )  # fmt: skip
    state, shardings = prepare_state(config, mesh, out, saved)
    if saved is not None:
        rate = float(learning_rate(settings)(saved))
        console.print(f"{out} resumes from step {saved} with a learning rate of {rate:.3g}")
    open_directory(config, dataset, saved or 0)
    flip = mirrors(config.data.flip, dataset)
    step, draw = prepare_step(config, weights, shardings, flip=flip), make_draw(config)
    validate = None
    if settings.validate_images:
        validate = make_validation(config, apply, alpha_bar, weights, held_out, mesh)
    quality = make_quality(config, dataset, draw)
    console.print(
        f"{dataset.name}: {dataset.size:,} images {dataset.shape}; "
        f"{count_parameters(state.params):,} parameters; {mesh.size} of {describe()}; "
        f"{settings.steps:,} steps of {settings.batch_size}",
        *about(dataset, flip),
        *described(config, quality),
        sep="\n",
    )
    with tracking(config, saved or 0, console) as tracker:
        with stop_signals() as stop, jax.default_matmul_precision(settings.matmul_precision):
            stream = device_batches(config, dataset, mesh, saved or 0)
            judged_by = partial(judge, validate, quality, stop)
            state = _run(
                config, state, step, stream, draw, judged_by, dataset.size, tracker, stop, console
            )
        if int(state.step) < settings.steps:
            done = f"stopped at step {int(state.step)} of {settings.steps}"
            console.print(f"{done}; checkpoint saved. Continue with:")
            console.print(f"  {program('train')} {shlex.quote(str(out / 'config.json'))}")
            return
        finish(config, state, draw, quality, console)
        if settings.sample_every:
            tracker.show(settings.steps, out / "samples.png")
        tracker.close(True)


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


def _mesh(config: Config) -> Mesh:
    part = config.train.batch_size // config.train.accumulate
    return make_mesh(part, config.mesh.data, config.mesh.fsdp)


def _open_data(config: Config, saved: int | None, prepare: bool = True) -> tuple[Dataset, Dataset]:
    """The training images, checked against the run, and the images for the validation loss."""
    dataset = load_dataset(config.data, config.model.image_shape(), prepare=prepare)
    asked, there = config.model.num_classes, len(dataset.classes)
    if asked and asked != there:
        raise ValueError(
            f"--model.num-classes is {asked}, and {dataset.name} has {there or 'no'} classes; "
            f"use {f'{there}, or ' if there else ''}0 for an unconditional model."
        )
    if saved:
        check_record(Path(config.out), dataset)
    if not config.train.validate_images:
        return dataset, dataset
    return dataset, held_out_data(config, dataset, prepare=prepare)


def _run(
    config: Config,
    state: TrainState,
    step: Step,
    stream: Iterator[tuple[Any, Any]],
    draw: Draw,
    judged_by: Callable[..., Metrics],
    size: int,
    tracker: Tracker,
    stop: threading.Event,
    console: Console,
) -> TrainState:
    """Train until the end or a signal; log, validate, save and sample on the way."""
    out, settings = Path(config.out), config.train
    window: list[Metrics] = []
    pause = 0.0  # seconds since the last report that were not training
    first = int(state.step) + 1
    log_file = None if jax.process_index() else out / "metrics.jsonl"
    place = partial(_place, settings, size)
    with (
        checkpoints(out, settings.keep_checkpoints, settings.best_by()) as manager,
        journal(log_file, settings, first - 1, place, tracker.log, console) as report,
    ):
        for done, batch in enumerate(islice(stream, settings.steps + 1 - first), first):
            start = time.perf_counter()
            state, metrics = step(state, *batch)
            if done == first:  # the call returns once it is compiled; it runs in the background
                pause = time.perf_counter() - start
            window.append(metrics)
            # The host reads from the device only when something is due; otherwise it runs ahead.
            last = done == settings.steps
            due = settings.evaluate_every > 0 and (last or done % settings.evaluate_every == 0)
            log = last or due or done % settings.log_every == 0
            halt = any_process(stop, log)
            save = last or halt or done % settings.checkpoint_every == 0
            if log or save:
                window = jax.device_get(window)
                _check_losses(window, done, config, manager)
            start = time.perf_counter()
            # After a signal the state is saved first, and nothing else is done.
            judged = {} if halt else judged_by(state.ema, save, due)
            if due:  # a signal ends the judging
                halt = any_process(stop, True)
                save = save or halt
            pause += time.perf_counter() - start
            if log:
                report(done, window, pause, judged)
                window, pause = [], 0.0
            start = time.perf_counter()
            if save:
                save_checkpoint(manager, state, config, judged)
            halt = halt or any_process(stop, False)
            if settings.sample_every and done % settings.sample_every == 0 and not halt:
                images = draw(state.ema, settings.sample_images)
                path = out / "samples" / f"step_{done:07d}.png"
                save_preview(images, path, console)
                tracker.show(done, path)
            pause += time.perf_counter() - start
            if halt and save:
                break
    return state


def _place(settings: TrainConfig, images: int, done: int) -> Metrics:
    """What follows from the number of a step."""
    rate, epoch = learning_rate(settings)(done - 1), done * settings.batch_size / images
    return {"learning_rate": float(rate), "epoch": round(epoch, 4)}


def _check_losses(window: list[Metrics], done: int, config: Config, manager: Any) -> None:
    """Raise a ValueError if the loss has diverged; nothing is saved after that step."""
    problem = exploded(window, done, config.train)
    if problem is None:
        return
    seal(manager)
    good = latest_step(Path(config.out))
    kept = (
        "no checkpoint was saved before it"
        if good is None
        else f"the checkpoint of step {good} is good"
    )
    raise ValueError(
        f"{problem}; {kept}; lower --train.learning-rate ({config.train.learning_rate:g}) or "
        f"--train.clip-norm ({config.train.clip_norm:g}) in a new --out."
    )


def describe_run(config: Config, console: Console) -> None:
    """Print what `train` would train on what data, and refuse what it refuses."""
    config.check()
    require_tracker(config)
    _mesh(config)
    dataset, _ = _open_data(config, resumable_step(config, Path(config.out)), prepare=False)
    console.print_json(to_json(dataclasses.asdict(config)))
    console.print(f"parameters: {count_parameters(unet_shapes(config.model)):,}")
    size, batch = f"{dataset.size:,}", (config.train.batch_size, *dataset.shape)
    console.print(
        f"data: {dataset.name}, {size} images of shape {dataset.shape}; batches {batch} in [-1, 1]",
        *about(dataset, mirrors(config.data.flip, dataset)),
        sep="\n",
    )


def count_parameters(params: Any) -> int:
    """The number of scalars in a pytree.

    >>> count_parameters({"a": np.zeros((2, 3)), "b": [np.zeros(4)]})
    10
    """
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))
