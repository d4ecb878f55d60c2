"""Train a diffusion model: `python train.py [PRESET | CONFIG.json] [--flags]`."""

import sys

from ddim_jax.commands import train

if __name__ == "__main__":
    sys.exit(train())
