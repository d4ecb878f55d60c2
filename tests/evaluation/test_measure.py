"""What the cells of a grid are measured against."""

import numpy as np
import pytest

from ddim_jax import features
from ddim_jax.evaluation.measure import few_images, open_reference
from ddim_jax.features import Features, flat, pixels
from ddim_jax.metrics import STATISTICS, Points, Statistics

PIXELS = Features("pixels", pixels, {"features": "pixels"}, flat)


def test_neighbours_and_kernels_take_ten_thousand_and_frechet_all(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (10_050, 1, 2, 1), np.uint8)
    points = open_reference(images, PIXELS, tmp_path).points
    assert {name: part.shape[0] for name, part in points.items()} == {
        "frechet": 10_050,
        **dict.fromkeys(("kernel", "precision", "recall", "density", "coverage"), 10_000),
    }
    # In random order: a part of images that are sorted by class has all classes.
    assert not np.array_equal(points["recall"].features, pixels(images)[:10_000])


def test_statistics_are_enough_for_frechet_alone(tmp_path):
    reference = open_reference(Statistics(np.zeros(2), np.eye(2), 0), PIXELS, tmp_path)
    assert list(reference.points) == ["frechet"]
    other = open_reference(Statistics(np.ones(2), np.eye(2), 0), PIXELS, tmp_path)
    assert reference.identity != other.identity


def test_a_covariance_that_no_memory_holds_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(features, "MOST", 5)
    images = np.zeros((7, 1, 6, 1), np.uint8)
    with pytest.raises(ValueError, match=r"7 images of 6 features, .* use --features inception"):
        open_reference(images, PIXELS, tmp_path)
    assert open_reference(images[:5], PIXELS, tmp_path).points["frechet"].shape == (5, 6)


def test_fewer_samples_than_dimensions_are_warned_of():
    assert few_images(64, 64) == []
    assert "n = 512 is less than the 2,048 dimensions" in few_images(512, 2048)[0]


@pytest.mark.parametrize(
    ("count", "left_out"), [(3, {"precision", "density", "coverage"}), (4, {"density", "coverage"}),
                            (6, set())],
)  # fmt: skip
def test_a_handful_of_images_is_measured_by_what_they_allow(tmp_path, count, left_out):
    images = np.random.default_rng(0).integers(0, 256, (count, 2, 2, 1), np.uint8)
    reference = open_reference(images, PIXELS, tmp_path)
    assert STATISTICS.keys() - reference.points.keys() == left_out
    samples = Points(np.random.default_rng(1).normal(size=(8, 4)))
    for name, points in reference.points.items():
        spread = STATISTICS[name].method(STATISTICS[name].function, points, samples)
        assert np.isfinite(STATISTICS[name].interval(spread)).all()
    with pytest.raises(ValueError, match="the reference has 1 image; measuring needs 2"):
        open_reference(images[:1], PIXELS, tmp_path)
