"""Each way of training learns digits."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ddim_jax as ddim
from ddim_jax.config import DataConfig, DiffusionConfig, TrainConfig
from ddim_jax.data import batches, load_dataset
from ddim_jax.diffusion.objective import loss_weights
from ddim_jax.images import to_unit_range
from ddim_jax.metrics import frechet_distance
from ddim_jax.training import initial_state, make_optimizer, make_train_step


def network(params, x, t, *, dropout_key=None):
    """A perceptron on the pixels and the waves of time, beside a multiple of x for each time."""
    angles = jnp.outer(t / 1000, jnp.arange(1, 9) * jnp.pi / 2)
    waves = jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=1)
    h = jnp.concatenate([x.reshape(len(x), -1), waves], axis=1)
    h = jax.nn.silu(h @ params["in"])
    h = h + jax.nn.silu(h @ params["middle"])
    return (h @ params["out"]).reshape(x.shape) + (waves @ params["skip"]).reshape(-1, 1, 1, 1) * x


ZERO_SNR = DiffusionConfig(prediction="v", schedule="cosine", zero_terminal_snr=True)
WAYS = {
    "v with zero-terminal SNR": (ZERO_SNR, "constant"),
    "x0 with min-SNR": (DiffusionConfig(prediction="x0"), "min-snr"),
    "epsilon with exact gamma": (DiffusionConfig(), "gamma"),
}


@pytest.mark.parametrize("way", WAYS)
def test_each_way_of_training_learns_digits(way):
    """Samples against noise, by the Fréchet distance of pixels."""
    (diffusion, scheme), rng = WAYS[way], np.random.default_rng(0)
    alpha_bar, kind = diffusion.alpha_bar(), diffusion.prediction
    shapes = {"in": (64 + 16, 128), "middle": (128, 128), "out": (128, 64), "skip": (16,)}
    start = {
        name: jnp.float32(rng.normal(0, shape[0] ** -0.5, shape)) for name, shape in shapes.items()
    }
    optimizer = make_optimizer(TrainConfig(learning_rate=4e-3, warmup_steps=10))
    weights = loss_weights(alpha_bar, kind, scheme, gamma_eta=0.5)
    options = {"seed": 0, "ema_decay": 0.9, "kind": kind, "weights": weights}
    step = make_train_step(network, optimizer, alpha_bar, **options)
    state = initial_state(jax.tree.map(jnp.copy, start), optimizer)
    dataset = load_dataset(DataConfig(), (8, 8, 1))
    for batch in itertools.islice(batches(dataset, 64, 0), 200):
        state, _ = step(state, batch.x_0)

    table = ddim.step_table(alpha_bar, ddim.trailing_timesteps(1000, 10), ddim.eta(0.0))
    keys = ddim.image_keys(0, np.arange(256))
    noise = ddim.initial_noise(keys, (8, 8, 1))

    @jax.jit
    def draw(params):
        denoise = ddim.denoiser(network, params, alpha_bar, kind)
        return ddim.sample(ddim.clip_x0(denoise, rederive_epsilon=True), noise, table, keys)

    real = to_unit_range(dataset.read(np.arange(dataset.size))).reshape(dataset.size, -1)
    trained, untrained = (
        frechet_distance(np.asarray(images).reshape(256, -1), real)
        for images in (draw(state.ema), noise)
    )
    assert trained < 0.2 * untrained, (trained, untrained)
