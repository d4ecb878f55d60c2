"""Train a diffusion model: `python train.py [PRESET | CONFIG.json] [--flags]`."""

import dataclasses
import json
import sys
from pathlib import Path
from typing import Annotated

from ddim_jax import devices
from ddim_jax.cli import run


def main() -> None:
    devices.setup()
    import tyro
    from rich.console import Console

    from ddim_jax.config import Config, load_config, presets

    arguments = sys.argv[1:]
    named = presets()
    preset = arguments.pop(0) if arguments and not arguments[0].startswith("-") else "digits"
    default = named[preset] if preset in named else load_config(Path(preset))

    def command(config: Annotated[Config, tyro.conf.arg(name="")] = default, dry_run: bool = False) -> None:
        """Train a diffusion model: train.py [PRESET | CONFIG.json] [--flags].

        PRESET is digits (the default), emoji or cifar10; CONFIG.json is the saved configuration of a run. The flags change
        single fields. A run directory that holds checkpoints of the same configuration is continued.

        Args:
            config: The configuration.
            dry_run: Print the configuration, the number of parameters and the shape of the data, and do nothing.
        """
        if dry_run:
            _describe(config)
            return
        from ddim_jax.training import train

        train(config, Console(soft_wrap=True, highlight=False))

    tyro.cli(command, args=arguments, prog="train.py")


def _describe(config) -> None:
    import jax

    from ddim_jax.data import load_dataset
    from ddim_jax.data.cifar10 import is_prepared
    from ddim_jax.model import build_unet
    from ddim_jax.training.loop import count_parameters

    config.check()
    print(json.dumps(dataclasses.asdict(config), indent=2, ensure_ascii=False))
    params = jax.eval_shape(lambda: build_unet(config.model, config.seed)[1])
    print(f"parameters: {count_parameters(params):,}")
    shape = config.model.image_shape()
    if config.data.source == "cifar10" and not is_prepared(config.data.directory()):
        name, size = f"cifar10, not yet prepared in {config.data.directory()}", ""
    else:
        dataset = load_dataset(config.data, shape)
        name, size = dataset.name, f"{dataset.size:,} "
    print(f"data: {name}, {size}images of shape {shape}; batches {(config.train.batch_size, *shape)} in [-1, 1]")


if __name__ == "__main__":
    sys.exit(run(main))
