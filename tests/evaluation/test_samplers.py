"""Samplers in files, and by their names."""

import numpy as np
import pytest

from ddim_jax import (
    adams,
    eta,
    step_table,
)
from ddim_jax.evaluation.samplers import load_sampler, sampler_cells, save_sampler


def test_files_and_names_of_samplers(alpha_bar, tmp_path):
    table = step_table(alpha_bar, [1, 300, 900], eta(0.5), adams(2))
    path = tmp_path / "mine.npz"
    save_sampler(path, table, {"alpha_bar_t": table.alpha_bar_t})
    again, named = sampler_cells(alpha_bar, [str(path), "eta=0.5 1,300,900 adams=2 S=3"])
    assert again.name == "mine S=3"
    for one, two, own in zip(again.table, named.table, table, strict=True):
        np.testing.assert_array_equal(one, own)
        np.testing.assert_array_equal(two, own)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda table: table._replace(sigma=[2.0, 0, 0]), "does not fit the model: row 0"),
        (lambda table: table._replace(t=np.array([2000, 300, 1])), "does not fit the model"),
        (lambda table: table._replace(x_0_correction=np.ones((3, 2))), "does not fit the model"),
    ],
)
def test_tables_that_no_model_has(alpha_bar, tmp_path, change, message):
    table = step_table(alpha_bar, [1, 300, 900], eta(0.5), adams(2))
    save_sampler(tmp_path / "bad.npz", change(table), {})
    with pytest.raises(ValueError, match=message):
        load_sampler(tmp_path / "bad.npz", alpha_bar)


def test_another_noise_schedule_is_refused(alpha_bar, tmp_path):
    table = step_table(alpha_bar, [1, 300, 900], eta(0.5))
    save_sampler(tmp_path / "a.npz", table, {"alpha_bar_t": table.alpha_bar_t})
    other = alpha_bar**1.1
    with pytest.raises(ValueError, match="made for another noise schedule"):
        load_sampler(tmp_path / "a.npz", other)
