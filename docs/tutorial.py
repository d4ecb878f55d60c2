# %% [markdown]
# # DDIM in ten minutes
#
# A diffusion model of 8×8 digits: add noise, train, sample, change σ, use a solver of higher
# order, and check the sampler where the answer is known exactly. It takes about ten minutes on a
# laptop with two cores. Equation numbers are those of the DDIM paper
# ([arXiv:2010.02502](https://arxiv.org/abs/2010.02502)). The code writes $\bar\alpha$ where the
# paper writes $\alpha$.
#
# In a clone of the repository, `pip install -e .` and start Jupyter. In Colab, first install the
# package from the address of the repository: `%pip install -q
# git+https://github.com/OWNER/ddim_jax`.

# %%
import json
from dataclasses import replace
from pathlib import Path

from ddim_jax import devices

devices.setup()  # first of all: each core becomes a device, and compiled programs are kept

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from rich.console import Console

import ddim_jax as ddim
from ddim_jax.config import presets
from ddim_jax.data import load_dataset
from ddim_jax.images import tile, to_uint8, to_unit_range
from ddim_jax.metrics import frechet_distance
from ddim_jax.model import unet_apply
from ddim_jax.training import load_run, train

# %%
OUT, CHANNELS, STEPS, IMAGES = "runs/tutorial", 32, 800, 256

# %% [markdown]
# ## Noise
#
# The forward process mixes an image with noise (Eq. 4). With $t$ from 1 to $T = 1000$,
#
# $$x_t = \sqrt{\bar\alpha_t}\,x_0 + \sqrt{1-\bar\alpha_t}\,\epsilon,
# \qquad \epsilon \sim \mathcal N(0, I).$$

# %%
config = presets()["digits"]
config = replace(
    config,
    out=OUT,
    model=replace(config.model, channels=CHANNELS),
    train=replace(config.train, steps=STEPS, warmup_steps=STEPS // 16, evaluate_images=0),
)
digits = load_dataset(config.data, (8, 8, 1))
data = to_unit_range(digits.read(np.arange(digits.size)))  # in [−1, 1]
alpha_bar = config.diffusion.alpha_bar()  # ᾱ_0 … ᾱ_T


def show(rows, labels, title=""):
    """Rows of images in [−1, 1], with a label for each row."""
    canvas, _ = tile(np.stack([to_uint8(np.asarray(row)) for row in rows]))
    _, axes = plt.subplots(figsize=(canvas.shape[1] / 75, canvas.shape[0] / 75))
    axes.imshow(canvas, cmap="gray", vmin=0, vmax=255)
    axes.set_yticks((np.arange(len(rows)) + 0.5) * canvas.shape[0] / len(rows), labels)
    axes.set_xticks([])
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    axes.set_title(title)
    plt.show()


times = [0, 100, 250, 500, 1000]
noise = jax.random.normal(jax.random.key(0), (10, 8, 8, 1))
show(
    [ddim.add_noise(data[:10], noise, alpha_bar[t]) for t in times],
    [f"t = {t}" for t in times],
    "x_t of the first ten digits",
)

# %% [markdown]
# ## Train
#
# A UNet predicts $\epsilon$ from $x_t$ and $t$ (Eq. 5, with $\gamma = 1$). `ddim-train` does the
# same. If it is stopped, run the cell again: the run resumes where it was.

# %%
train(config, Console(force_jupyter=False, force_terminal=False, highlight=False))

# %%
lines = [json.loads(line) for line in (Path(OUT) / "metrics.jsonl").read_text().splitlines()]
plt.figure(figsize=(6, 3))
plt.semilogy([line["step"] for line in lines], [line["loss"] for line in lines], label="training")
judged = [line for line in lines if "validation_loss" in line]
plt.semilogy(
    [line["step"] for line in judged],
    [line["validation_loss"] for line in judged],
    "o",
    label="validation, averaged weights",
)
plt.xlabel("step")
plt.ylabel("loss")
plt.legend()
plt.show()

# %% [markdown]
# ## Sample
#
# Sampling visits a sub-sequence τ of the times, from noise to data. A step from $t$ to $s$ is Eq.
# 12:
#
# $$x_s = \sqrt{\bar\alpha_s}\,\hat x_0 + \sqrt{1-\bar\alpha_s-\sigma^2}\;\hat\epsilon + \sigma z.$$
#
# Here $z$ is fresh noise. One row of a `StepTable` holds all that a step needs, τ and σ included.
# Tables are arrays, so one compiled program runs any number of them from the same noise.

# %%
_, params = load_run(OUT)
apply = unet_apply(config.model)
keys = ddim.image_keys(seed=0, indices=range(IMAGES))
x_T = ddim.initial_noise(keys, (8, 8, 1))


@jax.jit
def draw(params, tables, x_T):
    return ddim.sample_many(ddim.denoiser(apply, params, alpha_bar), x_T, tables, keys)


def table(sigma, S, solver=ddim.first_order()):
    return ddim.step_table(alpha_bar, ddim.quadratic_timesteps(1000, S), sigma, solver)


SIGMAS = {
    "η = 0 (DDIM)": ddim.eta(0.0),
    "η = 0.2": ddim.eta(0.2),
    "η = 0.5": ddim.eta(0.5),
    "η = 1 (DDPM)": ddim.eta(1.0),
    "σ̂": ddim.sigma_hat(),
}
few = draw(params, ddim.stack_tables([table(sigma, 5) for sigma in SIGMAS.values()]), x_T)
show(few[:, :10], SIGMAS, "the same noise, five σ, S = 5 steps")

# %% [markdown]
# With five steps, a larger σ costs quality: the noise that a step adds is still there at the end.
# The paper's Table 1 says the same in FID. Below is the Fréchet distance of pixels for several
# numbers of steps S. Smaller is better.

# %%
REAL = data.reshape(len(data), -1)


def distances(tables):
    """The Fréchet distance to the training images, for each table."""
    drawn = np.asarray(draw(params, ddim.stack_tables(tables), x_T)).reshape(
        len(tables), IMAGES, -1
    )
    return [frechet_distance(REAL, np.clip(images, -1, 1)) for images in drawn]


STEPS_S = (5, 10, 20)
grid = [table(sigma, S) for sigma in SIGMAS.values() for S in STEPS_S]
frechet = dict(zip(SIGMAS, np.reshape(distances(grid), (len(SIGMAS), -1)), strict=True))
for name, row in frechet.items():
    print(f"{name:>14}", *(f"  S={S}: {value:5.2f}" for S, value in zip(STEPS_S, row, strict=True)))

# %% [markdown]
# ## A σ of your own
#
# A σ schedule is a function from the steps of a τ to two standard deviations per step: σ in the
# mean, and that of the fresh noise. This one adds noise only at times below 400:


# %%
def late(steps):  # Steps(t, s, alpha_bar_t, alpha_bar_s), noisiest first
    sigma = 0.8 * (1 - steps.alpha_bar_s) ** 0.5 * (steps.t < 400)
    return ddim.Sigmas(sigma, noise=sigma)


# %%
names = {"η = 0": ddim.eta(0.0), "late": late, "η = 1": ddim.eta(1.0)}
tables = [table(sigma, 10) for sigma in names.values()]
own = dict(zip(names, distances(tables), strict=True))
print(*(f"{name}: {value:.2f}" for name, value in own.items()), sep=", ")
plt.figure(figsize=(6, 3))
for name, steps in zip(names, tables, strict=True):
    plt.plot(steps.t, steps.noise, "o-", label=name)
plt.xlabel("t")
plt.ylabel("σ, S = 10")
plt.legend()
plt.show()

# %% [markdown]
# At S = 10, `late` lies between the other two. In a file `mine.py`, the same function is a flag:
# `ddim-sample ablate runs/tutorial --sigma mine.py:late`.
#
# ## Order 2
#
# A solver of higher order also uses past predictions. It adds two columns to the table and works
# for any σ. Each step is still one call of the network.

# %%
SOLVERS = {
    "first order": ddim.first_order(),
    "adams(2)": ddim.adams(2),
    "dpm_solver_pp(2)": ddim.dpm_solver_pp(2),
}
grid = [table(ddim.eta(0.0), S, solver) for solver in SOLVERS.values() for S in STEPS_S]
ordered = dict(zip(SOLVERS, np.reshape(distances(grid), (len(SOLVERS), -1)), strict=True))
for name, row in ordered.items():
    print(f"{name:>16}", *(f"  S={S}: {value:5.2f}" for S, value in zip(STEPS_S, row, strict=True)))

# %% [markdown]
# With five steps, both methods of order 2 are better here.
#
# ## Where the answer is known
#
# Distances of a trained model mix two errors, the network's and the sampler's. For Gaussian data
# the best denoiser has a closed form, and so has the distribution of the sampler's output. First,
# samples against that distribution.

# %%
mean, covariance = REAL.mean(0), np.cov(REAL.T)
exact_denoiser = ddim.gaussian_oracle(mean, covariance, alpha_bar)
steps = table(ddim.eta(0.5), 10)
many = ddim.image_keys(seed=1, indices=range(4096))
sampled = np.asarray(ddim.sample(exact_denoiser, ddim.initial_noise(many, (64,)), steps, many))
moments = ddim.propagate_gaussian(mean, covariance, alpha_bar, steps)
print("largest difference of the means:", np.abs(sampled.mean(0) - moments.mean).max().round(3))
print(
    "variance over all pixels: sampled",
    np.trace(np.cov(sampled.T)).round(2),
    "exact",
    np.trace(moments.covariance).round(2),
)

# %% [markdown]
# Then the error of every σ, and of order 2 at η = 0, as the squared Wasserstein distance between
# the covariances of output and data:

# %%
MANY = (5, 10, 20, 50, 100)


def error(sigma, S, solver=ddim.first_order()):
    out = ddim.propagate_gaussian(mean, covariance, alpha_bar, table(sigma, S, solver))
    return ddim.wasserstein2_gaussian(out.mean, out.covariance, mean, covariance)[1]


exact = {name: [error(sigma, S) for S in MANY] for name, sigma in SIGMAS.items()}
exact["η = 0, adams(2)"] = [error(ddim.eta(0.0), S, ddim.adams(2)) for S in MANY]
plt.figure(figsize=(6, 4))
for name, row in exact.items():
    plt.loglog(MANY, row, "o-", label=name)
plt.xlabel("S")
plt.ylabel("exact W₂², covariance part")
plt.legend()
plt.show()

# %% [markdown]
# The error grows with η at every S, as in the paper. σ̂ is not the worst here: its extra variance
# makes up for the variance that the sampler loses. Its bad FID on images comes from the noise of
# the last steps.
#
# ## Bits per dimension
#
# The same (τ, σ) also gives a bound on the negative log-likelihood (Eq. 11). It needs noise in
# every step but the last, so it is infinite for η = 0. In bits per dimension of the test images:

# %%
held_out = load_dataset(config.data, (8, 8, 1), "test")
x_0 = jnp.asarray(to_unit_range(held_out.read(np.arange(min(IMAGES, held_out.size)))))


@jax.jit
def bound(params, table):
    denoise = ddim.denoiser(apply, params, alpha_bar)
    return ddim.elbo(denoise, x_0, alpha_bar, table, keys[: len(x_0)])


bits = {}
for S in (10, 50):
    for name in ("η = 0.5", "η = 1 (DDPM)"):
        parts = bound(params, table(SIGMAS[name], S))
        nats = parts.prior + parts.steps.sum(1) + parts.data
        bits[name, S] = float(ddim.bits_per_dim(-nats, (8, 8, 1)).mean())
        print(f"{name:>14}, S = {S}: {bits[name, S]:.2f} bits/dim")

# %% [markdown]
# More steps give a tighter bound. The values cannot be compared with those of other data: these
# digits use only 17 of the 256 levels.
#
# ## What FID would need
#
# FID is this Fréchet distance with features of an Inception network in place of pixels. It needs
# 96 MB of weights (the first use downloads them), natural images such as CIFAR-10, and 50,000
# samples, so a GPU:
#
# ```sh
# ddim-sample evaluate runs/cifar10 --against cifar10 --features inception --num-images 50000
# ```
#
# Next: [ablations](ablation.md) of any σ with intervals, [training](training.md) on your own
# images, [published weights](weights.md), and the [API](api.md).
