"""Train a diffusion model: `python train.py [PRESET | CONFIG.json] [--flags]`; or `import` and `export` weights."""

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

    arguments, console = sys.argv[1:], Console(soft_wrap=True, highlight=False)
    if arguments and arguments[0] in ("import", "export"):
        from ddim_jax.training.exchange import ExportConfig, ImportConfig, export_run, import_run

        if arguments[0] == "import":
            import_run(tyro.cli(ImportConfig, args=arguments[1:], prog="train.py import"), console)
        else:
            export_run(tyro.cli(ExportConfig, args=arguments[1:], prog="train.py export"), console)
        return
    named = presets()
    preset = arguments.pop(0) if arguments and not arguments[0].startswith("-") else "digits"
    default = named[preset] if preset in named else load_config(Path(preset))

    def command(
        config: Annotated[Config, tyro.conf.arg(name="")] = default, dry_run: bool = False
    ) -> None:
        """Train a diffusion model: train.py [PRESET | CONFIG.json] [--flags]; weights: train.py import | export.

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

        train(config, console)

    tyro.cli(command, args=arguments, prog="train.py")


def _describe(config) -> None:
    from ddim_jax.data import load_dataset
    from ddim_jax.data.cifar10 import is_prepared
    from ddim_jax.model import unet_shapes
    from ddim_jax.training.loop import count_parameters

    config.check()
    print(json.dumps(dataclasses.asdict(config), indent=2, ensure_ascii=False))
    print(f"parameters: {count_parameters(unet_shapes(config.model)):,}")
    shape = config.model.image_shape()
    if config.data.source == "cifar10" and not is_prepared(config.data.directory()):
        name, size = f"cifar10, not yet prepared in {config.data.directory()}", ""
    else:
        dataset = load_dataset(config.data, shape)
        name, size = dataset.name, f"{dataset.size:,} "
    print(
        f"data: {name}, {size}images of shape {shape}; batches {(config.train.batch_size, *shape)} in [-1, 1]"
    )


if __name__ == "__main__":
    sys.exit(run(main))
