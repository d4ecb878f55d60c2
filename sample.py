"""Draw from a trained model: `python sample.py generate RUN [--flags]`."""

import sys
from typing import Any

from ddim_jax import devices
from ddim_jax.cli import run


def main() -> None:
    devices.setup()
    import tyro
    from rich.console import Console

    from ddim_jax.evaluation import GenerateConfig, generate_images

    commands: dict[str, Any] = {"generate": GenerateConfig}
    config = tyro.extras.subcommand_cli_from_dict(commands, prog="sample.py", description=__doc__)
    generate_images(config, Console(soft_wrap=True, highlight=False))


if __name__ == "__main__":
    sys.exit(run(main))
