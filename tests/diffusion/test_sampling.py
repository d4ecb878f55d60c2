import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddim_jax import (
    Prediction,
    custom,
    denoiser,
    eta,
    image_keys,
    initial_noise,
    quadratic_timesteps,
    sample,
    sample_path,
    sigma_hat,
    stack_tables,
    step_table,
    uniform_timesteps,
)  # fmt: skip

SHAPE = (5, 3, 3)  # odd on purpose: no multiple of a vector register


def epsilon(x, alpha_bar_t, t):
    """A network that is no solution of anything, in NumPy."""
    return 0.7 * np.sqrt(1 - alpha_bar_t) * x + 0.2 * np.sin(2 * x + t / 300)


@pytest.fixture(scope="module")
def run(alpha_bar):
    """The jitted sampler, and how often it was traced."""
    traces = []

    def network(params, x, t):
        t = t.reshape(-1, 1, 1, 1)
        return 0.7 * jnp.sqrt(1 - jnp.asarray(alpha_bar)[t + 1]) * x + 0.2 * jnp.sin(
            2 * x + (t + 1) / 300
        )

    @jax.jit
    def run(table, keys):
        traces.append(None)
        return sample_path(
            denoiser(network, None, alpha_bar), initial_noise(keys, SHAPE), table, keys
        )

    return run, traces


def paper(alpha_bar, tau, sigma, noise, keys):
    """Eq. 12 as a loop in float64; arrays in sampling order."""

    def normal(key, t):
        return np.asarray(jax.random.normal(jax.random.fold_in(key, t), SHAPE), np.float64)

    x = np.stack([normal(key, 0) for key in keys])
    path = []
    for i, t in enumerate(tau[::-1]):
        s = tau[::-1][i + 1] if i + 1 < len(tau) else 0
        a_t, a_s = alpha_bar[t], alpha_bar[s]
        eps = epsilon(x, a_t, t)
        x_0 = (x - np.sqrt(1 - a_t) * eps) / np.sqrt(a_t)
        z = np.stack([normal(key, t) for key in keys])
        path.append((x, x_0))
        x = np.sqrt(a_s) * x_0 + np.sqrt(max(1 - a_s - sigma[i] ** 2, 0)) * eps + noise[i] * z
    return x, path


@pytest.mark.usefixtures("optimised")
def test_the_sampler_against_a_float64_loop_with_one_compilation(run, alpha_bar):
    sampler, traces = run
    rng = np.random.default_rng(0)
    keys = image_keys(3, [0, 1])
    free, small = 0.5 * rng.random(12), 0.009 * rng.random(12) * (np.arange(12) < 11)
    schedules = [
        eta(0.0),
        eta(0.3),
        eta(1.0),
        eta(rng.random(12)),
        sigma_hat(),
        custom(0.0, free),
        custom(small, free),
    ]
    for timesteps in (uniform_timesteps, quadratic_timesteps):
        tau = timesteps(1000, 12)
        for schedule in schedules:
            table = step_table(alpha_bar, tau, schedule)
            expected, steps = paper(alpha_bar, tau, table.sigma, table.noise, keys)
            x_0, path = sampler(table, keys)
            scale = np.abs(expected).max()
            np.testing.assert_allclose(x_0, expected, atol=3e-5 * scale)
            for i, (x, x_hat_0) in enumerate(steps):
                np.testing.assert_allclose(path.x[i], x, atol=1e-4 * np.abs(x).max())
                np.testing.assert_allclose(path.x_0[i], x_hat_0, atol=1e-4 * np.abs(x_hat_0).max())
    assert len(traces) == 1


def test_a_new_seed_does_not_compile(run, alpha_bar):
    sampler, traces = run
    table = step_table(alpha_bar, uniform_timesteps(1000, 12), eta(0.0))
    first, second = (sampler(table, image_keys(seed, [0, 1]))[0] for seed in (5, 6))
    assert len(traces) == 1
    assert np.abs(first - second).max() > 0.1


def test_sample_is_the_end_of_the_path(alpha_bar):
    network = lambda params, x, t: 0.5 * x  # noqa: E731
    keys = image_keys(0, [4])
    table = step_table(alpha_bar, uniform_timesteps(1000, 5), eta(1.0))
    arguments = (denoiser(network, None, alpha_bar), initial_noise(keys, SHAPE), table, keys)
    x_0, path = sample_path(*arguments)
    np.testing.assert_allclose(sample(*arguments), x_0, rtol=1e-6)
    np.testing.assert_array_equal(path.x[0], initial_noise(keys, SHAPE))
    np.testing.assert_allclose(
        path.x_0[-1], x_0, rtol=1e-5
    )  # the last step is noiseless: it returns x̂_0


def test_inactive_rows_change_nothing_and_call_no_noise(alpha_bar):
    keys = image_keys(0, [4, 5])
    table = step_table(alpha_bar, uniform_timesteps(1000, 5), eta(1.0))
    arguments = (
        denoiser(lambda params, x, t: 0.5 * x, None, alpha_bar),
        initial_noise(keys, SHAPE),
    )
    padded = jax.tree.map(
        lambda leaf: np.concatenate([leaf[:2], leaf[:1], leaf[2:], leaf[:1]]), table
    )
    padded = padded._replace(s=np.where([0, 0, 1, 0, 0, 0, 1], padded.t, padded.s))
    np.testing.assert_allclose(
        sample(*arguments, padded, keys), sample(*arguments, table, keys), rtol=1e-6
    )


OWN = custom(0.0, [0.3, 0.0, 0.1, 0.0, 0.2])


@pytest.mark.parametrize("schedule", [eta(1.0), sigma_hat(), OWN])
def test_noise_that_is_given_equals_noise_that_is_drawn(alpha_bar, schedule):
    keys = image_keys(5, [3, 1])
    table = step_table(alpha_bar, uniform_timesteps(1000, 5), schedule)
    draw = lambda key, t: jax.random.normal(jax.random.fold_in(key, t), SHAPE)  # noqa: E731
    noise = jnp.stack([jnp.stack([draw(key, t) for key in keys]) for t in table.t])
    denoise = denoiser(lambda params, x, t: 0.5 * jnp.sin(x), None, alpha_bar)
    x_T = initial_noise(keys, SHAPE)
    drawn = jax.jit(lambda: sample_path(denoise, x_T, table, keys))()
    given = jax.jit(lambda noise: sample_path(denoise, x_T, table, keys, noise))(noise)
    for a, b in zip(jax.tree.leaves(drawn), jax.tree.leaves(given), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6 * np.abs(b).max())
    alone = jax.jit(lambda noise: sample(denoise, x_T, table, keys, noise=noise))(noise)
    # Another program than the one that also keeps what it saw: equal to rounding.
    np.testing.assert_allclose(alone, given[0], atol=1e-6 * np.abs(given[0]).max())
    other = sample(denoise, x_T, table, keys, noise=-noise)
    assert np.abs(other - alone).max() > 0.01


@pytest.mark.usefixtures("optimised")
@pytest.mark.parametrize("schedule", [eta(0.0), eta(1.0), sigma_hat()])
def test_padding_changes_no_bits(alpha_bar, schedule):
    """Neither of the images nor of the trajectory, which padding lengthens by the image itself."""
    keys = image_keys(5, [3, 1])
    table = step_table(alpha_bar, uniform_timesteps(1000, 5), schedule)
    denoise = denoiser(lambda params, x, t: 0.5 * jnp.sin(x), None, alpha_bar)
    run = jax.jit(lambda table: sample_path(denoise, initial_noise(keys, SHAPE), table, keys))
    x_0, seen = run(table)
    for S in (6, 11):
        longer = step_table(alpha_bar, uniform_timesteps(1000, S), eta(0.5))
        padded = jax.tree.map(lambda leaf: leaf[0], stack_tables([table, longer]))
        assert (len(padded.t), padded.active.sum()) == (S, 5)
        padded_x_0, padded_seen = run(padded)
        np.testing.assert_array_equal(padded_x_0, x_0)
        for short, long in zip(seen, padded_seen, strict=True):
            np.testing.assert_array_equal(long[:5], short)
            np.testing.assert_array_equal(long[5:], np.broadcast_to(x_0, (S - 5, *x_0.shape)))


def test_gradients_through_the_sampler(alpha_bar):
    keys = image_keys(0, [0, 1])
    table = step_table(alpha_bar, uniform_timesteps(1000, 4), eta(0.8))
    denoise = denoiser(lambda params, x, t: 0.3 * x + 0.1 * jnp.sin(x), None, alpha_bar)

    @jax.jit
    def loss(sigma, noise):
        return jnp.mean(
            jnp.square(
                sample(
                    denoise,
                    initial_noise(keys, SHAPE),
                    table._replace(sigma=sigma, noise=noise),
                    keys,
                )
            )
        )

    sigma, noise = jnp.asarray(table.sigma, jnp.float32), jnp.asarray(table.noise, jnp.float32)
    gradients = jax.grad(loss, argnums=(0, 1))(sigma, noise)
    assert all(np.isfinite(gradient).all() for gradient in gradients)
    for i in range(3):
        h = 1e-3 * np.eye(4, dtype=np.float32)[i]
        numeric = [
            (loss(sigma + h, noise) - loss(sigma - h, noise)) / 2e-3,
            (loss(sigma, noise + h) - loss(sigma, noise - h)) / 2e-3,
        ]
        for analytic, difference in zip(gradients, numeric, strict=True):
            assert float(analytic[i]) == pytest.approx(float(difference), rel=0.05, abs=2e-4)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda table: sample(len, jnp.ones((3, 2)), table, image_keys(0, [0])),
            r"keys have shape \(1,\) for x_T of shape \(3, 2\)",
        ),
        (
            lambda table: sample(
                len, jnp.ones((1, 2)), table._replace(noise=np.zeros(3)), image_keys(0, [0])
            ),
            "leaves",
        ),
        (
            lambda table: sample(
                len, jnp.ones((1, 2)), table, image_keys(0, [0]), noise=jnp.ones((4, 2))
            ),
            r"noise has shape \(4, 2\); it must be \(4, 1, 2\)",
        ),
        (
            lambda table: sample(
                lambda x, t: Prediction(x, x.T), jnp.ones((1, 2)), table, image_keys(0, [0])
            ),
            r"have shapes \(1, 2\), \(1, 2\), \(2, 1\)",
        ),
    ],
)
def test_refusals(call, message, alpha_bar):
    with pytest.raises(ValueError, match=message):
        call(step_table(alpha_bar, uniform_timesteps(1000, 4), eta(0.8)))
