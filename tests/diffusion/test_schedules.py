from decimal import Decimal, getcontext

import numpy as np
import pytest

from ddim_jax import alpha_bars, cosine_betas, linear_betas


def test_linear_betas_and_alpha_bar_agree_with_exact_arithmetic():
    getcontext().prec = 40
    exact = [Decimal(1)]
    for i in range(1000):
        beta = Decimal("0.0001") + (Decimal("0.02") - Decimal("0.0001")) * i / 999
        exact.append(exact[-1] * (1 - beta))
    np.testing.assert_allclose(alpha_bars(linear_betas(1000)), [float(value) for value in exact], rtol=1e-13)


def test_alpha_bar_of_the_paper():
    alpha_bar = alpha_bars(linear_betas())
    assert alpha_bar.shape == (1001,)
    assert alpha_bar.dtype == np.float64
    assert alpha_bar[0] == 1
    assert np.all(np.diff(alpha_bar) < 0)
    assert alpha_bar[1000] == pytest.approx(4.0358e-5, rel=1e-4)  # the value that DDPM's authors report


def test_cosine_alpha_bar_is_a_squared_cosine():
    u = np.arange(1001) / 1000
    f = np.cos((u + 0.008) / 1.008 * np.pi / 2) ** 2
    np.testing.assert_allclose(alpha_bars(cosine_betas())[:-1], (f / f[0])[:-1], rtol=1e-10)
    assert cosine_betas()[-1] == 0.999


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: linear_betas(0), "num_steps is 0"),
        (lambda: linear_betas(10, start=-0.1), "β_1 is -0.1"),
        (lambda: linear_betas(10, end=1.5), "β_7 is 1.00003"),
        (lambda: linear_betas(10, end=float("nan")), "nan"),
        (lambda: alpha_bars(np.array([0.1, 0.0])), "β_2 is 0"),
    ],
)
def test_refusals(call, message):
    with pytest.raises(ValueError, match=message):
        call()
