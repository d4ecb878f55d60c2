"""What the machine does with this code: `python -m ddim_jax.bench [--what loop memory grid] [--preset digits]`.

    loop     seconds of N steps through the training loop's feeding, against N bare calls of the compiled step on one batch
    memory   peak temporary memory of a train step, with and without rematerialisation, and a device's part of the state
    grid     seconds of an ablation's cells by its one program, against each S by a program of its own

Only ratios within one run mean anything on a shared machine, so the two sides of a comparison take turns.
"""

import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table

from .cli import run
from .config import Config, presets
from .data import Dataset
from .devices import batch_sharding, describe, make_mesh, setup, state_shardings
from .diffusion.prediction import denoiser
from .diffusion.sampling import image_keys
from .evaluation.ablation import make_draw
from .evaluation.grid import GridFlags
from .evaluation.sources import Source
from .model import build_unet, unet_apply, unet_shapes
from .training import initial_state, make_optimizer
from .training.loop import device_batches, prepare_state, prepare_step
from .training.loss import draw_examples, prediction_loss

Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class BenchConfig:
    """Measure training on this machine, print a table, write JSON."""

    what: tuple[Literal["loop", "memory", "grid"], ...] = ("loop", "memory", "grid")
    """What to measure."""
    preset: Literal["digits", "emoji", "cifar10"] = "digits"
    """Whose network and batch; its data are made up."""
    batch_size: int = 0
    """Images a step; 0: the preset's."""
    steps: int = 20
    """N, training steps in a measurement."""
    rounds: int = 5
    """Measurements of each side, taken in turn."""
    out: Path = Path("bench.json")
    """Where the JSON goes."""

    def config(self) -> Config:
        """The preset with the batch size asked for."""
        named = presets()[self.preset]
        return replace(named, train=replace(named.train, batch_size=self.batch_size or named.train.batch_size))


def bench_loop(settings: BenchConfig) -> Rows:
    """Steps fed by the loop's own pipeline against bare calls."""
    config = settings.config()
    shape, size = config.model.image_shape(), 50_000 if settings.preset == "cifar10" else 1_437
    images = jax.device_get(jax.random.randint(jax.random.key(0), (size, *shape), 0, 256)).astype("uint8")
    dataset = Dataset("made up", size, shape, True, images.__getitem__)
    mesh = make_mesh(config.train.batch_size)
    state, shardings = prepare_state(config, mesh, Path(config.out), None)
    step = prepare_step(config, config.diffusion.alpha_bar(), None, shardings, flip=True)
    stream = device_batches(config, dataset, mesh, 0)
    batch = next(stream)

    def measure(feed: Callable[[], Any]) -> float:
        nonlocal state
        start = time.perf_counter()
        for _ in range(settings.steps):
            state, metrics = step(state, *feed())
        jax.block_until_ready(metrics)
        return (time.perf_counter() - start) / settings.steps

    for feed in (lambda: batch, lambda: next(stream)):  # compile, and fill the buffers
        measure(feed)
    bare, fed = zip(*((measure(lambda: batch), measure(lambda: next(stream))) for _ in range(settings.rounds)), strict=True)
    rate = config.train.batch_size / statistics.median(fed)
    ratio = statistics.median(b / a for a, b in zip(bare, fed, strict=True))
    return [{"measure": "bare step", "value": statistics.median(bare), "unit": "s"},
            {"measure": "step through the loop", "value": statistics.median(fed), "unit": "s"},
            {"measure": "loop ÷ bare", "value": ratio, "unit": ""},
            {"measure": "training", "value": rate, "unit": "images/s"}]  # fmt: skip


def bench_memory(settings: BenchConfig) -> Rows:
    """What the compiled step says that it needs, and what its forward pass keeps for the backward pass; nothing is run."""
    config, count = settings.config(), jax.device_count()
    rows = [_kept(config, remat) for remat in (False, True)]
    meshes = [(1, 1)] + ([(1, count)] if count > 1 and config.train.batch_size % count == 0 else [])
    for data, fsdp in meshes:
        mesh = make_mesh(config.train.batch_size, data, fsdp)
        optimizer = make_optimizer(config.train)
        state = jax.eval_shape(partial(initial_state, optimizer=optimizer), unet_shapes(config.model))
        shardings = state_shardings(state, mesh)
        state = jax.tree.map(lambda a, place: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=place), state, shardings)
        shape = (config.train.batch_size, *config.model.image_shape())
        x_0 = jax.ShapeDtypeStruct(shape, "float32", sharding=batch_sharding(mesh))
        for remat in (False, True):
            some = replace(config, train=replace(config.train, remat=remat))
            step: Any = prepare_step(some, config.diffusion.alpha_bar(), None, shardings, flip=True)
            found = step.lower(state, x_0).compile().memory_analysis()
            name = f"{mesh.size} device{'s' if mesh.size > 1 else ''}, fsdp={fsdp}, {'remat' if remat else 'no remat'}"
            rows.append({"measure": f"temporary, {name}", "value": found.temp_size_in_bytes / 2**20, "unit": "MiB a device"})
            if not remat:
                held = found.argument_size_in_bytes - x_0.size * 4 // mesh.size
                rows.append({"measure": f"state, {name}", "value": held / 2**20, "unit": "MiB a device"})
    return rows


def _kept(config: Config, remat: bool) -> dict[str, Any]:
    """The arrays that differentiation carries over, weights included (XLA for CPUs undoes rematerialisation in its plan)."""
    apply = unet_apply(config.model, config.train.dtype, remat)

    def backward(params: Any) -> Any:
        x_0 = jnp.zeros((config.train.batch_size, *config.model.image_shape()))
        examples = draw_examples(x_0, config.diffusion.alpha_bar(), jax.random.key(0))
        return jax.vjp(lambda some: prediction_loss(apply, some, examples, dropout_key=jax.random.key(1)), params)[1]

    kept = jax.tree.leaves(jax.eval_shape(backward, unet_shapes(config.model)))
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in kept if not jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key))
    return {"measure": f"kept for the backward pass, {'remat' if remat else 'no remat'}", "value": size / 2**20, "unit": "MiB"}


def bench_grid(settings: BenchConfig) -> Rows:
    """The cells of a grid, padded to its largest S in one program, against a program for each S."""
    config, size = settings.config(), 64
    apply, params = build_unet(config.model, 0)
    alpha_bar, shape = config.diffusion.alpha_bar(), config.model.image_shape()
    nothing = np.zeros((0, *shape), np.float32)
    source = Source(
        "bench", lambda leaves: denoiser(apply, leaves, alpha_bar), params, alpha_bar, shape, nothing, None, 0, None, ""
    )
    steps = (5, 10, 20, 50)
    cells = GridFlags(eta=(0.0, 1.0)).cells(alpha_bar, steps)
    keys = np.asarray(jax.random.key_data(image_keys(0, np.arange(size))))
    grid, _ = make_draw(source, size, max(steps))
    alone = {count: make_draw(source, size, count)[0] for count in steps}

    def measure(draw_of: Callable[[int], Any]) -> float:
        start = time.perf_counter()
        for cell in cells:
            draw_of(cell.steps)(cell.table, 0, keys)
        return time.perf_counter() - start

    for draw_of in (lambda _: grid, alone.__getitem__):  # compile
        measure(draw_of)
    pairs = [(measure(lambda _: grid), measure(alone.__getitem__)) for _ in range(settings.rounds)]
    whole, single = zip(*pairs, strict=True)
    return [{"measure": f"{len(cells)} cells by one program", "value": statistics.median(whole), "unit": "s"},
            {"measure": "by a program for each S", "value": statistics.median(single), "unit": "s"},
            {"measure": "one ÷ each", "value": statistics.median(a / b for a, b in pairs), "unit": ""}]  # fmt: skip


def main() -> None:
    """The command line."""
    setup()
    import tyro

    settings = tyro.cli(BenchConfig, prog="python -m ddim_jax.bench", description=__doc__)
    rows = [
        row for name in settings.what for row in {"loop": bench_loop, "memory": bench_memory, "grid": bench_grid}[name](settings)
    ]
    table = Table("measure", "value", "unit", title=f"{settings.preset}, {describe()}, jax {jax.__version__}")
    for row in rows:
        table.add_row(row["measure"], f"{row['value']:,.3f}", row["unit"])
    Console().print(table)
    report = {"settings": asdict(settings), "device": describe(), "jax": jax.__version__, "rows": rows}
    settings.out.write_text(json.dumps(report, indent=2, default=str) + "\n")


if __name__ == "__main__":
    sys.exit(run(main))
