"""The memory that sampling and training need in all, each in a process of its own."""

import json
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jax
import numpy as np

import ddim_jax as ddim
from ddim_jax.config import Config, config_from_dict
from ddim_jax.devices import batch_sharding, make_mesh, setup
from ddim_jax.model import build_unet, unet_apply
from ddim_jax.sampler import Batch, Plan, conditional, make_sampler, on_mesh
from ddim_jax.training.prepare import prepare_state, prepare_step

from .machine import in_child, peak_bytes
from .networks import STEPS, load_peer, without_zeros
from .peer import Against, open_peer
from .rounds import Row

WORK = ("sampling", "training")


def bench_peak(config: Config, against: Against) -> list[Row]:
    """The largest memory of a process that does three calls of nothing else, libraries included."""
    config, rows = without_zeros(config), []
    for work in WORK:
        found = in_child("bench.peak", work, json.dumps(asdict(config)))
        theirs = None if against == "nothing" else _of_peer(config, work, against)
        name = f"peak memory of a process, {work}, {config.train.batch_size} images"
        host, peer = found["host"] / 2**20, theirs and theirs / 2**20
        rows.append(Row(name, host, "MiB", peer, peer and peer / host))
        if found["device"]:
            rows.append(Row(f"{name}, on each device", found["device"] / 2**20, "MiB"))
    return rows


def _of_peer(config: Config, work: str, against: Against) -> int:
    size, T = config.train.batch_size, config.diffusion.num_steps
    params = build_unet(config.model, 0)[1]
    x_T = np.asarray(_noise(config))
    t = np.arange(size, dtype=np.int32) * (T // size)
    with tempfile.TemporaryDirectory() as folder, open_peer(against) as ask:
        assert ask is not None
        data, process = load_peer(config, params, x_T, t, Path(folder), ask)
        for _ in range(3):
            ask("sample" if work == "sampling" else "train", file=data, steps=calls_of(work))
        return peak_bytes(process)


def calls_of(work: str) -> int:
    """S of a sample, or the training steps, of one call."""
    return STEPS if work == "sampling" else 1


def _noise(config: Config) -> Any:
    keys = ddim.image_keys(0, np.arange(config.train.batch_size))
    return ddim.initial_noise(keys, config.model.image_shape())


def main(work: str, settings: str) -> None:
    """Do the work three times, and print the peak of the process and of its devices."""
    setup()
    config = config_from_dict(json.loads(settings))
    size, mesh = config.train.batch_size, make_mesh(config.train.batch_size)
    if work == "sampling":
        alpha_bar, shape = config.diffusion.alpha_bar(), config.model.image_shape()
        apply = unet_apply(config.model, config.train.dtype)
        params = on_mesh(build_unet(config.model, 0)[1], mesh)
        sampler = make_sampler(conditional(apply, alpha_bar), shape, mesh)
        tau = ddim.uniform_timesteps(config.diffusion.num_steps, STEPS)
        plan = Plan(ddim.step_table(alpha_bar, tau, ddim.eta(0.0)), np.uint32(0))
        for _ in range(3):
            jax.block_until_ready(sampler(params, Batch(np.arange(size, dtype=np.uint32)), plan))
    else:
        state, shardings = prepare_state(config, mesh, Path("no run"), None)
        step = prepare_step(config, None, shardings, flip=True)
        x = jax.device_put(np.asarray(_noise(config)), batch_sharding(mesh))
        for _ in range(3):
            state, _ = step(state, x)
        jax.block_until_ready(state)
    device = max((d.memory_stats() or {}).get("peak_bytes_in_use", 0) for d in jax.local_devices())
    print(json.dumps({"host": peak_bytes(), "device": device}))


if __name__ == "__main__":
    main(*sys.argv[1:])
