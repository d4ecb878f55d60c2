"""Images a second of a network, forward, sampling and training, and what its programs take to compile."""

import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.compilation_cache import compilation_cache

from ..config import Config
from ..devices import batch_sharding, make_mesh, replicated
from ..diffusion.reverse import step_table
from ..diffusion.sampling import image_keys, initial_noise
from ..diffusion.sigmas import eta
from ..diffusion.timesteps import uniform_timesteps
from ..generation import make_sampler
from ..model import build_unet, save_diffusers, unet_apply
from ..training.loop import prepare_state, prepare_step
from .peer import Peer
from .rounds import Row, in_turn, matmul_rate, median_ratio, seconds

STEPS = 10  # S of the samples


def bench_network(config: Config, rounds: int, ask: Peer | None) -> list[Row]:
    """Forward, sampling and training of a network with random weights; with a peer, the same work by it, in turn.

    Raises:
        RuntimeError: the peer's images or gradients are not ours.
    """
    # No layer starts at zero, so that a difference between two networks shows.
    config = replace(
        config,
        model=replace(config.model, zero_init=False),
        train=replace(config.train, decay="constant"),
    )
    size, shape, alpha_bar = (
        config.train.batch_size,
        config.model.image_shape(),
        config.diffusion.alpha_bar(),
    )
    mesh = make_mesh(size)
    apply, params = build_unet(config.model, 0)
    params = jax.device_put(params, replicated(mesh))
    keys = image_keys(0, np.arange(size))
    key_data, x_T = np.asarray(jax.random.key_data(keys)), np.asarray(initial_noise(keys, shape))
    t = np.arange(size, dtype=np.int32) * (config.diffusion.num_steps // size)
    table = step_table(alpha_bar, uniform_timesteps(config.diffusion.num_steps, STEPS), eta(0.0))
    x, times = jax.device_put((x_T, t), batch_sharding(mesh))
    forward = jax.jit(apply)
    state, shardings = prepare_state(config, mesh, Path("no run"), None)
    arguments = (params, table, key_data, None, np.float32(1))
    sampler, sampler_rows = _compile(
        "sampler", lambda: make_sampler(apply, alpha_bar, shape, mesh), *arguments
    )
    step, step_rows = _compile(
        "train step", lambda: prepare_step(config, alpha_bar, None, shardings, flip=True), state, x
    )
    many = 5 if shape[0] == 8 else 1  # calls in a measurement

    def draw() -> Any:
        return sampler(*arguments)

    def train() -> Any:
        nonlocal state
        state, metrics = step(state, x)
        return metrics

    def average(call: Callable[[], Any]) -> float:
        return seconds(lambda: [call() for _ in range(many)]) / many

    ours: dict[str, Callable[[], float]] = {
        "forward": lambda: average(lambda: forward(params, x, times)),
        f"sampling, S={STEPS}": lambda: seconds(draw),
        "training": lambda: average(train),
    }
    theirs: dict[str, Callable[[], float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        if ask is not None:
            where = Path(folder)
            save_diffusers(where / "weights", config.model, params)
            np.savez(
                where / "data.npz",
                x=x_T.transpose(0, 3, 1, 2),
                t=t,
                noise=x_T[::-1].transpose(0, 3, 1, 2),
            )
            ask("load", folder=where / "weights")
            _check_images(np.asarray(draw()), where, ask)
            _check_gradient(config, params, x_T, t, where, ask)
            theirs = {"forward": lambda: ask("forward", file=where / "data.npz", count=many)["seconds"],
                      f"sampling, S={STEPS}": lambda: ask("sample", file=where / "data.npz", steps=STEPS)["seconds"],
                      "training": lambda: ask("train", file=where / "data.npz", steps=many)["seconds"]}  # fmt: skip
        rows = []
        for name, side in ours.items():
            times_of = in_turn(rounds, side, *([theirs[name]] if theirs else []))
            rate = size / float(np.median(times_of[0]))
            peer = size / float(np.median(times_of[1])) if theirs else None
            rows.append(
                Row(
                    name,
                    rate,
                    "images/s",
                    peer,
                    median_ratio(times_of[1], times_of[0]) if theirs else None,
                )
            )
    flops: Any = forward.lower(params, x, times).cost_analysis()
    machine = matmul_rate()
    achieved = flops["flops"] / size * rows[0].value
    return [*rows, Row("forward", achieved / 1e9, "GFLOP/s"), Row("forward ÷ matrix products", achieved / machine, ""),
            *sampler_rows, *step_rows]  # fmt: skip


def _check_images(ours: np.ndarray, where: Path, ask: Peer) -> None:
    ask("sample", file=where / "data.npz", steps=STEPS, out=where / "images.npy")
    _check_equal("images", ours, np.load(where / "images.npy").transpose(0, 2, 3, 1))


def _check_gradient(
    config: Config, params: Any, x: np.ndarray, t: np.ndarray, where: Path, ask: Peer
) -> None:
    """The gradient of an ε-MSE in the first convolution, where the gradients of all layers meet."""
    apply = unet_apply(config.model, to_train=True)
    gradient = jax.jit(jax.grad(lambda params: jnp.mean((apply(params, x, t) - x[::-1]) ** 2)))(
        params
    )
    ask("gradient", file=where / "data.npz", out=where / "gradient.npy")
    _check_equal(
        "gradient",
        np.asarray(gradient["conv_in"]["kernel"]),
        np.load(where / "gradient.npy").transpose(2, 3, 1, 0),
    )


def _check_equal(what: str, ours: np.ndarray, theirs: np.ndarray) -> None:
    difference = np.abs(ours - theirs).max() / np.abs(theirs).max()
    if not difference < 1e-3:
        raise RuntimeError(
            f"{what}: we and diffusers differ by {difference:.1e} of the largest value; nothing was timed."
        )


def _compile(name: str, make: Callable[[], Any], *arguments: Any) -> tuple[Any, list[Row]]:
    """The compiled function, and the seconds of tracing, of compilation, and of compilation out of the persistent cache."""
    before = jax.config.jax_compilation_cache_dir  # type: ignore[attr-defined]
    with tempfile.TemporaryDirectory() as folder:
        jax.config.update("jax_compilation_cache_dir", folder)
        compilation_cache.reset_cache()
        times = []
        for _ in range(2):  # cold, then cached
            jax.clear_caches()
            start = time.perf_counter()
            lowered = make().lower(*arguments)
            traced = time.perf_counter()
            compiled = lowered.compile()
            times.append((traced - start, time.perf_counter() - traced))
        jax.config.update("jax_compilation_cache_dir", before)
        compilation_cache.reset_cache()
    (trace, cold), (_, cached) = times
    return compiled, [Row(f"{name}: tracing", trace, "s"), Row(f"{name}: compiling", cold, "s"),
                      Row(f"{name}: compiled, from cache", cached, "s")]  # fmt: skip
