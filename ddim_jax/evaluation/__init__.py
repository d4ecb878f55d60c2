"""What is drawn from, and measured on, a trained model."""

from .ablation import AblateConfig, ablate
from .features import ClassifierConfig, train_classifier
from .generate import GenerateConfig, generate_images
from .pictures import InterpolateConfig, TrajectoryConfig, interpolate, trajectory
from .reconstruction import ReconstructConfig, reconstruct

__all__ = ["AblateConfig", "ClassifierConfig", "GenerateConfig", "InterpolateConfig", "ReconstructConfig", "TrajectoryConfig",
           "ablate", "generate_images", "interpolate", "reconstruct", "train_classifier", "trajectory"]  # fmt: skip
