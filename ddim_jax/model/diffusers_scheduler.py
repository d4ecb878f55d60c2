"""Our noising process as diffusers' scheduler_config.json, and what of theirs is not taken over."""

import reprlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..config import DiffusionConfig
from ..diffusion.schedules import BETAS
from .diffusers_layout import read_settings

_BETAS = {"linear": "linear", "quadratic": "scaled_linear", "cosine": "squaredcos_cap_v2",
          "sigmoid": "sigmoid"}  # fmt: skip
_PREDICTIONS = {"epsilon": "epsilon", "x0": "sample", "v": "v_prediction"}
_LIKE = {"leading": "uniform", "trailing": "trailing", "linspace": "linspace"}  # τ
_NUMBERS = {"num_train_timesteps": 1000, "beta_start": 1e-4, "beta_end": 0.02}


def schedule_of_diffusers(path: str | Path) -> DiffusionConfig:
    """The noising process of a diffusers folder's scheduler, or the paper's if there is none."""
    file = scheduler_file(path)
    if file is None:
        return DiffusionConfig()
    values = read_settings(file)
    T, start, end = numbers = [values.get(name, default) for name, default in _NUMBERS.items()]
    rescaled = values.get("rescale_betas_zero_snr", False)
    if (
        type(T) is not int
        or not 1 <= T <= 100_000
        or type(rescaled) is not bool
        or not all(type(beta) is float and 0 < beta < 1 for beta in (start, end))
    ):
        raise ValueError(
            f"{file} has {', '.join(_NUMBERS)} = {reprlib.repr(numbers)} and "
            f"rescale_betas_zero_snr = {reprlib.repr(rescaled)}; T is 1 to 100,000, β between 0 "
            "and 1, the last true or false."
        )
    schedules = {theirs: ours for ours, theirs in _BETAS.items()}
    predictions = {theirs: ours for ours, theirs in _PREDICTIONS.items()}
    word, kind, trained = (
        values.get(name, default)
        for name, default in (("beta_schedule", "linear"), ("prediction_type", "epsilon"),
                              ("trained_betas", None))
    )  # fmt: skip
    betas = schedules.get(word) if isinstance(word, str) else None
    if trained is not None:  # β of a schedule that has no name in diffusers
        tables = {name: make(T, start, end) for name, make in BETAS.items()}
        same = (name for name, table in tables.items() if table.tolist() == trained)
        betas = next(same, None)
    prediction = predictions.get(kind) if isinstance(kind, str) else None
    if betas is None or prediction is None:
        raise ValueError(
            f"{file} has beta_schedule {reprlib.repr(word)}, prediction_type {reprlib.repr(kind)} "
            f"and trained_betas {reprlib.repr(trained)}; known are {list(schedules)} and "
            f"{list(predictions)}."
        )
    return DiffusionConfig(
        num_steps=T,
        schedule=betas,
        beta_start=start,
        beta_end=end,
        zero_terminal_snr=rescaled,
        prediction=prediction,  # type: ignore[arg-type]
    )


def scheduler_file(path: str | Path) -> Path | None:
    """The scheduler_config.json of a folder, of the pipeline it belongs to, or None."""
    path = Path(path)
    folders = [path / "scheduler", path]
    if path.name == "unet":
        folders += [path.parent / "scheduler", path.parent]
    places = (folder / "scheduler_config.json" for folder in folders)
    return next((place for place in places if place.exists()), None)


def not_taken_over(path: str | Path) -> Iterator[str]:
    """One line for each setting of a folder's sampler that a run does not keep.

    The defaults of diffusers count as set. A missing file gives a line that says what is assumed.
    """
    file = scheduler_file(path)
    if file is None:
        yield (
            "no scheduler_config.json: T = 1000, linear β from 0.0001 to 0.02 and a network that "
            "predicts ε are assumed, as in the paper"
        )
        return
    values = read_settings(file)
    spacing = values.get("timestep_spacing", "leading")
    flag = f"pass --timesteps {_LIKE[spacing]}" if spacing in list(_LIKE) else "it has no flag"
    clip, threshold = values.get("clip_sample", True), values.get("thresholding", False)
    bound, offset = values.get("clip_sample_range", 1.0), values.get("steps_offset", 0)
    last = values.get("set_alpha_to_one", True)
    for name, value, differs, instead in (
        ("clip_sample", clip, clip, "pass --clip x0"),
        ("clip_sample_range", bound, clip and bound != 1, "--clip x0 clips to ±1"),
        ("thresholding", threshold, threshold, "ddim_jax.dynamic_threshold does it in Python"),
        ("timestep_spacing", spacing, spacing != "quadratic", flag),
        ("steps_offset", offset, offset, "pass --timesteps with times of your own"),
        ("set_alpha_to_one", last, not last, "the last step goes to ᾱ_0 = 1, the data"),
    ):
        if differs:
            yield f"not taken over: {name} = {reprlib.repr(value)} ({instead})"


def schedule_to_diffusers(diffusion: DiffusionConfig) -> dict[str, Any]:
    """The scheduler_config.json of a noising process; unknown β schedules as numbers."""
    betas = BETAS[diffusion.schedule](diffusion.num_steps, diffusion.beta_start, diffusion.beta_end)
    # DDIMScheduler does not know the name of the sigmoid one.
    named = diffusion.schedule in _BETAS and diffusion.schedule != "sigmoid"
    return {
        "_class_name": "DDIMScheduler",
        "num_train_timesteps": diffusion.num_steps,
        "beta_start": diffusion.beta_start,
        "beta_end": diffusion.beta_end,
        "beta_schedule": _BETAS[diffusion.schedule] if named else "linear",
        "trained_betas": None if named else betas.tolist(),
        "rescale_betas_zero_snr": diffusion.zero_terminal_snr,
        "prediction_type": _PREDICTIONS[diffusion.prediction],
        "clip_sample": False,
        "set_alpha_to_one": True,
    }
