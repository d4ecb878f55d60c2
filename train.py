"""Train a diffusion model: `python train.py [PRESET | CONFIG.json] [--flags]`.

PRESET is digits (the default), emoji or cifar10; CONFIG.json is the saved configuration of a run.
Flags change single fields. If the run directory holds checkpoints of the same configuration, the
run is resumed. `import` and `export` exchange weights with other programs.
"""

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

if __name__ == "__main__":  # Ctrl-C during the imports, which take seconds
    signal.signal(signal.SIGINT, lambda *_: (os.write(2, b"interrupted\n"), os._exit(130)))

from ddim_jax import devices
from ddim_jax.runtime import leave, run


def main() -> None:
    devices.setup()
    import tyro
    from rich.console import Console

    from ddim_jax.config import load_config, presets
    from ddim_jax.training.import_export import ExportConfig, ImportConfig, export_run, import_run

    arguments, console = sys.argv[1:], Console(soft_wrap=True, highlight=False, markup=False)
    commands: dict[str, Callable[..., Any]] = {
        name: _training(f"Train on {_ABOUT[name]}.", config, console)
        for name, config in presets().items()
    }

    commands |= {"import": ImportConfig, "export": ExportConfig}
    if not arguments or arguments[0].startswith("-"):
        arguments = ["digits", *arguments]
    elif arguments[0] not in commands:
        path = arguments[0]
        commands[path] = _training(f"Resume {path}.", load_config(Path(path)), console)
    asked = tyro.extras.subcommand_cli_from_dict(
        commands, args=arguments, prog="train.py", description=__doc__
    )
    if isinstance(asked, ImportConfig):
        import_run(asked, console)
    elif isinstance(asked, ExportConfig):
        export_run(asked, console)


_ABOUT = {
    "digits": "8×8 digits, minutes on a laptop (the default)",
    "emoji": "32×32 emoji",
    "cifar10": "CIFAR-10 with the paper's network and settings",
}


_ARGS = """
Args:
    config: The configuration.
    dry_run: Only print the configuration, the number of parameters and the data shapes.
"""


def _training(about: str, default: Any, console: Any) -> Callable[..., None]:
    import tyro

    from ddim_jax.config import Config

    def command(
        config: Annotated[Config, tyro.conf.arg(name="")] = default, dry_run: bool = False
    ) -> None:
        from ddim_jax.training import describe_run, train

        if dry_run:
            describe_run(config, console)
        else:
            train(config, console)

    command.__doc__ = f"{about}\n\n{__doc__}\n{_ARGS}"
    return command


if __name__ == "__main__":
    leave(run(main))
