"""Sample from a trained model, or measure it: `python sample.py COMMAND RUN [--flags]`."""

import os
import signal
import sys
from typing import Any

if __name__ == "__main__":  # Ctrl-C during the imports, which take seconds
    signal.signal(signal.SIGINT, lambda *_: (os.write(2, b"interrupted\n"), os._exit(130)))

from ddim_jax import devices
from ddim_jax.runtime import leave, run


def main() -> None:
    devices.setup()
    import tyro
    from rich.console import Console

    from ddim_jax.evaluation import load_commands
    from ddim_jax.evaluation.flags import refuse_former
    from ddim_jax.processes import agree

    commands: dict[str, Any] = load_commands()
    refuse_former(sys.argv[1:])
    configs = {name: config for name, (config, _) in commands.items()}
    config = tyro.extras.subcommand_cli_from_dict(configs, prog="sample.py", description=__doc__)
    (execute,) = (execute for kind, execute in commands.values() if type(config) is kind)
    agree(config)
    execute(config, Console(soft_wrap=True, highlight=False, markup=False))


if __name__ == "__main__":
    leave(run(main))
