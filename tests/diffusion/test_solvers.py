"""The numbers of the solvers, against the published formulas row by row, and their orders."""

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ddim_jax import (
    Correction,
    Steps,
    adams,
    alpha_bars,
    cosine_betas,
    custom,
    deis,
    dpm_solver_pp,
    eta,
    first_order,
    ipndm,
    linear_betas,
    sigma_hat,
    step_table,
)
from ddim_jax.diffusion.solvers import SOLVERS

from .float64_loop import loop

POINTS, WEIGHTS = np.polynomial.legendre.leggauss(80)
BASHFORTH = {
    2: [3 / 2, -1 / 2],
    3: [23 / 12, -16 / 12, 5 / 12],
    4: [55 / 24, -59 / 24, 37 / 24, -9 / 24],
}


def integral(function, low, high):
    half = (high - low) / 2
    return half * np.sum(WEIGHTS * function(low + half * (POINTS + 1)))


def lagrange(nodes, k):
    """The polynomial that is 1 at the k-th node and 0 at the others."""
    others = np.delete(nodes, k)
    return lambda u: np.prod([(u - other) / (nodes[k] - other) for other in others], axis=0) + 0 * u


def published(name, a_t, a_s, sigma):
    """Multiples of the predictions at times with ᾱ = a_t, newest first: x̂_0's or ε̂'s in full."""
    count, lam, rho = len(a_t), 0.5 * np.log(a_t / (1 - a_t)), np.sqrt((1 - a_t) / a_t)
    if name in ("deis", "ipndm"):
        rho_s = np.sqrt((1 - a_s) / a_s)
        if name == "ipndm":
            return np.sqrt(a_s) * (rho_s - rho[0]) * np.array(BASHFORTH[count])
        ells = (lagrange(rho, k) for k in range(count))
        return np.array([np.sqrt(a_s) * integral(ell, rho[0], rho_s) for ell in ells])
    h = 0.5 * np.log(a_s / (1 - a_s)) - lam[0]
    share = 1 - sigma**2 / (1 - a_s)
    kappa = 1 - 0.5 * np.log(share) / h if share > 1e-12 else np.inf
    if name == "dpmpp" and count == 2:
        r = (lam[0] - lam[1]) / h
        return np.sqrt(a_s) * -np.expm1(-kappa * h) * np.array([1 + 1 / (2 * r), -1 / (2 * r)])
    if name == "dpmpp":
        r_0, r_1, E = (lam[0] - lam[1]) / h, (lam[1] - lam[2]) / h, np.exp(-kappa * h)
        m = np.eye(3)
        d_0, d_1 = (m[0] - m[1]) / r_0, (m[1] - m[2]) / r_1
        D_1, D_2 = d_0 + r_0 / (r_0 + r_1) * (d_0 - d_1), (d_0 - d_1) / (r_0 + r_1)
        x = kappa * h
        first, second = ((E - 1) / x + 1, (E - 1 + x) / x**2 - 0.5) if x < np.inf else (1, -0.5)
        return np.sqrt(a_s) * ((1 - E) * m[0] + first * D_1 - second * D_2)
    ells = [lagrange(lam - lam[0], k) for k in range(count)]
    if kappa == np.inf:
        return np.sqrt(a_s) * np.array([ell(h) for ell in ells])
    low = max(0.0, h - 40 / kappa)
    return np.sqrt(a_s) * np.array([
        integral(lambda u, ell=ell: kappa * np.exp(-kappa * (h - u)) * ell(u), low, h)
        for ell in ells
    ])  # fmt: skip


def eq_12(name, a_t, a_s, sigma):
    """The multiple of the newest prediction that Eq. 12 has, in the form of the method."""
    if name in ("deis", "ipndm"):
        return np.sqrt(1 - a_s) - np.sqrt(a_s) * np.sqrt((1 - a_t) / a_t)
    return np.sqrt(a_s) - np.sqrt(max(1 - a_s - sigma**2, 0) / (1 - a_t)) * np.sqrt(a_t)


SCHEDULES = st.sampled_from([linear_betas(), cosine_betas(), linear_betas(300)]).map(alpha_bars)
TIMES = st.lists(st.integers(1, 299), min_size=2, max_size=7, unique=True).map(sorted)
SHARES = st.one_of(st.just(0.0), st.just(1.0), st.floats(0, 0.999))


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(["adams", "dpmpp", "deis", "ipndm"]),
    st.integers(1, 4), st.booleans(), SCHEDULES, TIMES, SHARES, st.booleans(),
)  # fmt: skip
@example("adams", 2, False, alpha_bars(linear_betas()), [1, 2, 3], 1.0, False)  # share is 2e-16
def test_numbers_are_the_published_ones(name, order, lower, alpha_bar, tau, share, is_eta):
    order = min(order, 3) if name == "dpmpp" else order
    schedule = (
        eta(share)
        if is_eta
        else lambda steps: custom(np.sqrt(share * (1 - steps.alpha_bar_s)))(steps)
    )
    table = step_table(alpha_bar, tau, schedule, SOLVERS[name](order, lower_order_final=lower))
    in_x_0 = name in ("adams", "dpmpp")
    ours, other = table[-2:] if in_x_0 else table[:-3:-1]
    assert ours.shape == other.shape == (len(tau), order)
    assert not other.any()
    for i, sigma in enumerate(table.sigma):
        count = min(order, i + 1, len(tau) - i if lower else order)
        if in_x_0 and i == len(tau) - 1:
            count = 1
        assert not ours[i, count:].any()
        if count == 1:
            assert not ours[i].any()
            continue
        a_t, a_s = table.alpha_bar_t[i - count + 1 : i + 1][::-1], table.alpha_bar_s[i]
        wanted = published(name, a_t, a_s, sigma)
        scale = np.abs(wanted).max()
        wanted[0] -= eq_12(name, a_t[0], a_s, sigma)
        np.testing.assert_allclose(ours[i, :count], wanted, atol=1e-8 * scale)


@settings(max_examples=40, deadline=None)
@given(SCHEDULES, TIMES, SHARES)
def test_adams_of_order_1_is_eq_12(alpha_bar, tau, share):
    """The exponential integral with a constant x̂_0 has the factor that Eq. 12 has."""
    for schedule in (eta(share), sigma_hat()):
        table = step_table(alpha_bar, tau, schedule, adams(1))
        assert not table.x_0_correction.any()
        for a_t, a_s, sigma in zip(*table[2:5], strict=True):
            if a_s < 1:
                exact = published("adams", np.array([a_t]), a_s, sigma)
                np.testing.assert_allclose(exact, eq_12("adams", a_t, a_s, sigma), atol=1e-9)


def used(solver, alpha_bar, tau, **options):
    """How many predictions every row uses."""
    table = step_table(alpha_bar, tau, eta(0.3), solver, **options)
    numbers = table.x_0_correction + table.epsilon_correction
    return [int(max(np.flatnonzero(row), default=0)) + 1 for row in numbers]


def test_orders_rise_at_the_start_and_fall_at_the_end_of_few_steps(alpha_bar):
    few, many = np.arange(10, 150, 10), np.arange(10, 160, 10)
    assert used(adams(3), alpha_bar, few) == [1, 2] + [3] * 10 + [2, 1]
    assert used(adams(3), alpha_bar, many) == [1, 2] + [3] * 12 + [1]  # λ = ∞ at s = 0
    assert used(deis(3), alpha_bar, many) == [1, 2] + [3] * 13
    assert used(deis(4), alpha_bar, few) == [1, 2, 3] + [4] * 8 + [3, 2, 1]
    assert used(ipndm(4, lower_order_final=False), alpha_bar, few) == [1, 2, 3] + [4] * 11
    assert used(ipndm(2, lower_order_final=True), alpha_bar, many) == [1] + [2] * 13 + [1]
    assert used(first_order(), alpha_bar, few) == [1] * 14


@pytest.mark.parametrize("solver", [adams(3), dpm_solver_pp(3), deis(3), ipndm(3)])
def test_repeats_do_not_count(solver, alpha_bar):
    tau = np.arange(10, 150, 10)
    alone = step_table(alpha_bar, tau, eta(0.3), solver)
    repeated = step_table(
        alpha_bar, np.sort([*tau, 10, 70, 70, 140]), eta(0.3), solver, allow_repeats=True
    )
    for ours, wanted in zip(repeated[-2:], alone[-2:], strict=True):
        np.testing.assert_array_equal(ours[repeated.active], wanted)
        assert not ours[~repeated.active].any()


@pytest.mark.parametrize("make", [adams, dpm_solver_pp, deis, ipndm])
def test_a_prediction_where_alpha_bar_is_0_is_not_used(make, alpha_bar):
    zero = np.append(alpha_bar[:1000], 0.0)
    tau = [*range(100, 1001, 100)]
    solver = make(3, lower_order_final=False)
    assert used(solver, zero, tau)[:5] == [1, 1, 2, 3, 3]
    without = step_table(zero, tau[:-1], eta(0.3), solver)
    for ours, wanted in zip(
        step_table(zero, tau, eta(0.3), solver)[-2:], without[-2:], strict=True
    ):
        np.testing.assert_array_equal(ours[1:], wanted)


def test_small_steps_do_not_cancel():
    """A step of 1e-7 in λ, where 1 − j m_{j−1}/h would lose all digits."""
    lam = np.arange(6) * 1e-7
    a = 1 / (1 + np.exp(-2 * lam))
    steps = Steps(np.arange(6, 1, -1), np.arange(5, 0, -1), a[:-1], a[1:])
    row = adams(4, lower_order_final=False)(steps, np.zeros(5)).x_0[4] / (np.sqrt(a[-1]) * 1e-7)
    np.testing.assert_allclose(row, np.array(BASHFORTH[4]) - [1, 0, 0, 0], rtol=1e-5)


def order_of(solver, value, kappa, *, exact_past=True):
    """The slope of the error in the step, for x̂_0(λ) or ε̂(ρ) that does not depend on x."""

    def error(n):
        u = np.linspace(0, 1, n + 1)
        lam = (-1.5 + 3 * u + 0.2 * np.sin(3 * u))[::-1]
        alpha_bar = np.append(1.0, 1 / (1 + np.exp(-2 * lam)))
        table = step_table(alpha_bar, np.arange(1, n + 2), eta(kappa - 1), solver)
        table = type(table)(*(leaf[:-1] for leaf in table))  # to t = 1, where λ is finite
        start = table.x_0_correction.shape[1] - 1 if exact_past else 0
        known = [value(a, None) for a in table.alpha_bar_t[:start]]
        rest = type(table)(*(leaf[start:] for leaf in table))._replace(noise=np.zeros(n - start))
        x = value(rest.alpha_bar_t[0], "solution")
        end = loop(rest, x, lambda i, x: value(rest.alpha_bar_t[i], x), known[::-1])
        return abs(end - value(rest.alpha_bar_s[-1], "solution"))

    return np.log2(error(160) / error(320))


def smooth_x_0(kappa):
    """x̂_0 = e^λ; √ᾱ e^{−κλ} ∫ κ e^{κλ} e^λ dλ solves the exact equation for the mean."""

    def value(a, x):
        x_0 = np.sqrt(a / (1 - a))
        if isinstance(x, str):
            return np.sqrt(a) * kappa / (kappa + 1) * x_0
        return x_0, 0.0 if x is None else (x - np.sqrt(a) * x_0) / np.sqrt(1 - a)

    return value


def smooth_epsilon(a, x):
    """ε̂ = e^{−ρ/2}; −2 √ᾱ e^{−ρ/2} solves the exact equation."""
    epsilon = np.exp(-0.5 * np.sqrt((1 - a) / a))
    if isinstance(x, str):
        return -2 * np.sqrt(a) * epsilon
    return 0.0 if x is None else (x - np.sqrt(1 - a) * epsilon) / np.sqrt(a), epsilon


@pytest.mark.parametrize("kappa", [1, 2])
def test_measured_orders_of_convergence(kappa):
    """κ = 1 at η = 0 and 2 at η = 1. The third order of DPM-Solver++ is 2."""
    value = smooth_x_0(kappa)
    final = {"lower_order_final": False}
    assert order_of(adams(2, **final), value, kappa) == pytest.approx(2, abs=0.1)
    assert order_of(adams(3, **final), value, kappa) == pytest.approx(3, abs=0.1)
    assert order_of(dpm_solver_pp(2, **final), value, kappa) == pytest.approx(2, abs=0.1)
    assert order_of(dpm_solver_pp(3, **final), value, kappa) == pytest.approx(2, abs=0.1)


def test_the_warm_up_leaves_order_2():
    solver = adams(3, lower_order_final=False)
    assert 1.9 < order_of(solver, smooth_x_0(1), 1, exact_past=False) < 2.5


def test_measured_orders_of_deis():
    for order in (2, 3):
        solver = deis(order, lower_order_final=False)
        assert order_of(solver, smooth_epsilon, 1) == pytest.approx(order, abs=0.1)


NAN = float("nan")


@pytest.mark.parametrize(
    ("x_0", "message"),
    [
        (np.zeros((2, 1)), r"shapes \(2, 1\) and \(2, 1\).* each of the 3 steps"),
        (np.zeros(3), r"shapes \(3,\)"),
        ([[0, 0], [1, -1], [1, -0.9]], r"row 2 \(t=1 to s=0\): .* sum to 0.1; they must .* 0"),
        (
            [[1, -1], [0, 0], [0, 0]],
            r"row 0 \(t=9 to s=5\): .* by prediction 1 .* only 1 can be used",
        ),
        ([[0, 0, 0], [1, 1, -2], [0, 0, 0]], r"row 1 .* by prediction 2 .* only 2 can be used"),
        ([[0, 0], [NAN, 0], [0, 0]], "row 1 .* sum to nan"),
        ([[0, 0], [np.inf, -1], [0, 0]], "row 1 .* sum to inf"),
    ],
)
def test_bad_corrections_name_the_row(x_0, message, alpha_bar):
    x_0 = np.asarray(x_0, np.float64)
    with pytest.raises(ValueError, match=message):
        step_table(alpha_bar, [1, 5, 9], eta(0.0), lambda *_: Correction(x_0, np.zeros_like(x_0)))
    with pytest.raises(ValueError, match=message):
        step_table(alpha_bar, [1, 5, 9], eta(0.0), lambda *_: Correction(np.zeros_like(x_0), x_0))


def test_refusals(alpha_bar):
    for name, make in SOLVERS.items():
        if name != "first":
            with pytest.raises(ValueError, match=f"order of {make.__name__} is 0; .* 1 or more"):
                make(0)
    with pytest.raises(ValueError, match="dpm_solver_pp is 4; it has orders 1 to 3"):
        dpm_solver_pp(4)

    def on_a_repeat(steps, sigma):
        x_0 = np.outer(steps.t == steps.s, [1.0, -1.0])
        return Correction(x_0, np.zeros_like(x_0))

    with pytest.raises(ValueError, match=r"row 1 \(t=5 to s=5\): .* only 0 can be used"):
        step_table(alpha_bar, [1, 5, 5, 9], eta(0.0), on_a_repeat, allow_repeats=True)
