"""What the machine does with this code: `python -m ddim_jax.bench`."""
