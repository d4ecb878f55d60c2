"""The network ε_θ, and published weights for it."""

from ..config import UNetConfig
from .pretrained import load_pretrained, save_diffusers
from .unet import build_unet, unet_apply, unet_shapes

__all__ = [
    "UNetConfig",
    "build_unet",
    "load_pretrained",
    "save_diffusers",
    "unet_apply",
    "unet_shapes",
]
