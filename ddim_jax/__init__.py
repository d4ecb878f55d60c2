"""DDIM as the paper writes it (Song, Meng, Ermon, arXiv:2010.02502), as pure JAX functions."""

from typing import TYPE_CHECKING

from .diffusion.encoding import encode, slerp
from .diffusion.forward import Gaussian, add_noise, q_forward, q_marginal, q_reverse
from .diffusion.keys import image_keys, initial_noise
from .diffusion.learned import TableParameters, learned_table, table_parameters
from .diffusion.likelihood import Elbo, bits_per_dim, elbo, elbo_costs, ode_log_likelihood
from .diffusion.moments import (
    GaussianErrors,
    Moments,
    gaussian_errors,
    kl_gaussian,
    propagate_gaussian,
    wasserstein2_gaussian,
)
from .diffusion.objective import epsilon_weights, x_0_weights
from .diffusion.oracle import empirical_oracle, gaussian_oracle, mixture_oracle
from .diffusion.prediction import Denoiser, Prediction, clip_x0, denoiser, dynamic_threshold, guided
from .diffusion.reverse import StepTable, ddim_step, stack_tables, step_table
from .diffusion.sampling import Trajectory, sample, sample_many, sample_path
from .diffusion.schedules import (
    alpha_bars,
    constant_betas,
    cosine_betas,
    jsd_betas,
    linear_betas,
    quadratic_betas,
    sigmoid_betas,
    zero_terminal_snr,
)
from .diffusion.sigmas import (
    Sigmas,
    SigmaSchedule,
    Steps,
    analytic,
    custom,
    ddpm,
    estimate_epsilon_power,
    eta,
    final_noise,
    on_interval,
    scaled,
    sigma_hat,
)
from .diffusion.solvers import (
    Correction,
    Solver,
    adams,
    deis,
    dpm_solver_pp,
    first_order,
    ipndm,
)
from .diffusion.timesteps import (
    karras_timesteps,
    linspace_timesteps,
    logsnr_timesteps,
    official_timesteps,
    optimal_timesteps,
    quadratic_timesteps,
    trailing_timesteps,
    uniform_timesteps,
)

if TYPE_CHECKING:
    __version__: str
else:

    def __getattr__(name):
        """`__version__`, looked up where it is asked for: the import stays light."""
        if name != "__version__":
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from importlib.metadata import version

        return version(__name__)


__all__ = [
    # schedules: β and ᾱ
    "linear_betas", "quadratic_betas", "cosine_betas", "sigmoid_betas", "constant_betas",
    "jsd_betas", "alpha_bars", "zero_terminal_snr",
    # forward: q(x_t|x_0), q_σ(x_s|x_t,x_0), q_σ(x_t|x_s,x_0)
    "Gaussian", "q_marginal", "q_reverse", "q_forward", "add_noise",
    # objective: the weights that J_σ gives the squared errors
    "epsilon_weights", "x_0_weights",
    # prediction: network output → (x̂_0, ε̂)
    "Prediction", "Denoiser", "denoiser", "clip_x0", "dynamic_threshold", "guided",
    # timesteps: τ
    "uniform_timesteps", "quadratic_timesteps", "trailing_timesteps", "linspace_timesteps",
    "logsnr_timesteps", "karras_timesteps", "official_timesteps", "optimal_timesteps",
    # sigmas: σ schedules, and what makes others of them
    "Steps", "Sigmas", "SigmaSchedule", "eta", "ddpm", "sigma_hat", "custom", "analytic",
    "estimate_epsilon_power", "on_interval", "scaled", "final_noise",
    # solvers: what past predictions add to Eq. 12
    "Correction", "Solver", "first_order", "adams", "dpm_solver_pp", "deis", "ipndm",
    # reverse: the steps, and Eq. 12
    "StepTable", "step_table", "stack_tables", "ddim_step",
    # keys and sampling: the reverse process as one scan
    "image_keys", "initial_noise", "sample", "sample_path", "sample_many", "Trajectory",
    # encoding: x_0 → x_T
    "encode", "slerp",
    # likelihood: the ELBO of any τ and σ, the density of the ODE
    "Elbo", "elbo", "elbo_costs", "ode_log_likelihood", "bits_per_dim",
    # oracle and moments: exact denoisers, and the exact distribution of what they sample
    "gaussian_oracle", "mixture_oracle", "empirical_oracle", "propagate_gaussian", "Moments",
    "wasserstein2_gaussian", "kl_gaussian", "GaussianErrors", "gaussian_errors",
    # learned: a table as the parameters of a gradient
    "TableParameters", "table_parameters", "learned_table",
]  # fmt: skip
