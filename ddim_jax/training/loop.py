"""Training from a configuration to a run directory.

    RUN/config.json  metrics.jsonl  checkpoints/  samples/step_*.png  samples.png

Only TrainState is carried from step to step. The batch, the noise and the learning rate of a step
follow from the seed and the step number, so a run that resumes from a checkpoint does the same as
one that was never stopped. Every process of a job runs this: all write checkpoints; the first one
writes everything else and prints.
"""

import contextlib
import dataclasses
import shlex
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh
from rich.console import Console

from ..config import Config, TrainConfig
from ..data import Dataset
from ..data.dataset import about, mirrors
from ..devices import describe
from ..diffusion.objective import loss_weights
from ..files import to_json
from ..model import unet_apply, unet_shapes
from ..processes import agree
from ..runtime import program
from .checkpoint import checkpoints, latest_step, save_checkpoint, seal
from .directory import only_one, open_directory, resumable_step
from .halt import Stopped, any_process, exploded, stop_signals
from .journal import Metrics, journal
from .prepare import (
    count_parameters,
    device_batches,
    open_data,
    prepare_state,
    prepare_step,
    run_mesh,
)
from .preview import Draw, finish, make_draw, save_preview
from .quality import described, judge, make_quality
from .state import TrainState, learning_rate
from .step import Step
from .tracker import Tracker, require_tracker, tracking
from .validation import make_validation


def train(config: Config, console: Console) -> None:
    """Start or resume the run of a configuration.

    A ValueError reports settings that are out of range or differ from the run's, missing or damaged
    files, failed writes, and a diverged loss.
    """
    config.check()
    require_tracker(config)
    agree(config)
    console = console if jax.process_index() == 0 else Console(quiet=True)
    mesh, out = run_mesh(config), Path(config.out)
    saved = resumable_step(config, out)
    data = open_data(config, saved)
    with only_one(out):
        if resumable_step(config, out) != saved:
            raise ValueError(f"{out} was trained by another process meanwhile; start again.")
        drawn = not config.train.sample_every or (out / "samples.png").exists()
        if saved == config.train.steps and drawn:
            console.print(f"{out} is finished at step {saved}; give more --train.steps to go on")
        else:
            _train(config, mesh, saved, *data, console)


def _train(
    config: Config, mesh: Mesh, saved: int | None, dataset: Dataset, held_out: Dataset | None,
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
    open_directory(config, dataset, held_out, saved or 0)
    flip = mirrors(config.data.flip, dataset)
    step, draw = prepare_step(config, weights, shardings, flip=flip), make_draw(config)
    validate = None
    if held_out:
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
            # The host is one step ahead of the devices: enough that they never wait for it, and
            # few enough steps to wait for after a signal.
            jax.block_until_ready(window[-1:])
            window.append(metrics)
            due = _due(settings, done)
            halt = any_process(stop, due.log)
            save = due.save or halt
            if due.log or save:
                window = jax.device_get(window)
                _check_losses(window, done, config, manager)
            start = time.perf_counter()
            # After a signal the state is saved first, and nothing else is done.
            judged = {} if halt else judged_by(state.ema, save, due.quality)
            if due.quality:  # a signal ends the judging
                halt = any_process(stop, True)
                save = save or halt
            pause += time.perf_counter() - start
            if due.log:
                report(done, window, pause, judged)
                window, pause = [], 0.0
            start = time.perf_counter()
            if save:
                save_checkpoint(manager, state, config, judged)
            halt = halt or any_process(stop, False)
            if due.preview and not halt:
                path = out / "samples" / f"step_{done:07d}.png"
                with contextlib.suppress(Stopped):
                    save_preview(draw(state.ema, settings.sample_images, stop), path, console)
                    tracker.show(done, path)
            pause += time.perf_counter() - start
            if halt and save:
                break
    return state


class Due(NamedTuple):
    """What is done after a step, unless a signal came."""

    quality: bool
    log: bool
    save: bool
    preview: bool


def _due(settings: TrainConfig, done: int) -> Due:
    last = done == settings.steps

    def every(steps: int) -> bool:
        return steps > 0 and done % steps == 0

    quality = settings.evaluate_every > 0 and (last or every(settings.evaluate_every))
    return Due(
        quality=quality,
        log=last or quality or every(settings.log_every),
        save=last or every(settings.checkpoint_every),
        preview=every(settings.sample_every),
    )


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
    run_mesh(config)
    dataset, _ = open_data(config, resumable_step(config, Path(config.out)), prepare=False)
    console.print_json(to_json(dataclasses.asdict(config)))
    console.print(f"parameters: {count_parameters(unet_shapes(config.model)):,}")
    size, batch = f"{dataset.size:,}", (config.train.batch_size, *dataset.shape)
    console.print(
        f"data: {dataset.name}, {size} images of shape {dataset.shape}; batches {batch} in [-1, 1]",
        *about(dataset, mirrors(config.data.flip, dataset)),
        sep="\n",
    )
