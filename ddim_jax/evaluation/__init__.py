"""Sampling and evaluation: one module per command, each with Config and run."""

from importlib import import_module

COMMANDS = (
    "generate", "ablate", "evaluate", "classifier", "reconstruct", "likelihood", "learn",
    "interpolate", "trajectory",
)  # fmt: skip


def load_commands() -> dict[str, tuple[type, object]]:
    """(Config, run) of every command, by its name."""
    modules = {name: import_module(f"{__name__}.{name}") for name in COMMANDS}
    return {name: (module.Config, module.run) for name, module in modules.items()}
