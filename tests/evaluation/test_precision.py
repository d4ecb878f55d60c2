"""The network in bfloat16 or with faster products, and everything around it in float32."""

import numpy as np
import pytest

import ddim_jax as ddim
from ddim_jax.devices import make_mesh
from ddim_jax.evaluation.cells import Drawing, _place
from ddim_jax.evaluation.generate import Config
from ddim_jax.evaluation.grid import cells
from ddim_jax.evaluation.source import FLOAT32, Precision, run_source
from ddim_jax.sampler import Batch, Plan, make_sampler

HIGHEST = "precision = [HIGHEST, HIGHEST]"
KINDS = {
    "float32": FLOAT32,
    "bfloat16": Precision("bfloat16"),
    "default": Precision(products="default"),
}


@pytest.fixture(scope="module")
def drawn(tiny_run):
    """For each kind: the source, the images, and the program that drew them."""
    found = {}
    for name, precision in KINDS.items():
        source = run_source(tiny_run, precision=precision)
        tau = ddim.uniform_timesteps(1000, 4)
        plan = Plan(ddim.step_table(source.alpha_bar, tau, ddim.eta(0.0)), np.uint32(0))
        arguments = source.params, Batch(np.arange(8, dtype=np.uint32)), plan
        lowered = make_sampler(source.denoise, source.image_shape, make_mesh(8)).lower(*arguments)
        images = None if name == "default" else np.asarray(lowered.compile()(*arguments))
        found[name] = source, images, lowered.as_text()
    return found


def test_bfloat16_rounds_the_network_and_not_the_images(drawn):
    (_, whole, plain), (_, rounded, text) = drawn["float32"], drawn["bfloat16"]
    assert rounded.dtype == np.float32
    error = np.sqrt(np.mean((rounded - whole) ** 2)) / whole.std()
    assert 1e-5 < error < 0.02
    assert "bf16" in text
    assert "bf16" not in plain
    # The images' own digits are finer than bfloat16 can hold.
    assert np.any(rounded.view(np.uint32) & 0xFFFF)


def test_products_of_the_network_are_exact_unless_a_flag_says_otherwise(drawn):
    assert HIGHEST in drawn["float32"][2]
    assert HIGHEST not in drawn["default"][2]


def test_images_of_another_precision_are_kept_apart(drawn):
    places = set()
    for source, _, _ in drawn.values():
        cell = cells(source.alpha_bar, ("eta=0",), ("uniform",), (4,))[0]
        places.add(_place(Drawing(source, 0, 8, 8), cell, 0))
    assert len(places) == len(KINDS)


def test_the_flags_open_the_run_so(tiny_run):
    source = Config(run=tiny_run, dtype="bfloat16", matmul_precision="default").open()
    assert source.precision == Precision("bfloat16", "default")
    assert source.name == f"{tiny_run} in bfloat16 with default products"
    assert Config(run=tiny_run).open().name == str(tiny_run)
