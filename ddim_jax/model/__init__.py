"""The network ε_θ and published weights for it, and the Inception network of FID."""

from ..config import UNetConfig
from .inception import inception_features, inception_logits
from .inception_file import find_inception, load_inception
from .pretrained import load_pretrained, save_diffusers
from .unet import build_unet, unet_apply, unet_shapes

__all__ = [
    "UNetConfig",
    "build_unet",
    "find_inception",
    "inception_features",
    "inception_logits",
    "load_inception",
    "load_pretrained",
    "save_diffusers",
    "unet_apply",
    "unet_shapes",
]
