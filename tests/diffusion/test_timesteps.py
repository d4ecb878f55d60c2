import numpy as np
import pytest

from ddim_jax import (
    linspace_timesteps,
    official_timesteps,
    quadratic_timesteps,
    trailing_timesteps,
    uniform_timesteps,
)
from ddim_jax.diffusion.timesteps import TIMESTEPS

SEQUENCES = TIMESTEPS.values()


@pytest.mark.parametrize("timesteps", SEQUENCES)
def test_exactly_S_strictly_increasing_times_within_the_noisy_ones(timesteps):
    for T in [*range(1, 40), 1000]:
        for S in range(1, T + 1):
            tau = timesteps(T, S)
            assert tau.shape == (S,)
            assert tau.dtype == np.int64
            assert tau[0] >= 1
            assert tau[-1] <= T
            assert np.all(np.diff(tau) > 0)
        np.testing.assert_array_equal(timesteps(T, T), np.arange(1, T + 1))


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
    assert [*TIMESTEPS] == ["uniform", "quadratic", "trailing", "linspace"]
    assert all(sequence.__name__ == f"{name}_timesteps" for name, sequence in TIMESTEPS.items())


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


@pytest.mark.parametrize(
    "timesteps", [*SEQUENCES, lambda T, S: official_timesteps(T, S, "uniform")]
)
@pytest.mark.parametrize("S", [0, -1, 1001])
def test_refuses_more_steps_than_there_are(timesteps, S):
    with pytest.raises(ValueError, match=f"S is {S} reverse steps; choose 1 to T = 1000"):
        timesteps(1000, S)


def test_refuses_an_unknown_kind():
    with pytest.raises(ValueError, match="'cubic'"):
        official_timesteps(1000, 10, "cubic")
