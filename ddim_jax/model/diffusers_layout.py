"""Our architecture as diffusers' configuration of UNet2DModel, and the names of its tensors."""

import re
import reprlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from ..architecture import UNetConfig, Variants
from ..files import read_json
from .torch_file import check_regular

_OLD_ATTENTION = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
_NULL_CLASS = "ddim_jax_null_class"  # our own key: the last class means no label
_REQUIRED = object()
_MAX_JSON = 10_000_000


class _Setting(NamedTuple):
    """A setting of UNet2DModel: its value if config.json omits it, its type, what we can read."""

    default: Any
    kinds: tuple[type, ...]
    readable: tuple[Any, ...] = ()  # empty: any value


_WORDS: dict[str, _Setting] = {
    "sample_size": _Setting(_REQUIRED, (int, list)),
    "in_channels": _Setting(3, (int,)),
    "out_channels": _Setting(3, (int,)),
    "block_out_channels": _Setting(_REQUIRED, (list,)),
    "down_block_types": _Setting(_REQUIRED, (list,)),
    "up_block_types": _Setting(_REQUIRED, (list,)),
    "layers_per_block": _Setting(2, (int,)),
    "norm_num_groups": _Setting(32, (int,)),
    "dropout": _Setting(0.0, (float, int)),
    "num_class_embeds": _Setting(None, (int, type(None))),
    _NULL_CLASS: _Setting(None, (int, type(None))),
    "attention_head_dim": _Setting(8, (int, type(None))),
    "attn_norm_num_groups": _Setting(None, (int, type(None))),
    "norm_eps": _Setting(1e-5, (float,)),
    "flip_sin_to_cos": _Setting(True, (bool,)),
    "freq_shift": _Setting(0, (int,)),
    "downsample_padding": _Setting(1, (int,), (0, 1)),
    "resnet_time_scale_shift": _Setting("default", (str,), ("default", "scale_shift")),
    "act_fn": _Setting("silu", (str,), ("silu", "swish")),
    "add_attention": _Setting(True, (bool,), (True,)),
    "center_input_sample": _Setting(False, (bool,), (False,)),
    "class_embed_type": _Setting(None, (str, type(None)), (None,)),
    "downsample_type": _Setting("conv", (str,), ("conv",)),
    "upsample_type": _Setting("conv", (str,), ("conv",)),
    "mid_block_scale_factor": _Setting(1, (int, float), (1,)),
    "mid_block_type": _Setting("UNetMidBlock2D", (str, type(None)), ("UNetMidBlock2D",)),
    "time_embedding_type": _Setting("positional", (str,), ("positional",)),
}


def diffusers_name(name: str, levels: int, old_attention: bool = False) -> str:
    """The diffusers name of the tensor with this official name.

    >>> diffusers_name("up.1.attn.0.proj_out.weight", levels=4)
    'up_blocks.2.attentions.0.to_out.0.weight'
    """
    for pattern, replacement in (
        (r"^temb\.dense\.([01])", lambda match: f"time_embedding.linear_{int(match[1]) + 1}"),
        (r"^classes\.", "class_embedding."),
        (r"^mid\.block_([12])", lambda match: f"mid_block.resnets.{int(match[1]) - 1}"),
        (r"^mid\.attn_1", "mid_block.attentions.0"),
        (r"^down\.(\d+)", r"down_blocks.\1"),
        (r"^up\.(\d+)", lambda match: f"up_blocks.{levels - 1 - int(match[1])}"),
        (r"\.block\.", ".resnets."),
        (r"\.attn\.", ".attentions."),
        (r"\.(down|up)sample\.conv", r".\1samplers.0.conv"),
        (r"\.temb_proj\.", ".time_emb_proj."),
        (r"\.nin_shortcut\.", ".conv_shortcut."),
        (r"^norm_out", "conv_norm_out"),
        (r"(attentions\.\d+)\.norm", r"\1.group_norm"),
        (r"(attentions\.\d+)\.([qkv])\.", r"\1.to_\2."),
        (r"(attentions\.\d+)\.proj_out", r"\1.to_out.0"),
    ):
        name = re.sub(pattern, replacement, name)
    for new, old in _OLD_ATTENTION.items() if old_attention else ():
        name = name.replace(f".{new}.", f".{old}.")
    return name


def read_settings(path: Path) -> dict[str, Any]:
    """The object in a JSON file of diffusers."""
    wanted = "a folder of a UNet2DModel, as save_pretrained writes it"
    check_regular(path, wanted)
    if path.stat().st_size > _MAX_JSON:
        raise ValueError(f"{path} has more than {_MAX_JSON:,} bytes; give {wanted}.")
    return read_json(path, wanted)


def unet_of_diffusers(values: dict[str, Any], path: Path) -> UNetConfig:
    """The architecture in a UNet2DModel's config.json; all that our UNet lacks is named at once."""
    kind = values.get("_class_name", "UNet2DModel")
    if kind != "UNet2DModel":
        raise ValueError(f"{path} describes a {str(kind)[:60]}; only a UNet2DModel can be read.")
    _check_types(values, path)
    settings = {name: values.get(name, word.default) for name, word in _WORDS.items()}
    size, widths = settings["sample_size"], settings["block_out_channels"]
    obstacles = list(_obstacles(settings))
    if obstacles:
        raise ValueError(f"{path} has what our UNet cannot be: {'; '.join(obstacles)}.")
    head, classes = settings["attention_head_dim"], settings["num_class_embeds"]
    null_class, scale_shift = (
        settings[_NULL_CLASS],
        settings["resnet_time_scale_shift"] != "default",
    )
    attends = ["Attn" in name for name in settings["down_block_types"]]
    config = UNetConfig(
        image_size=(size := size[0] if isinstance(size, list) else size),
        image_channels=settings["in_channels"],
        channels=widths[0],
        multipliers=tuple(width // widths[0] for width in widths),
        blocks=settings["layers_per_block"],
        attention_resolutions=tuple(size >> i for i, attend in enumerate(attends) if attend),
        groups=settings["norm_num_groups"],
        dropout=float(settings["dropout"]),
        num_classes=(classes or 0) if null_class is None else null_class,
        variants=Variants(
            head_channels=head or 0,
            norm_eps=settings["norm_eps"],
            cosine_first=settings["flip_sin_to_cos"],
            frequency_shift=settings["freq_shift"],
            symmetric_downsampling=settings["downsample_padding"] == 1,
            scale_shift=scale_shift,
            # diffusers leaves it out with scale_shift, unless asked for.
            middle_norm=not scale_shift or settings["attn_norm_num_groups"] is not None,
            null_class=classes is None or null_class is not None,
        ),
    )
    try:
        config.check()
    except ValueError as error:
        raise ValueError(f"{path} describes a network that cannot be built: {error}") from error
    return config


def learns_sigma(values: dict[str, Any]) -> bool:
    """Whether the network has a second half of outputs, for σ."""
    return bool(values.get("out_channels", 3) == 2 * values.get("in_channels", 3))


def _check_types(values: dict[str, Any], path: Path) -> None:
    """Raise a ValueError that names all settings that are missing or have the wrong type."""
    wrong = []
    for name, word in _WORDS.items():
        value = values.get(name, word.default)
        if value is _REQUIRED:
            wrong.append(f"no {name}")
        elif type(value) not in word.kinds:
            wrong.append(f"{name} = {_shown(value)}")
        elif isinstance(value, list):
            item = str if name.endswith("types") else int
            if not 1 <= len(value) <= 20 or any(type(part) is not item for part in value):
                wrong.append(f"{name} = {_shown(value)}")
    if wrong:
        raise ValueError(
            f"{path} is not a config.json of a UNet2DModel: it has {', '.join(wrong)}."
        )


def _obstacles(settings: dict[str, Any]) -> Iterator[str]:
    """What our UNet cannot be, each with its value."""
    for name, word in _WORDS.items():
        if word.readable and settings[name] not in word.readable:
            allowed = " or ".join(map(repr, word.readable))
            yield f"{name} = {_shown(settings[name])} (only {allowed})"
    widths, down, up = (
        settings[name] for name in ("block_out_channels", "down_block_types", "up_block_types")
    )
    attends = ["Attn" in name for name in down]
    known = all(name in ("DownBlock2D", "AttnDownBlock2D") for name in down)
    known = known and all(name in ("UpBlock2D", "AttnUpBlock2D") for name in up)
    if not known or ["Attn" in name for name in up] != attends[::-1] or len(down) != len(widths):
        yield (
            f"down_block_types {_shown(down)} and up_block_types {_shown(up)} (only DownBlock2D "
            "and AttnDownBlock2D, one per width, and the same upwards in reverse)"
        )
    if isinstance(size := settings["sample_size"], list) and len(set(size)) > 1:
        yield f"sample_size = {_shown(size)} (only squares)"
    if widths[0] < 1 or any(width < 1 or width % widths[0] for width in widths):
        yield f"block_out_channels {_shown(widths)} (only multiples of the first)"
    if settings["out_channels"] not in (settings["in_channels"], 2 * settings["in_channels"]):
        yield (
            f"{settings['in_channels']} in_channels and {settings['out_channels']} out_channels "
            "(only as many, or twice as many with a learned σ)"
        )
    classes, null_class = settings["num_class_embeds"], settings[_NULL_CLASS]
    if classes is not None and (classes < 1 or null_class not in (None, classes - 1)):
        yield f"num_class_embeds = {classes} with {_NULL_CLASS} = {null_class}"
    groups = settings["attn_norm_num_groups"]
    if groups not in (None, settings["norm_num_groups"]):
        yield f"attn_norm_num_groups = {groups} (only norm_num_groups)"
    if settings["attention_head_dim"] == 0:
        yield "attention_head_dim = 0"


def _shown(value: Any) -> str:
    """A value of the file, cut to what fits a message."""
    return reprlib.repr(value)


def unet_to_diffusers(config: UNetConfig) -> dict[str, Any]:
    """The config.json of an architecture."""
    kinds = config.variants
    attention = [
        "Attn" if config.image_size >> level in config.attention_resolutions else ""
        for level in range(len(config.multipliers))
    ]
    classes: dict[str, Any] = {"num_class_embeds": config.class_rows() or None}
    if config.num_classes and kinds.null_class:
        classes[_NULL_CLASS] = config.num_classes
    return {
        "_class_name": "UNet2DModel",
        **{name: word.readable[0] for name, word in _WORDS.items() if word.readable},
        "sample_size": config.image_size,
        "in_channels": config.image_channels,
        "out_channels": config.image_channels,
        "block_out_channels": [config.channels * multiplier for multiplier in config.multipliers],
        "layers_per_block": config.blocks,
        "norm_num_groups": config.groups,
        "dropout": config.dropout,
        "down_block_types": [f"{attn}DownBlock2D" for attn in attention],
        "up_block_types": [f"{attn}UpBlock2D" for attn in reversed(attention)],
        "attention_head_dim": kinds.head_channels or None,
        "attn_norm_num_groups": config.groups if kinds.scale_shift and kinds.middle_norm else None,
        "norm_eps": kinds.norm_eps,
        "flip_sin_to_cos": kinds.cosine_first,
        "freq_shift": kinds.frequency_shift,
        "downsample_padding": int(kinds.symmetric_downsampling),
        "resnet_time_scale_shift": "scale_shift" if kinds.scale_shift else "default",
        **classes,
    }
