"""The network ε_θ."""

from ..config import UNetConfig
from .unet import build_unet, unet_apply

__all__ = ["UNetConfig", "build_unet", "unet_apply"]
