"""Sample from a trained model, or measure it: `python sample.py COMMAND RUN [--flags]`."""

import os
import signal

if __name__ == "__main__":  # Ctrl-C during the imports, which take seconds
    signal.signal(signal.SIGINT, lambda *_: (os.write(2, b"interrupted\n"), os._exit(130)))

from ddim_jax.commands import sample
from ddim_jax.runtime import leave

if __name__ == "__main__":
    leave(sample())
