import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddim_jax import (
    Prediction,
    Sigmas,
    StepTable,
    custom,
    ddim_step,
    ddpm,
    eta,
    official_timesteps,
    step_table,
    uniform_timesteps,
)


def test_rows_are_the_steps_of_tau_from_its_end(alpha_bar):
    table = step_table(alpha_bar, [3, 10, 700], eta(0.5))
    np.testing.assert_array_equal(table.t, [700, 10, 3])
    np.testing.assert_array_equal(table.alpha_bar_t, alpha_bar[[700, 10, 3]])
    np.testing.assert_array_equal(table.alpha_bar_s, alpha_bar[[10, 3, 0]])
    np.testing.assert_array_equal(table.s, [10, 3, 0])
    assert table.active.all()
    assert [leaf.shape for leaf in table] == [(3,)] * 6 + [(3, 0)] * 2


def test_repeats_of_the_official_sequences_are_inactive(alpha_bar):
    tau = official_timesteps(1000, 100, "quadratic")
    with pytest.raises(ValueError, match=r"timesteps\[1\] is 1 after 1.*allow_repeats"):
        step_table(alpha_bar, tau, ddpm())
    table = step_table(alpha_bar, tau, ddpm(), allow_repeats=True)
    assert np.sum(~table.active) == 4
    np.testing.assert_array_equal(table.active, np.diff(np.append(tau[::-1], 0)) < 0)
    np.testing.assert_array_equal(table.t[~table.active], table.s[~table.active])
    row = jax.tree.map(lambda leaf: leaf[~table.active][0], table)
    x = jnp.arange(4.0)
    np.testing.assert_array_equal(ddim_step(x, Prediction(x + 1, x + 2), x + 3, row), x)


def test_a_step_against_scalar_arithmetic():
    row = StepTable(t=2, s=1, alpha_bar_t=0.5, alpha_bar_s=0.64, sigma=0.36, noise=0.5)
    x_s = ddim_step(
        jnp.array([9.0]), Prediction(jnp.array([10.0]), jnp.array([1.0])), jnp.array([2.0]), row
    )
    assert x_s[0] == pytest.approx(0.8 * 10 + np.sqrt(0.36 - 0.1296) + 1.0, rel=1e-6)
    mean = ddim_step(jnp.array([9.0]), Prediction(jnp.array([10.0]), jnp.array([1.0])), None, row)
    assert x_s[0] - mean[0] == pytest.approx(0.5 * 2.0, rel=1e-6)


TOO_LARGE = r"row 0 \(t=101 to s=1\): sigma is 0.3; .* = 0.0001 \(sigma ≤ 0.01\)"
INF, NAN = float("inf"), float("nan")


@pytest.mark.parametrize(
    ("timesteps", "schedule", "message"),
    [
        ([1, 101], custom(0.3), TOO_LARGE),
        ([1, 2], custom([0.0, 0.1]), r"row 1 \(t=1 to s=0\): sigma is 0.1"),
        ([1, 2], custom([-0.1, 0.0]), r"row 0 \(t=2 to s=1\): sigma is -0.1"),
        ([1, 2], custom([0.0, NAN]), "row 1 .*: sigma is nan"),
        ([1, 2], custom(0.0, [0.1, -0.2]), "row 1 .*: noise is -0.2"),
        ([1, 2], custom(0.0, [INF, 0]), "row 0 .*: noise is inf"),
        ([1, 2], lambda steps: Sigmas(np.zeros(3), np.zeros(2)), r"sigma of shape \(3,\)"),
        ([0, 2], ddpm(), r"timesteps\[0\] is 0; noisy times are 1 to T = 1000"),
        ([1, 1001], ddpm(), r"timesteps\[1\] is 1001"),
        ([5, 3], ddpm(), r"timesteps\[1\] is 3 after 5"),
        ([5, 5], ddpm(), r"timesteps\[1\] is 5 after 5"),
        ([1.0, 2.0], ddpm(), "dtype float64"),
        ([], ddpm(), r"shape \(0,\)"),
    ],
)
def test_tables_are_refused(timesteps, schedule, message, alpha_bar):
    with pytest.raises(ValueError, match=message):
        step_table(alpha_bar, timesteps, schedule)


def test_refusals(alpha_bar):
    with pytest.raises(ValueError, match=r"alpha_bar\[0\] is 0.9999"):
        step_table(alpha_bar[1:], [1], ddpm())
    with pytest.raises(ValueError, match=r"alpha_bar\[1\] is"):
        step_table(alpha_bar[::-1] / alpha_bar[-1], [1], ddpm())
    row = step_table(alpha_bar, [1], ddpm())
    with pytest.raises(ValueError, match="shapes"):
        ddim_step(np.ones(2), Prediction(np.ones(2), np.ones(2)), np.ones(1), row)


def test_sigma_at_its_largest_is_allowed_and_rounding_forgiven(alpha_bar):
    tau = uniform_timesteps(1000, 20)
    s = np.concatenate([[0], tau[:-1]])[::-1]
    table = step_table(alpha_bar, tau, custom(np.sqrt(1 - alpha_bar[s])))
    x = jnp.ones(3)
    for row in range(20):  # the direction to x_t vanishes: only x̂_0 and noise remain
        step = jax.tree.map(lambda leaf, row=row: leaf[row], table)
        x_s = ddim_step(x, Prediction(jnp.zeros(3), x), jnp.zeros(3), step)
        np.testing.assert_allclose(x_s, 0, atol=1e-3)
