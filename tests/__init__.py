"""Settings of every process of the suite: 8 simulated CPU devices, programs quick to compile."""

import gc
import os
import tempfile

# The environment also reaches the processes that tests start: they share compiled programs.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    _cache = tempfile.TemporaryDirectory(prefix="ddim_jax_tests_", ignore_cleanup_errors=True)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _cache.name
os.environ.setdefault("JAX_NUM_CPU_DEVICES", "8")
os.environ["JAX_PLATFORMS"] = "cpu"
# Most of the suite's time is XLA's compilation of programs that run a few times. Where the rounding
# of the program that users run is tested, the fixture `optimised` brings its optimisations back.
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
# Eigenvalues of many small matrices, 20 to 40 times faster without threads that wait for each
# other. NumPy reads this when it is imported.
os.environ["OPENBLAS_NUM_THREADS"] = "1"

import jax
from jax._src import compiler

gc.set_threshold(20_000, 20, 100)  # as the commands do
jax.config.update("jax_numpy_rank_promotion", "raise")


def _quick(options_of):
    """Add XLA's older code generator: half the time to compile. No public setting selects it."""

    def options(*arguments, env_options_overrides=None, **named):
        quick = {}
        # Newer releases of XLA have no other code generator.
        known = jax.__version_info__ < (0, 11)
        if known and jax.config.read("jax_disable_most_optimizations"):
            quick["xla_cpu_use_fusion_emitters"] = False
        return options_of(
            *arguments, env_options_overrides=quick | (env_options_overrides or {}), **named
        )

    return options


compiler.get_compile_options = _quick(compiler.get_compile_options)
