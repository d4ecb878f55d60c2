"""Training from a configuration to a run directory.

    RUN/config.json  metrics.jsonl  checkpoints/  samples/step_*.png  samples.png

The state that goes from step to step is TrainState alone: the batch, the noise and the learning rate of a step follow
from the seed and the step number, so a run that continues from a checkpoint repeats what one never stopped would do.
Every process of a job runs this; the first one writes and prints, checkpoints are written by all.
"""

import contextlib
import math
import shlex
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from rich.console import Console

from ..config import Config, differences, save_config
from ..data import Dataset, batches, load_dataset
from ..devices import (
    batch_sharding,
    describe,
    full_batch,
    make_mesh,
    process_rows,
    replicated,
    state_shardings,
    to_global,
)
from ..diffusion.reverse import step_table
from ..diffusion.sigmas import eta
from ..diffusion.timesteps import uniform_timesteps
from ..generation import generate, make_sampler
from ..images import save_grid, to_uint8, to_unit_range
from ..metrics import frechet_distance
from ..model import build_unet, unet_apply, unet_shapes
from .checkpoint import (
    checkpoints,
    latest_step,
    load_run_config,
    restore_state,
    save_checkpoint,
    seal,
)
from .journal import Metrics, journal, keep_metrics
from .loss import loss_weights
from .state import TrainState, initial_state, make_optimizer
from .step import Step, make_train_step
from .validation import make_validation

# Fields that may change when a run continues: none of them alters what a training step computes, but for rounding.
_FREE = {"out", "data.data-dir", "data.archive", "data.archive-sha256", "mesh.data", "mesh.fsdp"} | {
    f"train.{name}" for name in
    ("log-every", "sample-every", "sample-images", "sample-steps", "evaluate-images", "checkpoint-every", "keep-checkpoints",
     "validate-images", "max-loss", "remat")
}  # fmt: skip

Draw = Callable[[Any, int], np.ndarray]
Validate = Callable[[Any], float]


def train(config: Config, console: Console) -> None:
    """Train, or go on with, the run of a configuration.

    Args:
        config: the run; `config.out` is its directory.
        console: where progress goes.

    Raises:
        ValueError: a configuration out of range or other than the run's, data that cannot be read, a damaged checkpoint, a
            checkpoint that cannot be written, a loss that is not finite or has exploded.
    """
    config.check()
    console = console if jax.process_index() == 0 else Console(quiet=True)
    out, settings = Path(config.out), config.train
    mesh = make_mesh(settings.batch_size // settings.accumulate, config.mesh.data, config.mesh.fsdp)
    saved = _resumable_step(config, out)
    dataset = load_dataset(config.data, config.model.image_shape())
    _check_classes(config, dataset)
    alpha_bar = config.diffusion.alpha_bar()
    weights = loss_weights(alpha_bar, config.diffusion.prediction, settings.loss_weight,
                           min_snr_gamma=settings.min_snr_gamma, gamma_eta=settings.gamma_eta)  # fmt: skip
    apply = unet_apply(config.model)
    state, shardings = prepare_state(config, mesh, out, saved)
    if saved is not None:
        console.print(f"{out} goes on from step {saved}")
    _open_directory(config, out, saved or 0)
    step = prepare_step(
        config, alpha_bar, weights, shardings, flip=config.data.flip and dataset.flippable
    )
    draw = _make_draw(config, apply, alpha_bar)
    validate = (
        make_validation(config, apply, alpha_bar, weights, dataset, mesh)
        if settings.validate_images
        else None
    )
    console.print(
        f"{dataset.name}: {dataset.size:,} images {dataset.shape}; {count_parameters(state.params):,} parameters; "
        f"{mesh.size} of {describe()}; {settings.steps:,} steps of {settings.batch_size}",
    )
    with _stop_signals() as stop, jax.default_matmul_precision(settings.matmul_precision):
        stream = device_batches(config, dataset, mesh, saved or 0)
        state = _run(config, state, step, stream, draw, validate, stop, console)
    if int(state.step) < settings.steps:
        console.print(
            f"stopped at step {int(state.step)} of {settings.steps}; checkpoint saved. Continue with:"
        )
        console.print(f"  python train.py {shlex.quote(str(out / 'config.json'))}")
        return
    _finish(config, out, state, dataset, draw, console)


def prepare_state(
    config: Config, mesh: Mesh, out: Path, saved: int | None
) -> tuple[TrainState, TrainState]:
    """The state to start from, restored or new, each array where it belongs; and where that is."""
    optimizer = make_optimizer(config.train)

    def init() -> TrainState:
        return initial_state(build_unet(config.model, config.seed)[1], optimizer)

    shapes = jax.eval_shape(
        lambda params: initial_state(params, optimizer), unet_shapes(config.model)
    )
    shardings = state_shardings(shapes, mesh)
    if saved is None:
        return jax.jit(init, out_shardings=shardings)(), shardings
    template = jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
        shapes,
        shardings,
    )
    return restore_state(out, saved, template), shardings


def prepare_step(
    config: Config, alpha_bar: np.ndarray, weights: np.ndarray | None, shardings: Any, *, flip: bool
) -> Step:
    """The train step of a configuration."""
    settings = config.train
    return make_train_step(
        unet_apply(config.model, settings.dtype, settings.remat, to_train=True),
        make_optimizer(settings),
        alpha_bar,
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
    """(x_0, label or None) of every step from `start` on, on the devices: two batches ahead of the step that runs."""
    size, split = config.train.batch_size, batch_sharding(mesh)
    local = batches(dataset, size, config.seed, start, process_rows(size))
    stream = (
        to_global((x_0, label if config.model.num_classes else None), split) for x_0, label in local
    )
    ahead = deque(islice(stream, 2))
    while ahead:
        yield ahead.popleft()
        ahead.extend(islice(stream, 1))


def _check_classes(config: Config, dataset: Dataset) -> None:
    asked, there = config.model.num_classes, len(dataset.classes)
    if asked and asked != there:
        raise ValueError(
            f"--model.num-classes is {asked}, and {dataset.name} has {there or 'no'} classes; "
            f"use {f'{there}, or ' if there else ''}0 for an unconditional model."
        )


def _open_directory(config: Config, out: Path, start: int) -> None:
    """Make the run directory, write the configuration, and drop what will be logged again."""
    if jax.process_index():
        return
    try:
        out.mkdir(parents=True, exist_ok=True)
        save_config(config, out / "config.json")
        keep_metrics(out / "metrics.jsonl", start)
    except OSError as error:
        problem = f"{error.filename} cannot be written ({error.strerror})"
        raise ValueError(f"--out is {out}, and {problem}; choose another place.") from error


def _run(
    config: Config,
    state: TrainState,
    step: Step,
    stream: Iterator[tuple[Any, Any]],
    draw: Draw,
    validate: Validate | None,
    stop: threading.Event,
    console: Console,
) -> TrainState:
    """Step until the end or a signal; log, judge, save and draw on the way."""
    out, settings = Path(config.out), config.train
    window: list[Metrics] = []
    pause = (
        0.0  # seconds since the last report that went into compiling, judging, saving and drawing
    )
    first = int(state.step) + 1
    log_file = None if jax.process_index() else out / "metrics.jsonl"
    with (
        checkpoints(out, settings.keep_checkpoints) as manager,
        journal(log_file, settings.steps, settings.batch_size, first - 1, console) as report,
    ):
        for done, batch in enumerate(stream, first):
            if done > settings.steps:
                break
            start = time.perf_counter()
            state, metrics = step(state, *batch)
            if done == first:  # the call returns once it is compiled; it runs in the background
                pause = time.perf_counter() - start
            window.append(metrics)
            # The host reads from the device only where something is due; in between it runs ahead.
            last = done == settings.steps
            log, save = (
                last or done % every == 0
                for every in (settings.log_every, settings.checkpoint_every)
            )
            halt = _any_process(stop, log)
            if log or save or halt:
                window = jax.device_get(window)
                _check_losses(window, done, config, manager)
            start = time.perf_counter()
            judged = validate(state.ema) if validate and (save or halt) else None
            pause += time.perf_counter() - start
            if log:
                report(done, window, pause, judged)
                window, pause = [], 0.0
            start = time.perf_counter()
            if save or halt:
                save_checkpoint(manager, state, config, judged)
            if settings.sample_every and done % settings.sample_every == 0:
                _save_grid(
                    draw(state.ema, settings.sample_images),
                    out / "samples" / f"step_{done:07d}.png",
                )
            pause += time.perf_counter() - start
            if halt:
                break
    return state


def _finish(
    config: Config, out: Path, state: TrainState, dataset: Dataset, draw: Draw, console: Console
) -> None:
    """The last grid, and the Fréchet distance of raw pixels."""
    count = config.train.evaluate_images
    images = draw(state.ema, max(count, config.train.sample_images))
    _save_grid(images[: config.train.sample_images], out / "samples.png")
    console.print(f"trained to step {int(state.step)}; samples in {out / 'samples.png'}")
    if count and jax.process_index() == 0:
        real = to_unit_range(dataset.read(np.arange(dataset.size)))
        fake = to_unit_range(images[:count])
        distance = frechet_distance(real.reshape(len(real), -1), fake.reshape(len(fake), -1))
        console.print(
            f"Fréchet distance, pixels in [-1, 1], {fake[0].size} dimensions, n={count:,} against {len(real):,} train images, "
            f"S={config.train.sample_steps}, eta=0: {distance:.3f}",
        )
    console.print(f"sample with: python sample.py generate {shlex.quote(str(out))}")


def _save_grid(images: np.ndarray, path: Path) -> None:
    if jax.process_index() == 0:
        save_grid(images, path)


def count_parameters(params: Any) -> int:
    """The number of scalars in a pytree.

    >>> count_parameters({"a": np.zeros((2, 3)), "b": [np.zeros(4)]})
    10
    """
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))


def _resumable_step(config: Config, out: Path) -> int | None:
    """The step to go on from, None for a new run."""
    if latest_step(out) is None:
        return None
    saved, step = load_run_config(out)
    free = _FREE | ({"train.steps"} if config.train.decay == "constant" else set())
    for flag, (there, here) in differences(saved, config).items():
        # At step 0, where imported weights are, everything is open that does not say what the weights are.
        if flag not in free and (step or flag.startswith(("model.", "diffusion."))):
            raise ValueError(
                f"{out} holds checkpoints of another configuration: --{flag} was {there} there and is {here} now; "
                f"use the old value to continue, or another --out to start anew."
            )
    if step > config.train.steps:
        raise ValueError(
            f"{out} is already at step {step}; --train.steps is {config.train.steps}: give more steps, or another --out."
        )
    return step


def _make_draw(config: Config, apply: Callable[..., Any], alpha_bar: np.ndarray) -> Draw:
    """draw(params, count) → uint8 images, always from the same noise, through all classes in turn; compiled once."""
    settings = config.train
    table = step_table(
        alpha_bar, uniform_timesteps(config.diffusion.num_steps, settings.sample_steps), eta(0.0)
    )
    size = full_batch(settings.sample_images)
    mesh = make_mesh(size)
    sampler = make_sampler(
        apply, alpha_bar, config.model.image_shape(), mesh, kind=config.diffusion.prediction
    )
    labels = tuple(range(config.model.num_classes))

    def draw(params: Any, count: int) -> np.ndarray:
        params = jax.device_put(params, replicated(mesh))
        parts = generate(
            sampler, params, table, seed=config.seed, count=count, batch_size=size, labels=labels
        )
        return np.concatenate([to_uint8(part) for part in parts])

    return draw


def _check_losses(window: list[Metrics], done: int, config: Config, manager: Any) -> None:
    """Raise ValueError at the first step that is not finite or whose loss has exploded; nothing is saved after it."""
    for step, metrics in enumerate(window, done - len(window) + 1):
        for name, value in metrics.items():
            if not np.isfinite(value) or (name == "loss" and value > config.train.max_loss):
                seal(manager)
                good = latest_step(Path(config.out))
                kept = (
                    "no checkpoint was saved before it"
                    if good is None
                    else f"the checkpoint of step {good} is good"
                )
                limit = (
                    f", above --train.max-loss ({config.train.max_loss:g})"
                    if np.isfinite(value)
                    else ""
                )
                raise ValueError(
                    f"the {name.replace('_', ' ')} is {value:g} at step {step}{limit}; {kept}; "
                    f"lower --train.learning-rate ({config.train.learning_rate:g}) or --train.clip-norm "
                    f"({config.train.clip_norm:g}) in a new --out."
                )


def _any_process(stop: threading.Event, now: bool) -> bool:
    """Whether to halt after this step: all processes at the same one, so several ask each other where they log anyway."""
    if jax.process_count() == 1:
        return stop.is_set()
    return now and bool(multihost_utils.process_allgather(np.array(stop.is_set())).any())


@contextlib.contextmanager
def _stop_signals() -> Iterator[threading.Event]:
    """An event that Ctrl-C or SIGTERM sets; a second signal acts as it always did."""
    stop = threading.Event()
    before: dict[int, Any] = {}

    def handle(number: int, _: Any) -> None:
        stop.set()
        signal.signal(number, before[number])

    try:
        if (
            threading.current_thread() is threading.main_thread()
        ):  # Python delivers signals to no other
            for number in (signal.SIGINT, signal.SIGTERM):
                before[number] = signal.signal(number, handle)
        yield stop
    finally:
        for known, handler in before.items():
            signal.signal(known, handler)
