"""What a learned sampler minimises: an exact distance of Gaussians, or a distance of features.

On features, gradients come from one batch of noise and the training part of the reference:

    kernel    the squared maximum mean discrepancy to the reference under k(x, y) = (x·y/D + 1)³
    teacher   the mean squared difference from the images of many first-order steps with η = 0 from
              the same noise, for tables without noise

The held-out loss uses other noise and, for the kernel distance, the other part of the reference.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ..devices import full_batch, make_mesh
from ..diffusion.keys import image_keys, initial_noise
from ..diffusion.learned import TableParameters, learned_table
from ..diffusion.moments import gaussian_errors
from ..diffusion.prediction import Denoiser
from ..diffusion.reverse import StepTable, step_table
from ..diffusion.sampling import sample
from ..diffusion.sigmas import eta
from ..diffusion.timesteps import linspace_timesteps
from ..features import Features
from ..metrics import STATISTICS, Points, Spread
from ..sampler import Plan, batch_program, in_batches, labelled, make_sampler, on_mesh, planned
from .source import Source

_TRAINING, _HELD_OUT = 2**31, 2**31 + 2**30  # the first image index of each; ablate's start at 0
_POOL = 1024  # noises that a teacher draws from
_TEACHER_STEPS = 100
_ROUND, _ROUNDS, _TOLERANCE = 200, 100, 1e-7  # of L-BFGS: iterations, and the fall of ln loss


class Setting(NamedTuple):
    """What does not change while a sampler is learned."""

    source: Source
    features: Features
    clip: int
    seed: int
    labels: tuple[int, ...]
    guidance: float
    size: int  # images of a gradient
    judged: int  # images held out


def exact_loss(source: Source, kind: str) -> Callable[[StepTable], Any]:
    """W2² or KL of the sampler's output to the data of a Gaussian oracle, for a traced table."""
    assert source.moments is not None
    errors = gaussian_errors(*source.moments, source.alpha_bar)

    def loss(table: StepTable) -> Any:
        found = errors(table)
        return found.kl if kind == "kl" else found.mean + found.covariance

    return loss


def minimise(
    loss: Callable[[TableParameters], Any], first: TableParameters, seed: int
) -> tuple[TableParameters, np.ndarray]:
    """The parameters with the least loss, and the loss by iteration; a seed moves the start."""
    rng = np.random.default_rng(seed)
    moved = jax.tree.map(lambda leaf: leaf + 0.05 * rng.standard_normal(leaf.shape), first)
    # The logarithm makes a relative tolerance of the loss an absolute one.
    objective = lambda parameters: jnp.log(loss(parameters))  # noqa: E731
    solver = optax.lbfgs(memory_size=30)
    value_and_grad = optax.value_and_grad_from_state(objective)

    def step(carry: Any, _: None) -> Any:
        parameters, state = carry
        value, gradient = value_and_grad(parameters, state=state)
        updates, state = solver.update(
            gradient, state, parameters, value=value, grad=gradient, value_fn=objective
        )
        return (optax.apply_updates(parameters, updates), state), value

    advance = jax.jit(lambda carry: jax.lax.scan(step, carry, None, length=_ROUND))
    carry, values = (moved, solver.init(moved)), [np.array([np.inf])]
    for _ in range(_ROUNDS):
        carry, found = advance(carry)
        values.append(np.asarray(found))
        if values[-2][-1] - values[-1][-1] < _TOLERANCE:
            break
    return carry[0], np.exp(np.concatenate(values[1:]))


class Objective(NamedTuple):
    """How a table is improved, and how it is judged."""

    # From a base: (parameters, update) → the loss and its gradient.
    gradient: Callable[[StepTable], Callable[..., tuple[float, TableParameters]]]
    held_out: Callable[[StepTable, int], Spread]  # (table, number of images)


def feature_objective(setting: Setting, teacher: bool) -> Objective:
    """The kernel loss, or the distance to a teacher."""
    size, source, features = full_batch(setting.size), setting.source, setting.features
    mesh = make_mesh(size)
    params = on_mesh((source.params, features.params), mesh)
    learn, judge = _reference_features(setting)
    images = _drawer(setting._replace(size=size), params[0], mesh)
    pool, targets = 1, np.zeros((0, 0))
    if teacher:
        T = len(source.alpha_bar) - 1
        tau = linspace_timesteps(T, min(T, _TEACHER_STEPS))
        slow = step_table(source.alpha_bar, tau, eta(0.0))
        pool = -(-_POOL // size) * size
        learn = features.extract(images(slow, _TRAINING, pool))
        targets = features.extract(images(slow, _HELD_OUT, setting.judged))

    def gradient(base: StepTable) -> Callable[..., tuple[float, TableParameters]]:
        program = batch_program(jax.value_and_grad(_loss(setting, base, teacher), 3), mesh)

        def of_update(parameters: TableParameters, update: int) -> tuple[float, TableParameters]:
            places = np.arange(update * size, (update + 1) * size) % (pool if teacher else 2**30)
            batch = labelled((_TRAINING + places).astype(np.uint32), setting.labels)
            against = np.asarray(learn[places] if teacher else learn, np.float32)
            value, found = program(params, batch, against, parameters)
            return float(value), jax.tree.map(np.asarray, found)

        return of_update

    def held_out(table: StepTable, count: int) -> Spread:
        found = np.asarray(features.extract(images(table, _HELD_OUT, count)), np.float64)
        if not teacher:
            kernel = STATISTICS["kernel"]
            return kernel.method(kernel.function, judge, Points(found))
        errors = np.square(found - targets[:count]).mean(axis=1)
        deviations = (errors - errors.mean()) / np.sqrt(count * (count - 1))
        return Spread(float(errors.mean()), deviations, np.zeros(0))

    return Objective(gradient, held_out)


def _reference_features(setting: Setting) -> tuple[np.ndarray, Points]:
    """Those of the images to learn from, and of the fifth to judge by."""
    images = setting.source.reference().images
    images = images[np.random.default_rng(0).permutation(len(images))]
    held_out = len(images) // 5
    extract = setting.features.extract
    return extract(images[held_out:]), Points(extract(images[:held_out]))


def _drawer(setting: Setting, params: Any, mesh: Any) -> Callable[..., np.ndarray]:
    """images(table, the first index, how many)."""
    sampler = make_sampler(setting.source.denoise, setting.source.image_shape, mesh)

    def images(table: StepTable, first: int, count: int) -> np.ndarray:
        def call(indices: np.ndarray) -> Any:
            batch = labelled((first + indices).astype(np.uint32), setting.labels)
            return sampler(params, batch, _plan(setting, table))

        return np.concatenate(list(in_batches(call, count, setting.size)))

    return images


def _loss(setting: Setting, base: StepTable, teacher: bool) -> Callable[..., Any]:
    source, traced = setting.source, setting.features.traced

    def loss(params: Any, batch: Any, against: Any, parameters: TableParameters) -> Any:
        table = learned_table(base, parameters)
        model = planned(source.denoise, params[0], batch.label, _plan(setting, table))
        # Activations of one step at a time: the backward pass calls the network again.
        model = Denoiser(jax.checkpoint(model.call), model.alpha_bar, model.kind)
        keys = image_keys(np.uint32(setting.seed), batch.indices)
        found = traced(
            params[1], sample(model, initial_noise(keys, source.image_shape), table, keys)
        )
        return jnp.mean((found - against) ** 2) if teacher else kernel_loss(found, against)

    return loss


def _plan(setting: Setting, table: StepTable) -> Plan:
    scale = None if setting.guidance == 1 else np.float32(setting.guidance)
    return Plan(table, np.uint32(setting.seed), np.int32(setting.clip), scale)


def kernel_loss(found: Any, reference: Any) -> Any:
    """The unbiased squared MMD of `metrics.kernel_distance`, for gradients."""

    def kernel(a: Any, b: Any) -> Any:
        return (jnp.matmul(a, b.T, precision="highest") / a.shape[1] + 1) ** 3

    n, m = len(found), len(reference)
    own, others = kernel(found, found), kernel(reference, reference)
    within = (jnp.sum(own) - jnp.trace(own)) / (n * (n - 1))
    beyond = (jnp.sum(others) - jnp.trace(others)) / (m * (m - 1))
    return within + beyond - 2 * jnp.mean(kernel(found, reference))
