"""What is drawn from, and measured on, a trained model."""

from .generate import GenerateConfig, generate_images

__all__ = ["GenerateConfig", "generate_images"]
