"""Values and gradients of our convolutions against `jax.lax.conv_general_dilated`."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddim_jax.model import UNetConfig, build_unet, unet_apply
from ddim_jax.model.convolution import after_upsampling, convolution, convolution_to_train

OPTIONS = {"dimension_numbers": ("NHWC", "HWIO", "NHWC"), "precision": None}
SHAPES = {  # batch, height, width, inputs; kernel size, outputs; strides, padding
    "1×1": ((3, 5, 4, 3), (1, 1, 6), (1, 1), "SAME"),
    "3×3, more outputs": ((2, 8, 6, 5), (3, 3, 7), (1, 1), "SAME"),
    "3×3, more inputs": ((2, 6, 8, 7), (3, 3, 5), (1, 1), "SAME"),
    "3×3, Winograd": ((2, 8, 10, 64), (3, 3, 65), (1, 1), "SAME"),
    "3×3, odd height": ((2, 5, 6, 64), (3, 3, 64), (1, 1), "SAME"),
    "2×2, uneven padding": ((2, 4, 5, 3), (2, 2, 4), (1, 1), [(1, 0), (0, 1)]),
    "3×2, wide padding": ((2, 4, 5, 4), (3, 2, 3), (1, 1), [(2, 0), (1, 1)]),
    "3×3, stride 2": ((2, 8, 6, 3), (3, 3, 4), (2, 2), [(0, 1), (0, 1)]),
}


NETWORK = UNetConfig(
    8, 1, 8, multipliers=(1, 1), blocks=1, attention_resolutions=(), groups=2, zero_init=False
)


def numbers(key, *shape):
    return jax.random.normal(jax.random.key(key), shape)


def assert_close(ours, theirs):
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-6 * float(jnp.abs(b).max()), rtol=0)


@partial(jax.jit, static_argnums=0)
def value_and_gradients(function, x, kernel):
    y, pull = jax.vjp(function, x, kernel)
    return y, pull(numbers(2, *y.shape))


@pytest.mark.parametrize("convolve", [convolution, convolution_to_train])
@pytest.mark.parametrize("name", SHAPES)
def test_values_and_gradients_are_those_of_lax(name, convolve):
    image, (rows, columns, outputs), strides, padding = SHAPES[name]
    x, kernel = numbers(0, *image), numbers(1, rows, columns, image[3], outputs)

    def ours(x, kernel):
        return convolve(x, kernel, strides, padding, **OPTIONS)

    def theirs(x, kernel):
        return jax.lax.conv_general_dilated(x, kernel, strides, padding, **OPTIONS)

    assert_close(value_and_gradients(ours, x, kernel), value_and_gradients(theirs, x, kernel))
    used = str(jax.make_jaxpr(ours)(x, kernel))
    products = {"1×1"} if convolve is convolution_to_train else {"1×1", "3×3, Winograd"}
    assert ("conv_general_dilated" in used) == (name not in products)


@pytest.mark.parametrize("convolve", [convolution, convolution_to_train])
@pytest.mark.parametrize("channels", [(3, 4), (5, 3)])
def test_after_upsampling_is_a_convolution_of_the_repeated_image(channels, convolve):
    x, kernel = numbers(0, 2, 4, 3, channels[0]), numbers(1, 3, 3, *channels)

    def theirs(x, kernel):
        return jax.lax.conv_general_dilated(
            x.repeat(2, 1).repeat(2, 2), kernel, (1, 1), "SAME", **OPTIONS
        )

    def ours(x, kernel):
        return after_upsampling(convolve)(x, kernel, (1, 1), "SAME", **OPTIONS)

    assert_close(value_and_gradients(ours, x, kernel), value_and_gradients(theirs, x, kernel))
    assert f"2,4,3,{channels[1]}" in str(jax.make_jaxpr(ours)(x, kernel))  # at the low resolution


def test_bfloat16_is_not_transformed():
    shapes = (0, 1, 4, 4, 64), (1, 3, 3, 64, 64)
    x, kernel = (numbers(*shape).astype("bfloat16") for shape in shapes)
    convolve = partial(convolution, strides=(1, 1), padding="SAME", **OPTIONS)
    assert "conv_general_dilated" in str(jax.make_jaxpr(convolve)(x, kernel))


def test_elsewhere_than_on_cpus_it_is_lax(monkeypatch):
    config = replace(NETWORK, channels=64, groups=8)
    x, t = numbers(0, 2, 8, 8, 1), jnp.array([3, 500])

    def of(backend):
        monkeypatch.setattr(jax, "default_backend", lambda: backend)
        apply = unet_apply(config, to_train=True)
        params = build_unet(config, 0)[1]
        program = str(jax.make_jaxpr(apply)(params, x, t))
        return program.count("conv_general_dilated["), jax.jit(apply)(params, x, t)

    (few, on_cpu), (all_, elsewhere) = of("cpu"), of("gpu")
    # In, out, down and up; two in each of the 2 + 2 + 4 blocks; a shortcut in each of the 4 blocks
    # that see a concatenation.
    assert few < all_ == 4 + 16 + 4
    assert_close(on_cpu, elsewhere)


def test_the_network_has_derivatives_of_every_kind():
    apply, params = build_unet(NETWORK, 0)
    x, t, v = numbers(0, 1, 8, 8, 1), jnp.array([9]), numbers(1, 1, 8, 8, 1)
    forward = jax.jit(lambda x, v: jax.jvp(lambda x: apply(params, x, t), (x,), (v,))[1])(x, v)
    backward = jax.jit(lambda x, v: jax.vjp(lambda x: apply(params, x, t), x)[1](v)[0])(x, v)
    # vᵀ J v, from either side
    np.testing.assert_allclose(jnp.vdot(v, forward), jnp.vdot(backward, v), rtol=1e-4)
