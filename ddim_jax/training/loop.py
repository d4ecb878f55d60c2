"""Training from a configuration to a run directory.

    RUN/config.json  metrics.jsonl  checkpoints/  samples/step_*.png  samples.png

The state that goes from step to step is TrainState alone: the batch, the noise and the learning rate of a step follow
from the seed and the step number, so a run that continues from a checkpoint repeats what one never stopped would do.
"""

import contextlib
import json
import math
import shlex
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from ..config import Config, differences, save_config
from ..data import Dataset, batches, load_dataset
from ..devices import batch_sharding, data_mesh, describe, replicated
from ..diffusion.reverse import step_table
from ..diffusion.sigmas import eta
from ..diffusion.timesteps import uniform_timesteps
from ..generation import generate, make_sampler
from ..images import save_grid, to_uint8, to_unit_range
from ..metrics import frechet_distance
from ..model import build_unet
from .checkpoint import checkpoints, latest_step, load_run_config, restore_state, save_checkpoint, seal
from .state import TrainState, initial_state, make_optimizer
from .step import make_train_step

# Fields that may change when a run continues: none of them alters what a training step computes.
_FREE = {"out", "data.data-dir", "data.archive", "data.archive-sha256"} | {
    f"train.{name}-{what}" for name, what in
    [("log", "every"), ("sample", "every"), ("sample", "images"), ("sample", "steps"), ("evaluate", "images"),
     ("checkpoint", "every"), ("keep", "checkpoints")]
}  # fmt: skip

Metrics = dict[str, Any]
Draw = Callable[[Any, int], np.ndarray]


def train(config: Config, console: Console) -> None:
    """Train, or go on with, the run of a configuration.

    Args:
        config: the run; `config.out` is its directory.
        console: where progress goes.

    Raises:
        ValueError: a configuration out of range or other than the run's, data that cannot be read, a damaged checkpoint, a
            loss that is not finite.
    """
    config.check()
    out = Path(config.out)
    start = _resumable_step(config, out)
    dataset = load_dataset(config.data, config.model.image_shape())
    apply, params = build_unet(config.model, config.seed)
    optimizer, alpha_bar = make_optimizer(config.train), config.diffusion.alpha_bar()
    mesh = data_mesh(config.train.batch_size)
    state = jax.device_put(initial_state(params, optimizer), replicated(mesh))
    if start:
        state = restore_state(out, start, state)
        console.print(f"{out} goes on from step {start}")
    _open_directory(config, out, start)
    step = make_train_step(
        apply,
        optimizer,
        alpha_bar,
        seed=config.seed,
        ema_decay=config.train.ema_decay,
        flip=config.data.flip and dataset.flippable,
    )
    draw = _make_draw(config, apply, alpha_bar)
    console.print(
        f"{dataset.name}: {dataset.size:,} images {dataset.shape}; {count_parameters(params):,} parameters; "
        f"{mesh.size} of {describe()}; {config.train.steps:,} steps of {config.train.batch_size}",
    )
    with _stop_signals() as stop, jax.default_matmul_precision(config.train.matmul_precision):
        split = batch_sharding(mesh)
        stream = (jax.device_put(x_0, split) for x_0 in batches(dataset, config.train.batch_size, config.seed, start))
        state = _run(config, state, step, stream, draw, stop, console)
    if int(state.step) < config.train.steps:
        console.print(f"stopped at step {int(state.step)} of {config.train.steps}; checkpoint saved. Continue with:")
        console.print(f"  python train.py {shlex.quote(str(out / 'config.json'))}")
        return
    _finish(config, out, state, dataset, draw, console)


def _open_directory(config: Config, out: Path, start: int) -> None:
    """Make the run directory, write the configuration, and drop what will be logged again."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        save_config(config, out / "config.json")
        _keep_metrics(out / "metrics.jsonl", start)
    except OSError as error:
        problem = f"{error.filename} cannot be written ({error.strerror})"
        raise ValueError(f"--out is {out}, and {problem}; choose another place.") from error


def _run(
    config: Config, state: TrainState, step: Any, stream: Iterator[Any], draw: Draw, stop: threading.Event, console: Console
) -> TrainState:
    """Step until the end or a signal; log, draw and save on the way."""
    out, settings = Path(config.out), config.train
    window: list[Metrics] = []
    pause = 0.0  # seconds since the last report that went into compiling, drawing and saving
    first = int(state.step) + 1
    with checkpoints(out, settings.keep_checkpoints) as manager, _progress(config, first - 1, console) as report:
        for done, x_0 in enumerate(stream, first):
            if done > settings.steps:
                break
            start = time.perf_counter()
            state, metrics = step(state, x_0)
            if done == first:  # the call returns once it is compiled; it runs in the background
                pause = time.perf_counter() - start
            window.append(metrics)
            last, halt = done == settings.steps, stop.is_set()
            # The host reads from the device only where something is due; in between it runs ahead.
            log, save = (last or done % every == 0 for every in (settings.log_every, settings.checkpoint_every))
            if log or save or halt:
                window = jax.device_get(window)
                _check_finite(window, done, config, manager)
            if log:
                report(done, window, pause)
                window, pause = [], 0.0
            start = time.perf_counter()
            if save or halt:
                save_checkpoint(manager, state, config)
            if settings.sample_every and done % settings.sample_every == 0:
                save_grid(draw(state.ema, settings.sample_images), out / "samples" / f"step_{done:07d}.png")
            pause += time.perf_counter() - start
            if halt:
                break
    return state


def _finish(config: Config, out: Path, state: TrainState, dataset: Dataset, draw: Draw, console: Console) -> None:
    """The last grid, and the Fréchet distance of raw pixels."""
    count = config.train.evaluate_images
    images = draw(state.ema, max(count, config.train.sample_images))
    save_grid(images[: config.train.sample_images], out / "samples.png")
    console.print(f"trained to step {int(state.step)}; samples in {out / 'samples.png'}")
    if count:
        real = to_unit_range(dataset.read(np.arange(dataset.size)))
        fake = to_unit_range(images[:count])
        distance = frechet_distance(real.reshape(len(real), -1), fake.reshape(len(fake), -1))
        console.print(
            f"Fréchet distance, pixels in [-1, 1], {fake[0].size} dimensions, n={count:,} against {len(real):,} train images, "
            f"S={config.train.sample_steps}, eta=0: {distance:.3f}",
        )
    console.print(f"sample with: python sample.py generate {shlex.quote(str(out))}")


def count_parameters(params: Any) -> int:
    """The number of scalars in a pytree.

    >>> count_parameters({"a": np.zeros((2, 3)), "b": [np.zeros(4)]})
    10
    """
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))


def _resumable_step(config: Config, out: Path) -> int:
    """The step to go on from, 0 for a new run."""
    if latest_step(out) is None:
        return 0
    saved, step = load_run_config(out)
    free = _FREE | ({"train.steps"} if config.train.decay == "constant" else set())
    for flag, (there, here) in differences(saved, config).items():
        if flag not in free:
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
    """draw(params, count) → uint8 images, always from the same noise; compiled once."""
    settings = config.train
    table = step_table(alpha_bar, uniform_timesteps(config.diffusion.num_steps, settings.sample_steps), eta(0.0))
    sampler = make_sampler(apply, alpha_bar, config.model.image_shape(), data_mesh(settings.sample_images))

    def draw(params: Any, count: int) -> np.ndarray:
        parts = generate(sampler, params, table, seed=config.seed, count=count, batch_size=settings.sample_images)
        return np.concatenate([to_uint8(part) for part in parts])

    return draw


def _check_finite(window: list[Metrics], done: int, config: Config, manager: Any) -> None:
    """Raise ValueError at the first step whose loss or gradient is not finite; nothing is saved after it."""
    for step, metrics in enumerate(window, done - len(window) + 1):
        for name, value in metrics.items():
            if not np.isfinite(value):
                seal(manager)
                good = latest_step(Path(config.out))
                kept = "no checkpoint was saved before it" if good is None else f"the checkpoint of step {good} is good"
                raise ValueError(
                    f"the {name.replace('_', ' ')} is {value} at step {step}; {kept}; "
                    f"lower --train.learning-rate ({config.train.learning_rate:g}) or --train.clip-norm "
                    f"({config.train.clip_norm:g}) in a new --out."
                )


@contextlib.contextmanager
def _stop_signals() -> Iterator[threading.Event]:
    """An event that Ctrl-C or SIGTERM sets; a second signal acts as it always did."""
    stop = threading.Event()
    before: dict[int, Any] = {}

    def handle(number: int, _: Any) -> None:
        stop.set()
        signal.signal(number, before[number])

    try:
        if threading.current_thread() is threading.main_thread():  # Python delivers signals to no other
            for number in (signal.SIGINT, signal.SIGTERM):
                before[number] = signal.signal(number, handle)
        yield stop
    finally:
        for known, handler in before.items():
            signal.signal(known, handler)


@contextlib.contextmanager
def _progress(config: Config, start: int, console: Console) -> Iterator[Callable[[int, list[Metrics], float], None]]:
    """A live line on a terminal, a line a report elsewhere, and metrics.jsonl."""
    total, mark = config.train.steps, [time.perf_counter(), float(start)]
    columns = (TextColumn("step"), MofNCompleteColumn(), BarColumn(), TextColumn("{task.fields[text]}"))
    with (
        Progress(*columns, console=console, disable=not console.is_terminal) as bar,
        open(Path(config.out) / "metrics.jsonl", "a") as file,
    ):
        task = bar.add_task("train", total=total, completed=start, text="compiling …")

        def report(done: int, window: list[Metrics], pause: float) -> None:
            now = time.perf_counter()
            seconds_a_step = (now - mark[0] - pause) / (done - mark[1])
            mark[:] = [now, done]
            means = {name: float(np.mean([metrics[name] for metrics in window])) for name in window[0]}
            rate = config.train.batch_size / seconds_a_step
            file.write(json.dumps({"step": done, **means, "images_per_second": round(rate, 1)}) + "\n")
            file.flush()
            minutes, seconds = divmod(round(seconds_a_step * (total - done)), 60)
            text = f"loss {means['loss']:.4f}  {rate:,.0f} images/s  {minutes // 60}:{minutes % 60:02d}:{seconds:02d} left"
            bar.update(task, completed=done, text=text)
            if not console.is_terminal:
                console.print(f"step {done}/{total}  {text}")

        yield report


def _keep_metrics(path: Path, start: int) -> None:
    """Drop what a killed run logged after its last checkpoint: it will be logged again."""
    if not path.exists():
        return
    lines = []
    for line in path.read_text().splitlines():
        with contextlib.suppress(json.JSONDecodeError):  # the line that a kill cut off
            if json.loads(line)["step"] <= start:
                lines.append(line)
    partial = path.with_suffix(".partial")
    partial.write_text("".join(line + "\n" for line in lines))
    partial.replace(path)
