"""The sampler with solvers, against a float64 loop that keeps every prediction."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddim_jax import (
    Correction,
    Prediction,
    StepTable,
    adams,
    clip_x0,
    custom,
    ddim_step,
    deis,
    denoiser,
    dpm_solver_pp,
    encode,
    eta,
    first_order,
    image_keys,
    ipndm,
    quadratic_timesteps,
    sample,
    sample_many,
    sigma_hat,
    stack_tables,
    step_table,
    trailing_timesteps,
    uniform_timesteps,
)

from .float64_loop import loop

SHAPE = (2, 3, 1)
KEYS = image_keys(0, range(2))
RNG = np.random.default_rng(0)
X_T, NOISE = RNG.normal(size=(2, *SHAPE)), RNG.normal(size=(8, 2, *SHAPE))


def epsilon(numpy, x, a, t):
    """A network that is no solution of anything."""
    return 0.7 * numpy.sqrt(1 - a) * x + 0.2 * numpy.sin(2 * x + t / 300)


def network(alpha_bar):
    bars = jnp.asarray(alpha_bar)

    def apply(params, x, t):
        t = (t + 1).reshape(-1, 1, 1, 1)
        return epsilon(jnp, x, bars[t], t.astype(x.dtype))

    return denoiser(apply, None, bars)


def predictor(alpha_bar, table, clip=False):
    """What the loop predicts with, of the same network."""

    def predict(i, x):
        a, t = alpha_bar[table.t[i]], table.t[i]
        eps = epsilon(np, x, a, t)
        x_0 = (x - np.sqrt(1 - a) * eps) / np.sqrt(a)
        return np.clip(x_0, -1, 1) if clip else x_0, eps

    return predict


def random_solver(K):
    """Any numbers: the sampler need not know where they come from."""

    def solver(steps, sigma):
        known = np.cumsum(steps.t > steps.s)[:, None]
        numbers = RNG.normal(size=(2, len(steps.t), K)) * (np.arange(K) < known)
        numbers[:, steps.t == steps.s] = 0
        numbers[..., 0] -= numbers.sum(axis=-1)
        return Correction(*numbers)

    return solver


@pytest.mark.parametrize("clip", [False, True])
def test_the_scan_remembers_what_the_loop_remembers(alpha_bar, clip, float64):
    """Each prediction is clipped before any correction; repeats make no prediction."""
    denoise = clip_x0(network(alpha_bar)) if clip else network(alpha_bar)
    run = jax.jit(lambda table: sample(denoise, jnp.asarray(X_T), table, KEYS, jnp.asarray(NOISE)))
    tau = np.array([1, 40, 200, 200, 200, 500, 500, 900])
    for schedule in (eta(0.0), eta(1.0), sigma_hat(), custom(0.0, 0.1)):
        table = step_table(alpha_bar, tau, schedule, random_solver(4), allow_repeats=True)
        expected = loop(table, X_T, predictor(alpha_bar, table, clip), noise=NOISE)
        np.testing.assert_allclose(run(table), expected, rtol=1e-10, atol=1e-12)
    assert run._cache_size() == 1


SOLVERS = [first_order(), adams(2), adams(3), dpm_solver_pp(2), deis(4), ipndm(3)]


def drawn(table):
    """z of every step, by the keys."""
    return [
        np.stack([np.asarray(jax.random.normal(jax.random.fold_in(key, t), SHAPE)) for key in KEYS])
        for t in table.t
    ]


def test_a_grid_of_sigma_solver_tau_and_S_is_one_compilation_and_equals_the_loop(alpha_bar):
    traces = []

    @jax.jit
    def run(tables, x_T):
        traces.append(None)
        return sample_many(network(alpha_bar), x_T, tables, KEYS)

    def grid(timesteps, *schedules):
        return [
            step_table(alpha_bar, timesteps(1000, S), schedule, solver)
            for schedule in schedules
            for solver in SOLVERS
            for S in (1, 3, 7)
        ]

    tables = grid(trailing_timesteps, eta(0.0), sigma_hat())
    cells = np.asarray(run(stack_tables(tables), jnp.asarray(X_T)))
    for cell, table in zip(cells, tables, strict=True):
        expected = loop(table, X_T, predictor(alpha_bar, table), noise=drawn(table))
        np.testing.assert_allclose(cell, expected, atol=3e-5 * np.abs(expected).max())
    others = run(stack_tables(grid(quadratic_timesteps, eta(0.5), eta(1.0))), jnp.asarray(-X_T))
    assert np.isfinite(others).all()
    assert len(traces) == 1


def carried(alpha_bar, solver):
    """How many arrays the scan carries from step to step."""
    table = step_table(alpha_bar, uniform_timesteps(1000, 5), eta(0.5), solver)
    jaxpr = jax.make_jaxpr(lambda: sample(network(alpha_bar), jnp.asarray(X_T), table, KEYS))()
    (scan,) = [equation for equation in jaxpr.eqns if equation.primitive.name == "scan"]
    return len(scan.outvars)  # it returns nothing else


def test_first_order_carries_the_images_alone_and_order_K_the_newest_predictions(alpha_bar):
    assert carried(alpha_bar, first_order()) == 1
    assert carried(alpha_bar, adams(1)) == 1
    assert carried(alpha_bar, adams(3)) == 1 + 2 * 2


def test_gradients_with_respect_to_the_corrections(alpha_bar, float64):
    table = step_table(alpha_bar, uniform_timesteps(1000, 5), eta(1.0), adams(2))
    # One root √(1−ᾱ_s−sigma²) is 0.
    sigma = np.where(np.arange(5) == 3, np.sqrt(1 - table.alpha_bar_s), table.sigma)
    # Copies: JAX may remember an array as another test converted it, to float32.
    noise, x_T, alpha_bar = (np.array(each) for each in (NOISE[:5], X_T, alpha_bar))

    @jax.jit
    @jax.value_and_grad
    def loss(corrections):
        corrected = StepTable(*table._replace(sigma=sigma)[:6], *corrections)
        return jnp.mean(sample(network(alpha_bar), jnp.asarray(x_T), corrected, KEYS, noise) ** 2)

    numbers = jnp.stack(table[-2:])
    gradient = loss(numbers)[1]
    assert np.isfinite(gradient).all()
    for which, row, k in [(0, 2, 0), (0, 4, 1), (1, 3, 1), (1, 4, 1)]:
        ends = [loss(numbers.at[which, row, k].add(h))[0] for h in (1e-5, -1e-5)]
        difference = float(ends[0] - ends[1]) / 2e-5
        assert float(gradient[which, row, k]) == pytest.approx(difference, rel=1e-5)


def test_corrections_that_are_left_out_are_none():
    numbers = {"t": 2, "s": 1, "alpha_bar_t": 0.5, "alpha_bar_s": 0.64, "sigma": 0.3, "noise": 0.1}
    for shape in ((), (5,), (2, 5)):
        table = StepTable(**{name: np.full(shape, value) for name, value in numbers.items()})
        assert table.x_0_correction.shape == table.epsilon_correction.shape == (*shape, 0)
        assert type(jax.tree.map(jnp.asarray, table)) is StepTable
    one = table._replace(x_0_correction=np.zeros((2, 5, 3)))
    with pytest.raises(ValueError, match=r"\(2, 5, 3\).* must be \(S,\), and .* one axis more"):
        sample(network([1.0, 0.64, 0.5]), jnp.asarray(X_T), one, KEYS)


def test_eq_12_and_encoding_know_no_corrections(alpha_bar):
    table = step_table(alpha_bar, uniform_timesteps(1000, 4), eta(0.0), random_solver(2))
    none = np.zeros((4, 2))
    plain = table._replace(x_0_correction=none, epsilon_correction=none)
    x = jnp.asarray(X_T)
    rows = [jax.tree.map(lambda leaf: leaf[3], one) for one in (table, plain)]
    steps = [ddim_step(x, Prediction(x + 1, x - 1), None, row) for row in rows]
    np.testing.assert_array_equal(*steps)
    up = jax.jit(lambda table: encode(network(alpha_bar), x, table))
    np.testing.assert_array_equal(up(table), up(plain))
