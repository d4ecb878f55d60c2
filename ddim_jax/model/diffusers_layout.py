"""Our architecture and noising process as diffusers' configuration of UNet2DModel and scheduler."""

import re
from pathlib import Path
from typing import Any

import numpy as np

from ..config import DiffusionConfig, UNetConfig
from ..diffusion.schedules import BETAS
from ..files import read_json

_OLD_ATTENTION = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
# For each setting of UNet2DModel: our UNet's value, and the default if config.json omits it.
_FIXED: dict[str, tuple[Any, Any]] = {
    "act_fn": ("silu", "silu"),
    "add_attention": (True, True),
    "attention_head_dim": (None, 8),
    "attn_norm_num_groups": (None, None),
    "center_input_sample": (False, False),
    "class_embed_type": (None, None),
    "downsample_padding": (0, 1),
    "downsample_type": ("conv", "conv"),
    "flip_sin_to_cos": (False, True),
    "freq_shift": (1, 0),
    "mid_block_scale_factor": (1, 1),
    "mid_block_type": ("UNetMidBlock2D", "UNetMidBlock2D"),
    "norm_eps": (1e-6, 1e-5),
    "resnet_time_scale_shift": ("default", "default"),
    "time_embedding_type": ("positional", "positional"),
    "upsample_type": ("conv", "conv"),
}
_NULL_CLASS = "ddim_jax_null_class"  # our own key: the last class means no label
_BETAS = {"linear": "linear", "quadratic": "scaled_linear", "cosine": "squaredcos_cap_v2"}
_PREDICTIONS = {"epsilon": "epsilon", "x0": "sample", "v": "v_prediction"}


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


def unet_of_diffusers(values: dict[str, Any], path: Path) -> UNetConfig:
    """The architecture in a UNet2DModel's config.json, if our UNet supports it."""
    for name, (ours, default) in _FIXED.items():
        if (theirs := values.get(name, default)) != ours:
            raise ValueError(f"{path} has {name} = {theirs!r}; only {ours!r} can be read.")
    try:
        return _unet_of_words(values, path)
    except (KeyError, TypeError, IndexError) as error:
        raise ValueError(
            f"{path} is not a config.json of a UNet2DModel ({type(error).__name__}: {error})."
        ) from error


def _unet_of_words(values: dict[str, Any], path: Path) -> UNetConfig:
    widths, size = values["block_out_channels"], values["sample_size"]
    down, up = values["down_block_types"], values["up_block_types"]
    size = size if isinstance(size, int) else size[0] if len(set(size)) == 1 else None
    attends = ["Attn" in name for name in down]
    if (
        not set(down) <= {"DownBlock2D", "AttnDownBlock2D"}
        or not set(up) <= {"UpBlock2D", "AttnUpBlock2D"}
        or ["Attn" in name for name in up] != attends[::-1]
        or len(down) != len(widths)
        or any(width % widths[0] for width in widths)
        or size is None
    ):
        raise ValueError(
            f"{path} has down_block_types {down}, up_block_types {up}, block_out_channels {widths} "
            f"and sample_size {values['sample_size']}; our UNet has no such architecture."
        )
    if values["in_channels"] != values["out_channels"]:
        raise ValueError(
            f"{path} has {values['in_channels']} in_channels and {values['out_channels']} "
            "out_channels; only equal numbers are supported."
        )
    classes, null_class = values.get("num_class_embeds"), values.get(_NULL_CLASS)
    if classes is not None and null_class != classes - 1:
        raise ValueError(
            f"{path} has num_class_embeds = {classes}, none of which means no label; "
            "it cannot be read."
        )
    return UNetConfig(
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


def unet_to_diffusers(config: UNetConfig) -> dict[str, Any]:
    """The config.json of an architecture."""
    attention = [
        "Attn" if config.image_size >> level in config.attention_resolutions else ""
        for level in range(len(config.multipliers))
    ]
    classes = {"num_class_embeds": config.num_classes + 1, _NULL_CLASS: config.num_classes}
    return {
        "_class_name": "UNet2DModel",
        **{name: ours for name, (ours, _) in _FIXED.items()},
        "sample_size": config.image_size,
        "in_channels": config.image_channels,
        "out_channels": config.image_channels,
        "block_out_channels": [config.channels * multiplier for multiplier in config.multipliers],
        "layers_per_block": config.blocks,
        "norm_num_groups": config.groups,
        "dropout": config.dropout,
        "down_block_types": [f"{attn}DownBlock2D" for attn in attention],
        "up_block_types": [f"{attn}UpBlock2D" for attn in reversed(attention)],
        **(classes if config.num_classes else {}),
    }


def schedule_of_diffusers(path: str | Path) -> DiffusionConfig:
    """The noising process of a diffusers folder's scheduler, or the paper's if there is none."""
    places = (Path(path) / folder / "scheduler_config.json" for folder in ("scheduler", "."))
    file = next((place for place in places if place.is_file()), None)
    if file is None:
        return DiffusionConfig()
    values = read_json(file, "a folder of diffusers")
    schedules, predictions = (
        {theirs: ours for ours, theirs in names.items()} for names in (_BETAS, _PREDICTIONS)
    )
    T, start, end = (
        values.get(word, default)
        for word, default in (
            ("num_train_timesteps", 1000),
            ("beta_start", 1e-4),
            ("beta_end", 0.02),
        )
    )
    betas, trained = (
        schedules.get(values.get("beta_schedule", "linear")),
        values.get("trained_betas"),
    )
    if trained is not None:  # β of a schedule that has no name in diffusers
        tables = {name: make(T, start, end) for name, make in BETAS.items()}
        same = (name for name, table in tables.items() if np.array_equal(table, trained))
        betas = next(same, None)
    prediction = predictions.get(values.get("prediction_type", "epsilon"))
    if betas is None or prediction is None:
        raise ValueError(
            f"{file} has beta_schedule {values.get('beta_schedule')!r}, prediction_type "
            f"{values.get('prediction_type')!r} and trained_betas {str(trained)[:40]}; known are "
            f"{list(schedules)} and {list(predictions)}."
        )
    return DiffusionConfig(
        num_steps=T,
        schedule=betas,
        beta_start=start,
        beta_end=end,
        zero_terminal_snr=values.get("rescale_betas_zero_snr", False),
        prediction=prediction,  # type: ignore[arg-type]
    )


def schedule_to_diffusers(diffusion: DiffusionConfig) -> dict[str, Any]:
    """The scheduler_config.json of a noising process; unknown β schedules as numbers."""
    betas = BETAS[diffusion.schedule](diffusion.num_steps, diffusion.beta_start, diffusion.beta_end)
    named = diffusion.schedule in _BETAS
    return {
        "_class_name": "DDIMScheduler",
        "num_train_timesteps": diffusion.num_steps,
        "beta_start": diffusion.beta_start,
        "beta_end": diffusion.beta_end,
        "beta_schedule": _BETAS.get(diffusion.schedule, "linear"),
        "trained_betas": None if named else betas.tolist(),
        "rescale_betas_zero_snr": diffusion.zero_terminal_snr,
        "prediction_type": _PREDICTIONS[diffusion.prediction],
        "clip_sample": False,
        "set_alpha_to_one": True,
    }
