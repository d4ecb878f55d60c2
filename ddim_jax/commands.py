"""The two commands: `ddim-train` and `ddim-sample`, or train.py and sample.py in a clone."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

from . import devices
from .runtime import program, run


def train() -> int:
    """Train, import or export; returns the exit status."""
    return run(_train)


def sample() -> int:
    """Sample from a trained model, or measure it; returns the exit status."""
    return run(_sample)


def _train() -> None:
    devices.setup()
    import tyro
    from rich.console import Console

    from .config import load_config, presets
    from .training.import_export import ExportConfig, ImportConfig, export_run, import_run

    arguments, console = sys.argv[1:], Console(soft_wrap=True, highlight=False, markup=False)
    _refuse_empty(arguments)
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
        commands, args=arguments, prog=program("train"), description=_TRAIN.format(program("train"))
    )
    if isinstance(asked, ImportConfig):
        import_run(asked, console)
    elif isinstance(asked, ExportConfig):
        export_run(asked, console)


_TRAIN = """Train a diffusion model: `{} [PRESET | CONFIG.json] [--flags]`.

PRESET is digits (the default), emoji or cifar10; CONFIG.json is the saved configuration of a run.
Flags change single fields. If the run directory holds checkpoints of the same configuration, the
run is resumed. `import` and `export` exchange weights with other programs.
"""

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

    from .config import Config

    def command(
        config: Annotated[Config, tyro.conf.arg(name="")] = default, dry_run: bool = False
    ) -> None:
        from .training import describe_run, train

        if dry_run:
            describe_run(config, console)
        else:
            train(config, console)

    command.__doc__ = f"{about}\n\n{_TRAIN.format(program('train'))}\n{_ARGS}"
    return command


def _sample() -> None:
    devices.setup()
    import tyro
    from rich.console import Console

    from .evaluation import load_commands
    from .evaluation.flags import check_arguments
    from .processes import agree

    commands: dict[str, Any] = load_commands()
    _refuse_empty(sys.argv[1:])
    check_arguments(sys.argv[1:])
    configs = {name: config for name, (config, _) in commands.items()}
    config = tyro.extras.subcommand_cli_from_dict(
        configs, prog=program("sample"), description=_SAMPLE.format(program("sample"))
    )
    (execute,) = (execute for kind, execute in commands.values() if type(config) is kind)
    agree(config)
    execute(config, Console(soft_wrap=True, highlight=False, markup=False))


def _refuse_empty(arguments: list[str]) -> None:
    """Refuse a path that is empty, and would mean the working directory."""
    for before, argument in zip(["", *arguments], arguments, strict=False):
        if not argument and not before.startswith("--"):
            raise ValueError(
                f"an argument after {before or 'the command'} is empty; give a path or a name "
                "(is a variable of the shell not set?)."
            )


_SAMPLE = "Sample from a trained model, or measure it: `{} COMMAND RUN [--flags]`."
