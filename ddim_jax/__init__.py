"""DDIM as the paper writes it (Song, Meng, Ermon, arXiv:2010.02502), as pure JAX functions."""

from .diffusion.forward import Gaussian, add_noise, q_forward, q_marginal, q_reverse
from .diffusion.prediction import Denoiser, Prediction, clip_x0, denoiser
from .diffusion.reverse import StepTable, ddim_step, step_table
from .diffusion.sampling import Path, image_keys, initial_noise, sample, sample_path
from .diffusion.schedules import alpha_bars, cosine_betas, linear_betas
from .diffusion.sigmas import Sigmas, SigmaSchedule, Steps, custom, ddpm, eta, sigma_hat
from .diffusion.timesteps import official_timesteps, quadratic_timesteps, uniform_timesteps

__all__ = [
    # schedules: β and ᾱ
    "linear_betas", "cosine_betas", "alpha_bars",
    # forward: q(x_t|x_0), q_σ(x_s|x_t,x_0), q_σ(x_t|x_s,x_0)
    "Gaussian", "q_marginal", "q_reverse", "q_forward", "add_noise",
    # prediction: network output → (x̂_0, ε̂)
    "Prediction", "Denoiser", "denoiser", "clip_x0",
    # timesteps: τ
    "uniform_timesteps", "quadratic_timesteps", "official_timesteps",
    # sigmas: σ schedules
    "Steps", "Sigmas", "SigmaSchedule", "eta", "ddpm", "sigma_hat", "custom",
    # reverse: the steps, and Eq. 12
    "StepTable", "step_table", "ddim_step",
    # sampling: the reverse process as one scan
    "image_keys", "initial_noise", "sample", "sample_path", "Path",
]  # fmt: skip
