"""Images per second of a network (forward, sampling, training) and the time to compile it."""

import sys
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

import ddim_jax as ddim
from ddim_jax.config import Config
from ddim_jax.devices import batch_sharding, make_mesh, replicated
from ddim_jax.model import build_unet, save_diffusers, unet_apply
from ddim_jax.sampler import Batch, Plan, conditional, make_sampler
from ddim_jax.training.prepare import prepare_state, prepare_step

from .peer import Peer
from .rounds import Row, in_turn, matmul_rate, median_ratio, seconds

STEPS = 10  # S of the samples
TOLERANCE = 1e-3  # of the largest value, between the sides
SAMPLING = f"sampling, S={STEPS}"
Sides = dict[str, Callable[[], float]]


def bench_network(config: Config, rounds: int, ask: Peer | None) -> list[Row]:
    """A network with random weights, in --train.dtype; with a peer, both do the same work in turn.

    RuntimeError, before anything is timed, if the peer's images differ from ours. If only its
    gradient does, training is not compared.
    """
    config = without_zeros(config)
    model, dtype = config.model, config.train.dtype
    size, shape = config.train.batch_size, model.image_shape()
    alpha_bar, T = config.diffusion.alpha_bar(), config.diffusion.num_steps
    mesh = make_mesh(size)
    apply, params = unet_apply(model, dtype), build_unet(model, 0)[1]
    params = jax.device_put(params, replicated(mesh))
    keys = ddim.image_keys(0, np.arange(size))
    x_T = np.asarray(ddim.initial_noise(keys, shape))
    t = np.arange(size, dtype=np.int32) * (T // size)
    x, times = jax.device_put((x_T, t), batch_sharding(mesh))
    table = ddim.step_table(alpha_bar, ddim.uniform_timesteps(T, STEPS), ddim.eta(0.0))
    batch = Batch(np.arange(size, dtype=np.uint32))
    arguments = (params, batch, Plan(table, np.uint32(0)))
    denoise = conditional(apply, alpha_bar)
    state, shardings = prepare_state(config, mesh, Path("no run"), None)
    forward = jax.jit(apply)
    sampler, _, sampler_rows = _compile(
        "sampler", lambda: make_sampler(denoise, shape, mesh), *arguments
    )
    step, step_flops, step_rows = _compile(
        "train step", lambda: prepare_step(config, None, shardings, flip=True), state, x
    )
    calls = 5 if shape[0] == 8 or jax.default_backend() != "cpu" else 1  # without waiting

    def call() -> Any:
        return [forward(params, x, times) for _ in range(calls)]

    def train() -> Any:
        nonlocal state
        for _ in range(calls):
            state, metrics = step(state, x)
        return metrics

    ours: Sides = {
        "forward": lambda: seconds(call) / calls,
        SAMPLING: lambda: seconds(lambda: sampler(*arguments)),
        "training": lambda: seconds(train) / calls,
    }
    with tempfile.TemporaryDirectory() as folder:
        theirs: Sides = {}
        if ask is not None:
            images = np.asarray(sampler(*arguments))
            theirs = peer_sides(config, params, x_T, t, images, calls, Path(folder), ask)
        rows = [_row(name, size, rounds, ours[name], theirs.get(name)) for name in ours]
    peak = matmul_rate(dtype)
    cost: Any = forward.lower(params, x, times).cost_analysis()
    for row, flops in ((rows[0], cost["flops"]), (rows[2], step_flops)):
        achieved = flops / size * row.value
        rows.append(Row(row.measure, achieved / 1e9, "GFLOP/s"))
        rows.append(Row(f"{row.measure} ÷ {dtype} matrix products", achieved / peak, ""))
    return rows + sampler_rows + step_rows


def without_zeros(config: Config) -> Config:
    """No layer starts at zero, so that a difference between two networks shows."""
    model = replace(config.model, zero_init=False)
    return replace(config, model=model, train=replace(config.train, decay="constant"))


def _row(
    name: str, size: int, rounds: int, ours: Callable[[], float], theirs: Callable[[], float] | None
) -> Row:
    """Images per second of one side, or of two and the ratio."""
    times = in_turn(rounds, *([ours, theirs] if theirs else [ours]))
    rates = [size / float(np.median(side)) for side in times]
    if theirs is None:
        return Row(name, rates[0], "images/s")
    return Row(name, rates[0], "images/s", rates[1], median_ratio(times[1], times[0]))


def peer_sides(
    config: Config,
    params: Any,
    x_T: np.ndarray,
    t: np.ndarray,
    images: np.ndarray,
    calls: int,
    folder: Path,
    ask: Peer,
) -> Sides:
    """The peer's work that is right: its images equal ours, and for training its gradient."""
    data = load_peer(config, params, x_T, t, folder, ask)[0]
    file = folder / "images.npy"
    ask("sample", file=data, steps=STEPS, out=file)
    difference = _difference(images, np.load(file).transpose(0, 2, 3, 1))
    if not difference < TOLERANCE:
        raise RuntimeError(
            f"images: we and diffusers differ by {difference:.1e} of the largest value; "
            "nothing was timed."
        )

    # The gradient of an ε-MSE in the first convolution, to which all layers contribute.
    apply = unet_apply(config.model, to_train=True)

    def loss(params: Any) -> Any:
        return jnp.mean((apply(params, jnp.asarray(x_T), jnp.asarray(t)) - x_T[::-1]) ** 2)

    gradient = np.asarray(jax.jit(jax.grad(loss))(params)["conv_in"]["kernel"])
    file = folder / "gradient.npy"
    ask("gradient", file=data, out=file)
    sides: Sides = {
        "forward": lambda: ask("forward", file=data, count=calls)["seconds"],
        SAMPLING: lambda: ask("sample", file=data, steps=STEPS)["seconds"],
    }
    difference = _difference(gradient, np.load(file).transpose(2, 3, 1, 0))
    if difference < TOLERANCE:
        sides["training"] = lambda: ask("train", file=data, steps=calls)["seconds"]
    else:  # torch.compile has computed wrong ones
        message = f"gradient: we and diffusers differ by {difference:.1e} of the largest value"
        print(f"{message}; training is not compared.", file=sys.stderr)
    return sides


def load_peer(
    config: Config, params: Any, x_T: np.ndarray, t: np.ndarray, folder: Path, ask: Peer
) -> tuple[Path, int]:
    """Give the peer our weights; a file with its images, times and noise, and its process."""
    data, nchw = folder / "data.npz", x_T.transpose(0, 3, 1, 2)
    save_diffusers(folder / "weights", config.model, params)
    np.savez(data, x=nchw, t=t, noise=nchw[::-1])
    return data, ask("load", folder=folder / "weights").get("process", 0)


def _difference(ours: np.ndarray, theirs: np.ndarray) -> float:
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


def _compile(name: str, make: Callable[[], Any], *arguments: Any) -> tuple[Any, float, list[Row]]:
    """The compiled function; its FLOPs; seconds to trace it, to compile it, to load it again."""
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
    return (
        compiled,
        lowered.cost_analysis()["flops"],
        [
            Row(f"{name}: tracing", trace, "s"),
            Row(f"{name}: compiling", cold, "s"),
            Row(f"{name}: compiled, from cache", cached, "s"),
        ],
    )
