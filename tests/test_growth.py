"""How work and memory grow with n, counted and not timed."""

import tracemalloc
from collections import Counter

import numpy as np
import pytest

from bench import growth
from ddim_jax.config import load_config
from ddim_jax.evaluation.figures import grid_of
from ddim_jax.evaluation.report import _page
from ddim_jax.metrics import STATISTICS, Points, points
from ddim_jax.training import checkpoint, load_run
from tests.evaluation.example import example


def measured(n, D=8):
    """Every statistic with its interval of n points against n."""
    rng = np.random.default_rng(0)
    sets = [Points(rng.normal(size=(n, D))) for _ in range(2)]
    for statistic in STATISTICS.values():
        statistic.interval(statistic.method(statistic.function, *sets))


def test_statistics_share_their_distances(monkeypatch):
    """n² within either set and n² between them, each once: 3 n² for six statistics."""
    done = Counter()
    blocks = points._squared_distances

    def counted(a, b, rows):
        for part, squares in blocks(a, b, rows):
            done[len(a)] += squares.size
            yield part, squares

    monkeypatch.setattr(points, "_squared_distances", counted)
    for n in (64, 128):
        measured(n)
        assert done[n] == 3 * n**2


def test_statistics_of_many_points_need_memory_for_blocks_only(monkeypatch):
    """Distances among all points would take four times the memory for twice as many."""
    monkeypatch.setattr(points, "_KEPT", 0)
    monkeypatch.setattr(points, "_blocks", lambda rows, columns: (
        slice(start, min(start + 8, rows)) for start in range(0, rows, 8)
    ))  # fmt: skip
    peaks = []
    for n in (300, 600):
        tracemalloc.start()
        measured(n)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 2.3 * peaks[0]


def test_the_page_grows_with_the_cells():
    def size(count):
        sigmas = {f"eta={i / count:g}": i / count for i in range(count)}
        results, sprites = example(sigmas=sigmas, steps=(5,), images=4)
        return len(_page(results, grid_of(results["cells"]), sprites, {}))

    few, more, most = size(10), size(20), size(40)
    assert (most - more) / (more - few) == pytest.approx(2, rel=0.05)


def test_of_a_checkpoint_only_the_averaged_weights_are_read(tiny_run, monkeypatch):
    read, restore = [], checkpoint._restore
    monkeypatch.setattr(
        checkpoint, "_restore", lambda *given: read.append(set(given[2])) or restore(*given)
    )
    config, _ = load_run(tiny_run)
    assert read == [{"config"}, {"ema"}]
    assert config == load_config(tiny_run / "config.json")


def test_every_work_is_measured(monkeypatch, tmp_path):
    monkeypatch.setattr(growth, "in_child", lambda module, *case: {f"{case}, MiB": 1.0})
    rows = growth.bench_growth((16, 32))
    assert [row.measure for row in rows] == [
        "('nothing', '0')",
        *(f"('{work}', '{n}')" for work in ("distances", "grid", "folder") for n in (16, 32)),
        *(f"('checkpoint', '{name}')" for name in ("digits", "emoji", "cifar10")),
    ]
    assert {row.unit for row in rows} == {"MiB"}
    monkeypatch.setattr(growth, "DIMENSIONS", 4)
    found = growth.distances(16, tmp_path) | growth.folder(16, tmp_path)
    assert len(found) == len(STATISTICS) + 2
    assert all(value > 0 for value in found.values())
