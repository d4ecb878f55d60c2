from decimal import Decimal, getcontext

import numpy as np
import pytest
import scipy.special

from ddim_jax import (
    alpha_bars,
    constant_betas,
    cosine_betas,
    jsd_betas,
    linear_betas,
    quadratic_betas,
    sigmoid_betas,
    zero_terminal_snr,
)  # fmt: skip
from ddim_jax.diffusion.schedules import BETAS


def test_linear_betas_and_alpha_bar_agree_with_exact_arithmetic():
    getcontext().prec = 40
    exact = [Decimal(1)]
    for i in range(1000):
        beta = Decimal("0.0001") + (Decimal("0.02") - Decimal("0.0001")) * i / 999
        exact.append(exact[-1] * (1 - beta))
    np.testing.assert_allclose(
        alpha_bars(linear_betas(1000)), [float(value) for value in exact], rtol=1e-13
    )


def test_alpha_bar_of_the_paper():
    alpha_bar = alpha_bars(linear_betas())
    assert alpha_bar.shape == (1001,)
    assert alpha_bar.dtype == np.float64
    assert alpha_bar[0] == 1
    assert np.all(np.diff(alpha_bar) < 0)
    assert alpha_bar[1000] == pytest.approx(
        4.0358e-5, rel=1e-4
    )  # the value that DDPM's authors report


def test_cosine_alpha_bar_is_a_squared_cosine():
    u = np.arange(1001) / 1000
    f = np.cos((u + 0.008) / 1.008 * np.pi / 2) ** 2
    np.testing.assert_allclose(alpha_bars(cosine_betas())[:-1], (f / f[0])[:-1], rtol=1e-10)
    assert cosine_betas()[-1] == 0.999


def test_the_other_schedules_of_the_official_code():
    root = np.sqrt(quadratic_betas(1000, 1e-4, 0.02))
    np.testing.assert_allclose(np.diff(root), (np.sqrt(0.02) - np.sqrt(1e-4)) / 999, rtol=1e-9)
    assert quadratic_betas()[[0, -1]] == pytest.approx([1e-4, 0.02])
    np.testing.assert_allclose(
        sigmoid_betas(7, 1e-4, 0.02), 1e-4 + 0.0199 * scipy.special.expit([-6, -4, -2, 0, 2, 4, 6])
    )
    np.testing.assert_array_equal(constant_betas(5, 0.1), np.full(5, 0.1))
    np.testing.assert_allclose(alpha_bars(jsd_betas(1000)), 1 - np.arange(1001) / 1000, atol=1e-12)
    assert alpha_bars(jsd_betas(1000))[-1] == 0


def test_schedules_by_name_ignore_what_they_have_no_use_for():
    given = (7, 1e-3, 0.1)
    expected = {
        "linear": linear_betas(*given),
        "cosine": cosine_betas(7),
        "quadratic": quadratic_betas(*given),
        "sigmoid": sigmoid_betas(*given),
        "constant": constant_betas(7, 0.1),
        "jsd": jsd_betas(7),
    }
    assert BETAS.keys() == expected.keys()
    for name, betas in expected.items():
        np.testing.assert_array_equal(BETAS[name](*given), betas)


@pytest.mark.parametrize("betas", [linear_betas(), cosine_betas(), quadratic_betas()])
def test_zero_terminal_snr_is_an_affine_map_of_the_root(betas):
    before = alpha_bars(betas)
    after = zero_terminal_snr(before)
    assert (after[0], after[-1]) == (1, 0)
    assert after[1] == pytest.approx(before[1], rel=1e-12)
    assert np.all(np.diff(after) < 0)
    slope = np.diff(np.sqrt(after[1:])) / np.diff(np.sqrt(before[1:]))
    np.testing.assert_allclose(slope, slope[0], rtol=1e-6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: linear_betas(0), "num_steps is 0"),
        (lambda: linear_betas(10, start=-0.1), "β_1 is -0.1"),
        (lambda: linear_betas(10, end=1.5), "β_7 is 1.00003"),
        (lambda: linear_betas(10, end=float("nan")), "nan"),
        (lambda: alpha_bars(np.array([0.1, 0.0])), "β_2 is 0"),
        (lambda: quadratic_betas(10, start=-1), "β_1 is -1"),
        (lambda: constant_betas(3, 2.0), "β_1 is 2"),
        (lambda: jsd_betas(0), "num_steps is 0"),
        (lambda: zero_terminal_snr([1.0, 0.5]), "T ≥ 2"),
        (lambda: zero_terminal_snr([1.0, 0.5, 0.6]), "decrease strictly"),
    ],
)
def test_refusals(call, message):
    with pytest.raises(ValueError, match=message):
        call()
