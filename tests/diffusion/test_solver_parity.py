"""The recorded outputs of diffusers' DPM-Solver++, its SDE, UniPC and LMS, given their noise."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddim_jax import (
    Correction,
    adams,
    deis,
    denoiser,
    dpm_solver_pp,
    eta,
    first_order,
    image_keys,
    sample,
    stack_tables,
    step_table,
    trailing_timesteps,
)

DATA = np.load(Path(__file__).parent.parent / "reference" / "solvers.npz")


def unip_3(steps, sigma):
    """A solver of the user's own: `adams` where three predictions are used, the midpoint else."""
    third = adams(3, lower_order_final=True)(steps, sigma).x_0
    second = np.pad(dpm_solver_pp(2, lower_order_final=True)(steps, sigma).x_0, ((0, 0), (0, 1)))
    x_0 = np.where(third[:, 2:] != 0, third, second)
    return Correction(x_0, np.zeros_like(x_0))


SOLVERS = {
    "dpmpp/1": first_order(),
    "dpmpp/2/midpoint": dpm_solver_pp(2),
    "dpmpp/2/heun": adams(2),
    "dpmpp/3": dpm_solver_pp(3),
    "sde-dpmpp/1": first_order(),
    "sde-dpmpp/2/midpoint": dpm_solver_pp(2),
    "sde-dpmpp/2/heun": adams(2),
    "unip/2": dpm_solver_pp(2, lower_order_final=True),
    "unip/3": unip_3,
    "lms/4": deis(4, lower_order_final=False),
}
CASES = [f"{name}/{S}" for name in SOLVERS for S in (5, 10, 20)]


def test_there_are_no_other_cases():
    others = {"x_T", "noise", "times/5", "times/10", "times/20"}
    assert {*CASES} == {*DATA.files} - others


@pytest.fixture(scope="module", params=["float32", "float64"])
def results(request, alpha_bar):
    """The samples of every case, by one program per precision, and the tolerance."""
    with jax.enable_x64(request.param == "float64"):

        def network(params, x, t):
            t = t.reshape(-1, 1, 1, 1)
            a = jnp.asarray(alpha_bar)[t + 1]
            return 0.8 * jnp.sqrt(1 - a) * x + 0.1 * jnp.sin(3 * x + t / 100)

        tables = []
        for case in CASES:
            name, S = case.rsplit("/", 1)
            tau = trailing_timesteps(1000, int(S))
            np.testing.assert_array_equal(np.sort(DATA[f"times/{S}"]) + 1, tau)
            schedule = eta(1.0 if name.startswith("sde") else 0.0)
            tables.append(step_table(alpha_bar, tau, schedule, SOLVERS[name]))
        x_T, noise = (jnp.asarray(DATA[name], request.param) for name in ("x_T", "noise"))
        denoise, keys = denoiser(network, None, alpha_bar), image_keys(0, range(2))

        @jax.jit
        def run(tables):
            return jax.lax.map(lambda table: sample(denoise, x_T, table, keys, noise), tables)

        samples = np.asarray(run(stack_tables(tables)))
        assert samples.dtype == request.param
    return dict(zip(CASES, samples, strict=True)), 2e-5 if request.param == "float32" else 2e-6


@pytest.mark.parametrize("case", CASES)
def test_diffusers(case, results):
    samples, tolerance = results
    assert np.abs(samples[case] - DATA[case]).max() <= tolerance * np.abs(DATA[case]).max()
