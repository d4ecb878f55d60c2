"""Sample from a trained model, or measure it: `python sample.py COMMAND RUN [--flags]`."""

import sys

from ddim_jax.commands import sample

if __name__ == "__main__":
    sys.exit(sample())
