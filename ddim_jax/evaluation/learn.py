"""`sample.py learn`: a sampler's σ, noise and corrections by gradient through the scan.

It starts from the best named sampler (σ × τ × solver) with S steps. τ never changes, since a
network's times are integers. A Gaussian oracle has an exact loss, which L-BFGS minimises in
float64. Otherwise Adam minimises a loss of features, and the table with the lowest held-out loss is
kept. FILE.npz is the sampler, FILE.png the losses. A stopped run of Adam resumes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from rich.console import Console

from ..devices import describe
from ..diffusion.learned import TableParameters, learned_table, table_parameters
from ..diffusion.reverse import StepTable, stack_tables
from ..diffusion.timesteps import TIMESTEPS
from ..features import FeatureFlags, load_features
from ..files import check_output, digest, read_arrays, whole
from ..images import save_figure
from ..metrics import difference, interval
from ..progress import progress
from ..settings import ABOVE_0, MANY, at_least
from .estimates import kept_estimates
from .flags import DrawFlags
from .grid import Cell, cells
from .measure import exact_labels, exact_parts
from .objectives import Objective, Setting, exact_loss, feature_objective, minimise
from .samplers import sampler_cells, save_sampler
from .source import Source
from .tables import console_table, estimate, number

_SIGMAS = ("eta=0", "eta=0.5", "eta=1", "hat")
_SOLVERS = ("first", "adams=2", "dpmpp=2", "deis=3", "ipndm=4")
_EVERY = 20  # updates between two looks at the held-out loss
_PATIENCE = 10  # of these looks without a better one
_CHOICE = 128  # images to choose the first table by
Part = Literal["sigma", "noise", "correction"]


@dataclass(frozen=True)
class Config(FeatureFlags, DrawFlags):
    """Learn a sampler of S steps, for --sampler in generate, ablate, evaluate and others."""

    out: Path = Path("sampler.npz")
    """FILE.npz, the sampler; FILE.png beside it shows the losses."""
    steps: Annotated[int, at_least(1, 1000)] = 10
    """S, the number of reverse steps."""
    learn: tuple[Part, ...] = ("sigma", "noise", "correction")
    """What to learn; the rest stays as it is at the start."""
    features: Literal["pixels", "classifier", "inception"] = "classifier"
    """What kernel and teacher compare: see evaluate; `sample.py classifier` trains the default."""
    order: Annotated[int, at_least(1, 1000)] = 3
    """K: a correction uses the newest K predictions; at most S."""
    loss: Literal["auto", "w2", "kl", "kernel", "teacher"] = "auto"
    """w2, kl: exact, for --oracle gaussian; kernel: kernel distance of features; teacher: squared
    difference from the features of 100 steps, without noise; auto: w2 if exact, else kernel."""
    start: str = ""
    """The first sampler, as for --sampler; empty: the best of the named ones."""
    updates: Annotated[int, at_least(1, MANY)] = 200
    """Largest number of Adam steps. An exact loss is minimised to convergence instead."""
    learning_rate: Annotated[float, ABOVE_0] = 0.02
    """Initial step size of Adam; it falls to 0 along a cosine."""
    batch_size: Annotated[int, at_least(2, MANY)] = 128
    """Images per gradient."""
    num_images: Annotated[int, at_least(8, MANY)] = 512
    """Images drawn for the held-out loss."""

    def check(self) -> None:
        """Raise a ValueError if a field is out of range, or does not fit another field."""
        super().check()
        if self.out.suffix != ".npz":
            raise ValueError(f"--out is {self.out}; its name must end in .npz.")
        if not self.learn:
            raise ValueError("--learn is empty; give one or more of sigma, noise, correction.")
        noisy = {"sigma", "noise"} & set(self.learn)
        if self.loss == "teacher" and noisy:
            raise ValueError("--loss teacher is for tables without noise; use --learn correction.")


def run(config: Config, console: Console) -> None:
    """Learn a sampler, write it, and compare it with what it started from."""
    config.check()
    check_output(config.out)
    source = config.open()
    exact = source.moments is not None and config.loss in ("auto", "w2", "kl")
    if config.loss in ("w2", "kl") and not exact:
        raise ValueError(f"--loss is {config.loss}, which is exact for --oracle gaussian only.")
    grid = _candidates(config, source, console)
    if config.loss == "teacher" and any(np.any(cell.table.noise) for cell in grid):
        raise ValueError(
            f"--start is {config.start}, and --loss teacher is for tables without noise."
        )
    learn = _learn_exactly if exact else _learn_by_features
    table, start, curve, compared, label = learn(config, source, grid, console)
    if jax.process_index():
        return
    recipe = {
        "model": source.name, "step": source.step, "learned": config.learn, "loss": label,
        "start": start.name, "seed": config.seed, "alpha_bar_t": start.table.alpha_bar_t,
    }  # fmt: skip
    save_sampler(config.out, table, recipe)
    _save_curve(curve, label, config.out.with_suffix(".png"))
    console.print(console_table(f"{label}, S={config.steps}", compared))
    console.print(
        f"{config.out}: {' '.join(config.learn)} learned from {start.name}, on {describe()}; "
        f"use it as --sampler {config.out}"
    )


def _candidates(config: Config, source: Source, console: Console) -> list[Cell]:
    """The samplers to start from, all with S calls; the first is DDIM's own."""
    if config.start:
        estimates = partial(kept_estimates, source, console)
        found = sampler_cells(source.alpha_bar, [config.start], estimates)
        if found[0].steps != config.steps:
            raise ValueError(f"--start has {found[0].steps} steps, and --steps is {config.steps}.")
        return found
    sigmas = ("eta=0",) if config.loss == "teacher" else _SIGMAS
    taus = ["quadratic", *(name for name in TIMESTEPS if name != "quadratic")]
    return cells(source.alpha_bar, sigmas, taus, [config.steps], _SOLVERS)


def _learn_exactly(config: Config, source: Source, grid: Sequence[Cell], console: Console) -> Any:
    """L-BFGS on an exact loss, in float64."""
    kind = "kl" if config.loss == "kl" else "w2"
    with jax.enable_x64(True):
        loss = exact_loss(source, kind)
        tables = stack_tables([cell.table for cell in grid])
        values = np.asarray(jax.jit(lambda tables: jax.lax.map(loss, tables))(tables))
        start = grid[int(np.argmin(values))]
        first = table_parameters(start.table, config.learn, _order(config, start))
        found, curve = minimise(
            lambda parameters: loss(learned_table(start.table, parameters)), first, config.seed
        )
        table = jax.tree.map(np.asarray, learned_table(start.table, found))
    label = "KL in nats, exact" if kind == "kl" else "W2², exact"
    rows = [["sampler", *exact_labels(source).values()]]
    compared = (grid[0], start, start._replace(table=table))
    for name, cell in zip(_names(grid, start), compared, strict=True):
        errors = exact_parts(source, cell).values()
        rows.append([name, *(number(error["value"]) for error in errors)])
    return table, start, {"loss": curve}, rows, label


def _learn_by_features(
    config: Config, source: Source, grid: Sequence[Cell], console: Console
) -> Any:
    """Adam on a loss of features, with early stopping."""
    features = load_features(config, source.directory, source.image_shape[-1], console)
    clip = config.clip_index(grid[0]._replace(rederive=False), source)  # as --sampler FILE is drawn
    setting = Setting(
        source, features, clip, config.seed, config.labels(source), config.guidance,
        config.batch_size, config.num_images,
    )  # fmt: skip
    teacher = config.loss == "teacher"
    objective = feature_objective(setting, teacher)
    start = _best(objective, grid, console)
    first = table_parameters(start.table, config.learn, _order(config, start))
    identity = digest(
        *source.identity, features.identity, *start.table, vars(config) | {"out": None}
    )
    table, curve = _descend(config, objective, start.table, first, identity, console)
    spreads = [
        objective.held_out(each, config.num_images) for each in (grid[0].table, start.table, table)
    ]
    label = "Squared difference from the teacher" if teacher else features.label("kernel")
    label += f", {features.name}, {config.num_images:,} held-out images"
    rows = [["sampler", "held-out loss", "less that of the start"]]
    for name, spread in zip(_names(grid, start), spreads, strict=True):
        own, gap = interval(spread), difference(spread, spreads[1])
        rows.append([name, estimate(own._asdict()), estimate(gap._asdict())])
    return table, start, curve, rows, label


def _order(config: Config, start: Cell) -> int:
    """The predictions of a correction, no fewer than the start uses."""
    used = max(leaf.shape[1] for leaf in start.table[-2:])
    return min(max(config.order, used), config.steps)


def _names(grid: Sequence[Cell], start: Cell) -> tuple[str, str, str]:
    return grid[0].name, f"{start.name}, the start", "learned"


def _best(objective: Objective, grid: Sequence[Cell], console: Console) -> Cell:
    """The named sampler with the least held-out loss; all in one program."""
    if len(grid) == 1:
        return grid[0]
    tables, values = stack_tables([cell.table for cell in grid]), []
    with progress(console, len(grid), "samplers") as show:
        for i, cell in enumerate(grid):
            table = jax.tree.map(lambda leaf, i=i: leaf[i], tables)
            values.append(objective.held_out(table, _CHOICE).value)
            show(f"tried {cell.name}")
    return grid[int(np.argmin(values))]


def _descend(
    config: Config,
    objective: Objective,
    base: StepTable,
    first: TableParameters,
    identity: str,
    console: Console,
) -> tuple[StepTable, dict[str, np.ndarray]]:
    """The table with the least held-out loss on the way of Adam, and the losses on the way."""
    rate = optax.cosine_decay_schedule(config.learning_rate, config.updates)
    adam = optax.adam(rate)
    gradient = objective.gradient(base)
    first = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), first)
    # (update, parameters, state of Adam, best parameters, losses, held-out losses)
    state: Any = (0, first, adam.init(first), first, np.zeros(0), np.zeros(0))
    file = config.out.with_suffix(".partial.npz")
    state = _kept(file, identity, state)
    with progress(console, config.updates, "updates") as show:
        show("learning", int(state[0]))
        while True:
            update, parameters, moments, best, losses, held_out = state
            if update % _EVERY == 0 or update == config.updates:
                _keep(file, identity, state)
                table = learned_table(base, parameters)
                held_out = np.append(held_out, objective.held_out(table, config.num_images).value)
                since = len(held_out) - 1 - np.argmin(held_out)
                best = best if since else parameters
                if since == _PATIENCE or update == config.updates:
                    break
            loss, slope = gradient(parameters, int(update))
            steps, moments = adam.update(slope, moments, parameters)
            parameters = optax.apply_updates(parameters, steps)
            state = (update + 1, parameters, moments, best, np.append(losses, loss), held_out)
            show(f"loss {loss:.4g}, held out {held_out[-1]:.4g}")
    if jax.process_index() == 0:
        file.unlink(missing_ok=True)
    # In float64 the corrections sum to 0.
    table = learned_table(base, jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), best))
    return table, {"loss": losses, "held out": held_out}


def _keep(file: Path, identity: str, state: Any) -> None:
    if jax.process_index() == 0:
        leaves = {str(i): np.asarray(leaf) for i, leaf in enumerate(jax.tree.leaves(state))}
        with whole(file) as partial:
            np.savez(partial, identity=np.array(identity), **leaves)  # type: ignore[arg-type]


def _kept(file: Path, identity: str, state: Any) -> Any:
    """The state that an interrupted run of the same settings left, or the given one."""
    arrays = read_arrays(file)
    leaves, structure = jax.tree.flatten(state)
    if arrays is None or str(arrays.get("identity")) != identity or len(arrays) != len(leaves) + 1:
        return state
    # Of the same kind as before, for the same rounding.
    kept = [
        jnp.asarray(arrays[str(i)]) if isinstance(leaf, jax.Array) else arrays[str(i)]
        for i, leaf in enumerate(leaves)
    ]
    return jax.tree.unflatten(structure, kept)


def _save_curve(curve: dict[str, np.ndarray], label: str, path: Path) -> None:
    """The losses against the update."""
    from matplotlib.figure import Figure  # half a second to import

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for name, values in curve.items():
        every = _EVERY if name == "held out" else 1
        axes.plot(np.arange(len(values)) * every, values, label=name)
    positive = all(np.all(values > 0) for values in curve.values())
    axes.set(xlabel="update", ylabel=label, yscale="log" if positive else "linear")
    axes.legend()
    save_figure(figure, path)
