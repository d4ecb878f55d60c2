"""Training: loss, state, step, checkpoints and the loop around them."""

from ..diffusion.objective import epsilon_loss
from .checkpoint import load_run
from .loop import describe_run, train
from .state import TrainState, initial_state, make_optimizer
from .step import make_train_step

__all__ = [
    "TrainState",
    "describe_run",
    "epsilon_loss",
    "initial_state",
    "load_run",
    "make_optimizer",
    "make_train_step",
    "train",
]
