"""Draw from a trained model, or measure it: `python sample.py COMMAND RUN [--flags]`."""

import sys
from typing import Any

from ddim_jax import devices
from ddim_jax.cli import run


def main() -> None:
    devices.setup()
    import tyro
    from rich.console import Console

    from ddim_jax import evaluation

    commands: dict[str, tuple[Any, Any]] = {
        "generate": (evaluation.GenerateConfig, evaluation.generate_images),
        "ablate": (evaluation.AblateConfig, evaluation.ablate),
        "classifier": (evaluation.ClassifierConfig, evaluation.train_classifier),
        "reconstruct": (evaluation.ReconstructConfig, evaluation.reconstruct),
        "interpolate": (evaluation.InterpolateConfig, evaluation.interpolate),
        "trajectory": (evaluation.TrajectoryConfig, evaluation.trajectory),
    }
    configs = {name: config for name, (config, _) in commands.items()}
    config = tyro.extras.subcommand_cli_from_dict(configs, prog="sample.py", description=__doc__)
    dict(commands.values())[type(config)](config, Console(soft_wrap=True, highlight=False))


if __name__ == "__main__":
    sys.exit(run(main))
