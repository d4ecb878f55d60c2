"""The settings of the network: the paper's, and variants that only other code has."""

import math
from dataclasses import dataclass, field
from typing import Annotated

from .settings import BETWEEN_0_AND_1, FRACTION, Range, at_least, check_ranges, require

_MAX_SIZE, _MAX_LEVELS, _MAX_BLOCKS, _MAX_CHANNELS = 4096, 10, 64, 16_384


@dataclass(frozen=True)
class Variants:
    """Variants of the network in diffusers; the defaults are the paper's."""

    head_channels: Annotated[int, at_least(0)] = 0
    """Channels of each attention head; 0: one head."""
    norm_eps: Annotated[float, BETWEEN_0_AND_1] = 1e-6
    """Added to the variance in GroupNorm."""
    cosine_first: bool = False
    """The time embedding is [cos, sin] instead of [sin, cos]."""
    frequency_shift: Annotated[int, at_least(0)] = 1
    """The K frequencies of the time embedding are 10000^(−k/(K − shift))."""
    symmetric_downsampling: bool = False
    """Pad on all sides before downsampling, not only on the right and at the bottom."""
    scale_shift: bool = False
    """The time embedding scales and shifts the features, (1 + a) h + b, instead of being added."""
    middle_norm: bool = True
    """GroupNorm before the attention of the middle block."""
    null_class: bool = True
    """Embed "no label" as one more class; without it every image needs a label."""


@dataclass(frozen=True)
class UNetConfig:
    """The network; the defaults are the paper's for CIFAR-10, with 35,746,307 parameters."""

    image_size: Annotated[int, Range(lambda n: n <= _MAX_SIZE, f"at most {_MAX_SIZE}")] = 32
    """Height and width of the images, in pixels."""
    image_channels: Annotated[int, Range((1, 3).__contains__, "1 (grey) or 3 (RGB)")] = 3
    """1 (grey) or 3 (RGB)."""
    channels: int = 128
    """Channels at the highest resolution."""
    multipliers: tuple[int, ...] = (1, 2, 2, 2)
    """Channels per level, in units of `channels`; each level after the first halves the image."""
    blocks: Annotated[int, Range(lambda n: 1 <= n <= _MAX_BLOCKS, f"1 to {_MAX_BLOCKS}")] = 2
    """Residual blocks per level on the way down; one more on the way up."""
    attention_resolutions: tuple[int, ...] = (16,)
    """Image sizes at which attention follows each block; the middle block always has it."""
    groups: Annotated[int, at_least(1)] = 32
    """Groups of GroupNorm. Keep 4 or more channels per group: with 1 the time embedding is lost."""
    dropout: Annotated[float, FRACTION] = 0.1
    """Dropout probability inside residual blocks, in training."""
    zero_init: bool = True
    """Initialise to zero the last convolution of each block, of attention and of the network."""
    num_classes: Annotated[int, Range(lambda n: 0 <= n <= 10**6, "0 to 1,000,000")] = 0
    """Number of classes to condition on, equal to the data set's; 0: unconditional."""
    variants: Variants = field(default_factory=Variants)

    def image_shape(self) -> tuple[int, int, int]:
        """(H, W, C)."""
        return (self.image_size, self.image_size, self.image_channels)

    def class_rows(self) -> int:
        """The rows of the table of classes."""
        return self.num_classes + (self.num_classes > 0 and self.variants.null_class)

    def heads(self, width: int) -> int:
        """The attention heads for a number of channels."""
        return width // (self.variants.head_channels or width)

    def check(self) -> None:
        """Raise a ValueError if the architecture does not fit its image size."""
        check_ranges(self, "model.")
        levels = len(self.multipliers)
        require(1 <= levels <= _MAX_LEVELS and min(self.multipliers) >= 1, "model.multipliers",
                self.multipliers, f"1 to {_MAX_LEVELS} numbers, each 1 or more")  # fmt: skip
        factor = 2 ** (levels - 1)
        require(self.image_size >= 1 and self.image_size % factor == 0, "model.image-size",
                self.image_size, f"a multiple of {factor}, since {levels} levels halve it "
                f"{levels - 1} times")  # fmt: skip
        require(self.channels >= 4 and self.channels % math.lcm(2, self.groups) == 0,
                "model.channels", self.channels,
                f"a multiple of 2 and of model.groups = {self.groups}, at least 4")  # fmt: skip
        widest = self.channels * max(self.multipliers)
        require(widest <= _MAX_CHANNELS, "model.channels", self.channels,
                f"at most {_MAX_CHANNELS} after model.multipliers, and is {widest}")  # fmt: skip
        sizes = [self.image_size >> level for level in range(levels)]
        for size in self.attention_resolutions:
            require(size in sizes, "model.attention-resolutions", size,
                    f"among the sizes of the levels, {sizes}")  # fmt: skip
        self._check_variants(sizes)

    def _check_variants(self, sizes: list[int]) -> None:
        kinds, frequencies = self.variants, self.channels // 2
        require(kinds.frequency_shift < frequencies, "model.variants.frequency-shift",
                kinds.frequency_shift, f"below the {frequencies} frequencies")  # fmt: skip
        for size, multiplier in zip(sizes, self.multipliers, strict=True):
            width = self.channels * multiplier
            if size in self.attention_resolutions or size == sizes[-1]:
                require(width % (kinds.head_channels or width) == 0,
                        "model.variants.head-channels", kinds.head_channels,
                        f"a divisor of the {width} channels at image size {size}")  # fmt: skip
