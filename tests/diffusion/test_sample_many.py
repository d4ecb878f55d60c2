import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddim_jax import (
    StepTable,
    adams,
    custom,
    ddpm,
    deis,
    denoiser,
    eta,
    final_noise,
    first_order,
    image_keys,
    initial_noise,
    quadratic_timesteps,
    sample,
    sample_many,
    sigma_hat,
    stack_tables,
    step_table,
    trailing_timesteps,
    uniform_timesteps,
)  # fmt: skip

SHAPE = (4, 4, 1)


def network(params, x, t):
    """A convolution: it rounds differently in another batch."""
    kernel = params * jnp.cos(jnp.arange(9.0)).reshape(3, 3, 1, 1)
    y = jax.lax.conv_general_dilated(
        x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    return 0.3 * x + jnp.tanh(y) + 0.1 * jnp.sin(t / 100).reshape(-1, 1, 1, 1)


@pytest.mark.usefixtures("optimised")
def test_a_grid_of_5_sigmas_and_5_S_is_one_compilation_and_equals_its_cells(alpha_bar):
    traces = []

    @jax.jit
    def run(params, tables, keys):
        traces.append(None)
        return sample_many(
            denoiser(network, params, alpha_bar), initial_noise(keys, SHAPE), tables, keys
        )

    families = [eta(0.0), eta(0.2), eta(0.5), ddpm(), sigma_hat()]
    tables = [
        step_table(alpha_bar, quadratic_timesteps(1000, S), family)
        for family in families
        for S in (2, 3, 5, 8, 20)
    ]
    keys = image_keys(0, range(3))
    cells = run(0.3, stack_tables(tables), keys)
    assert cells.shape == (25, 3, *SHAPE)
    assert len(traces) == 1
    single = jax.jit(
        lambda table: sample(
            denoiser(network, 0.3, alpha_bar), initial_noise(keys, SHAPE), table, keys
        )
    )
    for cell, table in zip(np.asarray(cells), tables, strict=True):
        alone = single(table)
        np.testing.assert_allclose(cell, alone, atol=2e-5 * np.abs(alone).max())
    assert len({cell.tobytes() for cell in np.asarray(cells)}) == 25

    # Other families, values, sub-sequences, seeds and weights of the same shape: still that one.
    others = [final_noise(eta(0.1), 0.2), custom(0.0, 0.05), eta(0.9), sigma_hat(), ddpm()]
    tables = [
        step_table(alpha_bar, trailing_timesteps(1000, S), family)
        for family in others
        for S in (1, 4, 6, 19, 20)
    ]
    other = run(0.4, stack_tables(tables), image_keys(1, range(5, 8)))
    assert np.isfinite(other).all()
    assert len(traces) == 1


def test_padding_is_inactive(alpha_bar):
    tables = [
        step_table(alpha_bar, uniform_timesteps(1000, S), eta(0.5), solver)
        for S, solver in ((3, adams(2)), (1, first_order()), (5, deis(3)))
    ]
    stacked = stack_tables(tables)
    assert [leaf.shape for leaf in stacked] == [(3, 5)] * 6 + [(3, 5, 3)] * 2
    np.testing.assert_array_equal(stacked.active.sum(axis=1), [3, 1, 5])
    for i, table in enumerate(tables):
        for leaf, whole in zip(table, stacked, strict=True):
            np.testing.assert_array_equal(whole[i][tuple(map(slice, leaf.shape))], leaf)
            assert whole.dtype == leaf.dtype
    padding = jax.tree.map(lambda leaf: leaf[1, 1:].tolist(), stacked)
    none = [[0.0] * 3] * 4
    assert padding == StepTable(
        [0] * 4, [0] * 4, [1.0] * 4, [1.0] * 4, [0.0] * 4, [0.0] * 4, none, none
    )
    assert not stacked.x_0_correction[0, :, 2].any()
    with pytest.raises(ValueError, match="tables is empty"):
        stack_tables([])
    with pytest.raises(ValueError, match=r"must be \(E, S\)"):
        sample_many(
            denoiser(network, 0.3, alpha_bar), jnp.ones((1, *SHAPE)), tables[0], image_keys(0, [0])
        )


def test_an_image_agrees_over_batches_and_devices_to_rounding(alpha_bar):
    table = step_table(alpha_bar, uniform_timesteps(1000, 10), eta(1.0))

    def draw(indices, devices=1):
        mesh = jax.sharding.Mesh(np.array(jax.devices()[:devices]), ("data",))
        split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
        run = jax.jit(
            lambda keys: sample(
                denoiser(network, 0.3, alpha_bar), initial_noise(keys, SHAPE), table, keys
            ),
            in_shardings=split,
        )
        return np.asarray(run(image_keys(0, indices)))[list(indices).index(5)]

    alone = draw([5])
    for other in (
        draw(range(7)),
        draw(range(64)),
        draw(range(8), devices=2),
        draw(range(8), devices=8),
    ):
        np.testing.assert_allclose(other, alone, atol=2e-5 * np.abs(alone).max())
