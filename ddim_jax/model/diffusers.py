"""The words of diffusers' UNet2DModel and its schedulers for our architecture and our noising process."""

import json
import re
from pathlib import Path
from typing import Any

from ..config import DiffusionConfig, UNetConfig

_OLD_ATTENTION = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
# What our UNet is in the words of diffusers' UNet2DModel, and what that takes where a config.json leaves the word out.
_FIXED: dict[str, tuple[Any, Any]] = {
    "act_fn": ("silu", "silu"), "add_attention": (True, True), "attention_head_dim": (None, 8),
    "attn_norm_num_groups": (None, None), "center_input_sample": (False, False), "class_embed_type": (None, None),
    "downsample_padding": (0, 1), "downsample_type": ("conv", "conv"), "flip_sin_to_cos": (False, True),
    "freq_shift": (1, 0), "mid_block_scale_factor": (1, 1), "mid_block_type": ("UNetMidBlock2D", "UNetMidBlock2D"),
    "norm_eps": (1e-6, 1e-5), "resnet_time_scale_shift": ("default", "default"),
    "time_embedding_type": ("positional", "positional"), "upsample_type": ("conv", "conv"),
}  # fmt: skip
_NULL_CLASS = "ddim_jax_null_class"  # our own word: the last class means no label
_BETAS = {"linear": "linear", "cosine": "squaredcos_cap_v2"}
_PREDICTIONS = {"epsilon": "epsilon", "x0": "sample", "v": "v_prediction"}


def diffusers_name(name: str, levels: int, old_attention: bool = False) -> str:
    """The official name of a tensor in diffusers' words.

    >>> diffusers_name("up.1.attn.0.proj_out.weight", levels=4)
    'up_blocks.2.attentions.0.to_out.0.weight'
    """
    for pattern, replacement in (
        (r"^temb\.dense\.([01])", lambda found: f"time_embedding.linear_{int(found[1]) + 1}"),
        (r"^classes\.", "class_embedding."),
        (r"^mid\.block_([12])", lambda found: f"mid_block.resnets.{int(found[1]) - 1}"),
        (r"^mid\.attn_1", "mid_block.attentions.0"),
        (r"^down\.(\d+)", r"down_blocks.\1"),
        (r"^up\.(\d+)", lambda found: f"up_blocks.{levels - 1 - int(found[1])}"),
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


def unet_of_diffusers(values: dict[str, Any], path: Path) -> UNetConfig:
    """The architecture that diffusers' config.json tells of, where our UNet can be that."""
    for name, (ours, default) in _FIXED.items():
        if (there := values.get(name, default)) != ours:
            raise ValueError(f"{path} has {name} = {there!r}; only {ours!r} can be read.")
    try:
        widths, size = values["block_out_channels"], values["sample_size"]
        down, up = values["down_block_types"], values["up_block_types"]
        size = size if isinstance(size, int) else size[0] if len(set(size)) == 1 else None
        attends = ["Attn" in name for name in down]
        known = {"DownBlock2D", "AttnDownBlock2D"}, {"UpBlock2D", "AttnUpBlock2D"}
        fits = (
            set(down) <= known[0]
            and set(up) <= known[1]
            and ["Attn" in name for name in up] == attends[::-1]
        )
        if (
            not fits
            or len(down) != len(widths)
            or any(width % widths[0] for width in widths)
            or size is None
        ):
            raise ValueError(
                f"{path} has down_block_types {down}, up_block_types {up}, block_out_channels {widths} and sample_size "
                f"{values['sample_size']}; no network of this project is built so."
            )
        if values["in_channels"] != values["out_channels"]:
            raise ValueError(
                f"{path} has {values['out_channels']} out_channels; only in_channels, as many as that, can be read."
            )
        embeds, null_class = values.get("num_class_embeds"), values.get(_NULL_CLASS)
        if embeds is not None and null_class != embeds - 1:
            raise ValueError(
                f"{path} has num_class_embeds = {embeds}, none of which means no label; it cannot be read."
            )
        config = UNetConfig(
            image_size=size,
            image_channels=values["in_channels"],
            channels=widths[0],
            multipliers=tuple(width // widths[0] for width in widths),
            blocks=values.get("layers_per_block", 2),
            attention_resolutions=tuple(size >> i for i, attend in enumerate(attends) if attend),
            groups=values.get("norm_num_groups", 32),
            dropout=values.get("dropout", 0.0),
            num_classes=null_class or 0,
        )
    except (KeyError, TypeError, IndexError) as error:
        raise ValueError(
            f"{path} is no config.json of a UNet2DModel ({type(error).__name__}: {error})."
        ) from error
    config.check()
    return config


def unet_to_diffusers(config: UNetConfig) -> dict[str, Any]:
    """The config.json of an architecture."""
    attends = [
        config.image_size >> i in config.attention_resolutions
        for i in range(len(config.multipliers))
    ]
    classes = (
        {"num_class_embeds": config.num_classes + 1, _NULL_CLASS: config.num_classes}
        if config.num_classes
        else {}
    )
    return {
        "_class_name": "UNet2DModel",
        **{name: ours for name, (ours, _) in _FIXED.items()},
        "sample_size": config.image_size, "in_channels": config.image_channels, "out_channels": config.image_channels,
        "block_out_channels": [config.channels * multiplier for multiplier in config.multipliers],
        "layers_per_block": config.blocks, "norm_num_groups": config.groups, "dropout": config.dropout,
        "down_block_types": ["AttnDownBlock2D" if attend else "DownBlock2D" for attend in attends],
        "up_block_types": ["AttnUpBlock2D" if attend else "UpBlock2D" for attend in reversed(attends)],
        **classes,
    }  # fmt: skip


def schedule_of_diffusers(path: str | Path) -> DiffusionConfig:
    """The noising process that a diffusers folder tells of, else the paper's.

    Args:
        path: as of `load_pretrained`.

    Raises:
        ValueError: a scheduler that is not ours.
    """
    found = [
        file
        for place in ("scheduler", ".")
        if (file := Path(path) / place / "scheduler_config.json").is_file()
    ]
    if not found:
        return DiffusionConfig()
    values = read_json(found[0])
    schedules, predictions = (
        {there: here for here, there in names.items()} for names in (_BETAS, _PREDICTIONS)
    )
    betas, prediction = (
        values.get("beta_schedule", "linear"),
        values.get("prediction_type", "epsilon"),
    )
    if (
        values.get("trained_betas") is not None
        or betas not in schedules
        or prediction not in predictions
    ):
        raise ValueError(f"{found[0]} has beta_schedule {betas!r}, prediction_type {prediction!r} and trained_betas "
                         f"{values.get('trained_betas')!r}; known are {list(schedules)} and {list(predictions)}.")  # fmt: skip
    return DiffusionConfig(
        num_steps=values.get("num_train_timesteps", 1000),
        schedule=schedules[betas],  # type: ignore[arg-type]
        beta_start=values.get("beta_start", 1e-4),
        beta_end=values.get("beta_end", 0.02),
        zero_terminal_snr=values.get("rescale_betas_zero_snr", False),
        prediction=predictions[prediction],  # type: ignore[arg-type]
    )


def schedule_to_diffusers(diffusion: DiffusionConfig) -> dict[str, Any]:
    """The scheduler_config.json of a noising process."""
    return {
        "_class_name": "DDIMScheduler", "num_train_timesteps": diffusion.num_steps, "beta_start": diffusion.beta_start,
        "beta_end": diffusion.beta_end, "beta_schedule": _BETAS[diffusion.schedule],
        "rescale_betas_zero_snr": diffusion.zero_terminal_snr, "prediction_type": _PREDICTIONS[diffusion.prediction],
        "clip_sample": False, "set_alpha_to_one": True,
    }  # fmt: skip


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file, or a ValueError that names the file."""
    try:
        values = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{path} cannot be read as JSON ({getattr(error, 'strerror', None) or error})."
        ) from error
    if not isinstance(values, dict):
        raise ValueError(
            f"{path} holds a {type(values).__name__}; it must be an object of names and values."
        )
    return values
