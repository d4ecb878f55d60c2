import numpy as np
import pytest

from ddim_jax import (
    alpha_bars,
    cosine_betas,
    karras_timesteps,
    linspace_timesteps,
    logsnr_timesteps,
    official_timesteps,
    quadratic_timesteps,
    trailing_timesteps,
    uniform_timesteps,
    zero_terminal_snr,
)
from ddim_jax.diffusion.timesteps import TIMESTEPS


def bars(T):
    """ᾱ of DDPM's betas, scaled to T steps."""
    return np.concatenate([[1.0], np.cumprod(1 - np.linspace(0.1, 20, T) / (T + 20))])


@pytest.mark.parametrize("timesteps", TIMESTEPS.values(), ids=TIMESTEPS)
def test_exactly_S_strictly_increasing_times_within_the_noisy_ones(timesteps):
    for T in [*range(1, 40), 1000]:
        alpha_bar = bars(T)
        for S in range(1, T + 1):
            tau = timesteps(alpha_bar, S)
            assert tau.shape == (S,)
            assert tau.dtype == np.int64
            assert tau[0] >= 1
            assert tau[-1] <= T
            assert np.all(np.diff(tau) > 0)
        np.testing.assert_array_equal(timesteps(alpha_bar, T), np.arange(1, T + 1))


def test_ours_are_the_official_ones_where_those_are_sound():
    for S in range(1, 1001):
        for ours, kind in [(uniform_timesteps, "uniform"), (quadratic_timesteps, "quadratic")]:
            official = official_timesteps(1000, S, kind)
            sound = (
                len(official) == S
                and np.all(np.diff(official) > 0)
                and (kind != "uniform" or 1000 % S == 0)
            )
            if sound:
                np.testing.assert_array_equal(ours(1000, S), official)


def test_sequences_by_name():
    only_T = [uniform_timesteps, quadratic_timesteps, trailing_timesteps, linspace_timesteps]
    named = {sequence.__name__.removesuffix("_timesteps"): sequence for sequence in only_T}
    assert [*TIMESTEPS] == [*named, "logsnr", "karras"]
    for name, sequence in named.items():
        np.testing.assert_array_equal(TIMESTEPS[name](bars(1000), 7), sequence(1000, 7))


def log_sigma(alpha_bar):
    with np.errstate(divide="ignore"):
        return 0.5 * np.log((1 - alpha_bar[1:]) / alpha_bar[1:])


def karras(low, high, S, rho):
    """ln of Eq. 5 of arXiv:2206.00364, as a loop."""
    high, low = np.exp(high) ** (1 / rho), np.exp(low) ** (1 / rho)
    return [rho * np.log(high + i / (S - 1) * (low - high)) for i in range(S)][::-1]


@pytest.mark.parametrize("alpha_bar", [bars(1000), alpha_bars(cosine_betas(1000))])
@pytest.mark.parametrize("S", [2, 5, 10, 50])
def test_logsnr_and_karras_times_are_nearest_to_their_spacing(alpha_bar, S):
    values = log_sigma(alpha_bar)
    low, high = values[0], values[-1]
    for tau, wanted in [
        (logsnr_timesteps(alpha_bar, S), np.linspace(low, high, S)),
        (karras_timesteps(alpha_bar, S), karras(low, high, S, 7.0)),
        (karras_timesteps(alpha_bar, S, rho=3.0), karras(low, high, S, 3.0)),
    ]:
        assert (tau[0], tau[-1]) == (1, 1000)
        # Half a step in t, and more only in a run of neighbours, where repeated times were moved.
        steps = np.diff(tau, prepend=-1, append=1002)
        alone = np.minimum(steps[:-1], steps[1:]) > 1
        between = np.interp(wanted, values, np.arange(1, 1001))
        assert np.all(np.abs(tau - between)[alone] <= 0.5 + 1e-9)
        assert alone.any()
    assert logsnr_timesteps(alpha_bar, 1) == karras_timesteps(alpha_bar, 1) == 1000


def test_zero_terminal_snr_starts_at_T():
    alpha_bar = zero_terminal_snr(bars(1000))
    finite = logsnr_timesteps(alpha_bar[:-1], 10)
    for S in (1, 2, 10, 999, 1000):
        for timesteps in (logsnr_timesteps, karras_timesteps):
            tau = timesteps(alpha_bar, S)
            assert tau[-1] == 1000
            assert np.all(np.diff(tau, prepend=0) >= 1)
    np.testing.assert_array_equal(logsnr_timesteps(alpha_bar, 10)[:-1], finite[:-1])


def test_trailing_and_linspace_end_at_T_in_equal_steps():
    assert trailing_timesteps(1000, 10).tolist() == list(range(100, 1001, 100))
    assert linspace_timesteps(1000, 10).tolist() == list(range(1, 1001, 111))
    for timesteps in (trailing_timesteps, linspace_timesteps):
        for S in (3, 7, 30, 300):
            tau = timesteps(1000, S)
            assert tau[-1] == 1000
            assert np.ptp(np.diff(tau)) <= 1


def test_official_sequences_have_their_known_faults():
    # 0-based, as the official code writes them
    assert (official_timesteps(1000, 10, "uniform") - 1).tolist() == list(range(0, 1000, 100))
    assert (official_timesteps(1000, 10, "quad") - 1).tolist() == [
        0,
        9,
        39,
        88,
        158,
        246,
        355,
        483,
        632,
        800,
    ]
    assert sum(len(official_timesteps(1000, S, "uniform")) != S for S in range(1, 1001)) == 984
    assert len(official_timesteps(1000, 30, "uniform")) == 31
    repeats = {
        S: S - len(set(official_timesteps(1000, S, "quadratic").tolist())) for S in (10, 100, 1000)
    }
    assert repeats == {10: 0, 100: 4, 1000: 312}


def official(alpha_bar, S):
    return official_timesteps(len(alpha_bar) - 1, S, "uniform")


@pytest.mark.parametrize("timesteps", [*TIMESTEPS.values(), official])
@pytest.mark.parametrize("S", [0, -1, 1001])
def test_refuses_more_steps_than_there_are(timesteps, S):
    with pytest.raises(ValueError, match=f"S is {S} reverse steps; choose 1 to T = 1000"):
        timesteps(bars(1000), S)


def test_refusals():
    with pytest.raises(ValueError, match="'cubic'"):
        official_timesteps(1000, 10, "cubic")
    with pytest.raises(ValueError, match=r"alpha_bar has shape \(\); it must be \(T\+1,\)"):
        logsnr_timesteps(1000, 10)
    with pytest.raises(ValueError, match="rho is 0"):
        karras_timesteps(bars(1000), 10, rho=0)
