"""Inception against torch-fidelity and pytorch-fid, with weights made by a rule, and its file.

`inception_by_rule.npz` has the features that torch-fidelity 0.4.0 (tf1) and pytorch-fid 0.3.0 gave
for the weights of `by_rule`, and the name and shape of each tensor in their file.
"""

from functools import partial

import jax
import numpy as np
import pytest

from ddim_jax.files import file_sha256
from ddim_jax.model import (
    find_inception,
    inception_features,
    inception_logits,
    load_inception,
)
from ddim_jax.model.inception import FAMILIES
from tests.model.by_rule import RECORDED
from tests.model.torch_writer import write_legacy


@pytest.fixture(scope="module")
def params(inception_file):
    return load_inception(inception_file, file_sha256(inception_file))


def assert_near(ours, theirs):
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4 * np.abs(theirs).max())


@pytest.mark.parametrize("family", FAMILIES)
def test_features_and_logits_are_the_recorded_ones(params, family):
    features = jax.jit(partial(inception_features, family=family))
    rng = np.random.default_rng(int(RECORDED["big_seed"]))
    rng.integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    large = rng.integers(0, 256, (1, 299, 299, 3), dtype=np.uint8)
    recorded = family.replace("-", "_")
    ours = features(params, RECORDED["images"])
    assert_near(ours, RECORDED[f"{recorded}_features"])
    assert_near(features(params, large), RECORDED[f"{recorded}_features_299"])
    if family == "tf1":
        assert_near(inception_logits(params, ours), RECORDED["tf1_logits_unbiased"])


def test_every_product_is_in_full_float32_on_any_device(params):
    def scores(params, images):
        return inception_logits(params, inception_features(params, images))

    program = str(jax.make_jaxpr(scores)(params, np.zeros((2, 8, 8, 1), np.uint8)))
    assert program.count("precision=(Precision.HIGHEST, Precision.HIGHEST)") == 94 + 2 + 1
    assert "precision=None" not in program
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype("float32")}


def test_an_unknown_family_is_one_sentence(params):
    with pytest.raises(ValueError, match="the family is 'tf2'; choose one of tf1, pytorch-fid"):
        inception_features(params, RECORDED["images"], "tf2")


def test_another_file_is_one_sentence(tmp_path, torch):
    path = tmp_path / "other.pth"
    tensors = {
        "fc.weight": np.zeros((8, 2), np.float32),
        "fc.bias": np.zeros(1008),
        "head.weight": np.zeros(1, np.float32),
    }
    write_legacy(path, tensors, torch)
    with pytest.raises(
        ValueError, match=f"{path} has the SHA-256 {file_sha256(path)} instead of 6726825d"
    ):
        load_inception(path)
    with pytest.raises(ValueError, match="No such file"):
        load_inception(tmp_path / "missing.pth")
    with pytest.raises(ValueError) as error:
        load_inception(path, sha256=None)
    assert str(error.value).startswith(
        f"{path} lacks Conv2d_1a_3x3.conv.weight, Conv2d_1a_3x3.bn.weight and 468 more, and also "
        "has head.weight, and has fc.weight as float32 (8, 2) instead of float32 (1008, 2048), "
        "fc.bias as float64 (1008,) instead of float32 (1008,); give pt_inception-2015"
    )
    write_legacy(path, [tensors], torch)
    with pytest.raises(ValueError, match=r"lacks fc\.weight, fc\.bias and 470 more; give"):
        load_inception(path, sha256=None)


@pytest.fixture
def places(tmp_path, monkeypatch):
    """Files where a user may have put the weights; nothing is downloaded."""
    monkeypatch.setenv("DDIM_JAX_INCEPTION", str(tmp_path / "variable.pth"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    cached = tmp_path / "cache" / "ddim_jax" / "pt_inception-2015-12-05-6726825d.pth"
    cached.parent.mkdir(parents=True)
    for path in (tmp_path / "given.pth", tmp_path / "variable.pth", cached):
        path.touch()
    return tmp_path / "given.pth", tmp_path / "variable.pth", cached


def test_the_file_is_given_or_in_the_environment_or_in_the_cache(places, monkeypatch):
    given, variable, cached = places
    assert find_inception(given) == given
    assert find_inception() == variable
    monkeypatch.delenv("DDIM_JAX_INCEPTION")
    assert find_inception() == cached
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(given.parent))
    cached.parent.parent.rename(given.parent / ".cache")
    assert find_inception() == given.parent / ".cache" / "ddim_jax" / cached.name


def test_a_place_without_the_file_is_one_sentence(places):
    given, variable, _ = places
    for path in (given, variable):
        path.unlink()
    with pytest.raises(
        ValueError, match=rf"\$DDIM_JAX_INCEPTION is {variable}, which is not a file"
    ):
        find_inception()
    with pytest.raises(ValueError, match=f"{given}, which is not a file; give pt_inception.* from"):
        find_inception(given)
