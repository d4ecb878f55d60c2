"""What tensorflow-datasets prepared, by name, in its two formats, whole and damaged."""

import json
import shutil
import sys

import numpy as np
import pytest

from ddim_jax.config import DataConfig
from ddim_jax.data import MissingSplit, load_dataset
from tests.data.synthetic import SHAPE, rows, write_archive, write_tfrecord


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    directory = tmp_path_factory.mktemp("tfds")
    sha256, splits = write_archive(directory / "cifar-10-binary.tar.gz", records=3)
    load_dataset(DataConfig("cifar10", str(directory), archive_sha256=sha256), SHAPE)
    return directory, splits


@pytest.fixture
def stock(prepared, tmp_path):
    """The same as the stock builder stores it by default: TFRecord files."""
    import tensorflow_datasets as tfds

    folder = shutil.copytree(prepared[0] / "cifar10", tmp_path / "cifar10") / "3.0.2"
    builder = tfds.builder("cifar10", data_dir=prepared[0])
    for split in ("train", "test"):
        records = builder.as_data_source(
            split, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES
        )
        (path,) = folder.glob(f"cifar10-{split}.array_record-*")
        write_tfrecord(path.with_name(path.name.replace("array_record", "tfrecord")), records)
        path.unlink()
    info = folder / "dataset_info.json"
    info.write_text(info.read_text().replace("array_record", "tfrecord"))
    return tmp_path


def test_any_prepared_data_set_by_name_resized(prepared):
    directory, splits = prepared
    named = DataConfig("tfds:cifar10", str(directory))
    dataset, indices = load_dataset(named, SHAPE), np.arange(15)
    images, found = dataset.read(indices), dataset.label(indices)
    assert rows(images) == rows(splits["train"][1])
    labels = {image.tobytes(): label for label, image in zip(*splits["train"], strict=True)}
    assert [labels[image.tobytes()] for image in images] == found.tolist()
    assert dataset.flippable is None
    small = load_dataset(named, (16, 16, 1))
    assert small.read(np.array([5, 0, 5])).shape == (3, 16, 16, 1)
    np.testing.assert_array_equal(small.read(np.array([5, 0, 5]))[[0]], small.read(np.array([5])))


@pytest.mark.parametrize("source", ["cifar10", "tfds:cifar10", "tfds:cifar10:3.0.2"])
def test_what_stock_tensorflow_datasets_prepared_is_read_without_tensorflow(
    prepared, stock, source
):
    ours = load_dataset(DataConfig(source, str(prepared[0])), SHAPE, "test")
    theirs = load_dataset(DataConfig(source, str(stock)), SHAPE, "test")
    indices = np.array([2, 0, 1, 1])
    for read in ("read", "label"):
        np.testing.assert_array_equal(getattr(theirs, read)(indices), getattr(ours, read)(indices))
    assert (theirs.size, theirs.classes) == (3, ours.classes)
    assert "tensorflow" not in sys.modules


def test_damage_is_one_sentence(stock):
    (path,) = stock.rglob("cifar10-train.tfrecord-*")
    content = path.read_bytes()
    path.write_bytes(content[:-9])
    config = DataConfig("cifar10", str(stock))
    with pytest.raises(ValueError, match=r"tfrecord-00000-of-00001 is cut short; remove"):
        load_dataset(config, SHAPE)
    path.unlink()
    with pytest.raises(ValueError, match=r"'cifar10' is incomplete .*prepare it again"):
        load_dataset(config, SHAPE)
    info = stock / "cifar10" / "3.0.2" / "dataset_info.json"
    info.write_text(info.read_text().replace("tfrecord", "riegeli"))
    with pytest.raises(ValueError, match=r"stored as riegeli, not as array_record or tfrecord"):
        load_dataset(config, SHAPE)
    info.write_text(info.read_text()[:100])
    with pytest.raises(ValueError, match=r"'cifar10' cannot be opened in .*prepare it again"):
        load_dataset(config, SHAPE)


def test_a_split_that_is_not_there(stock):
    info = stock / "cifar10" / "3.0.2" / "dataset_info.json"
    values = json.loads(info.read_text())
    values["splits"] = [split for split in values["splits"] if split["name"] == "train"]
    info.write_text(json.dumps(values))
    with pytest.raises(MissingSplit, match=r"has the splits \['train'\]; it needs 'test'"):
        load_dataset(DataConfig("tfds:cifar10", str(stock)), SHAPE, "test")


@pytest.mark.parametrize(
    "name",
    [
        "",
        "1mnist",
        "mnist:",
        "mnist:2",
        "../mnist",
        "mnist/a=1",
        "huggingface:x",
        "é ?",
        "a\nb",
    ],
)
def test_a_name_that_cannot_be_parsed(name, tmp_path):
    with pytest.raises(ValueError, match=r"^--data.source is 'tfds:.*'; give tfds:NAME, tfds"):
        load_dataset(DataConfig(f"tfds:{name}", str(tmp_path)), SHAPE)


@pytest.mark.parametrize("name", ["mnist:9.9.9", "mnist/nonesuch", "nonesuch/x:1.0.0"])
def test_a_name_of_nothing(name, tmp_path):
    with pytest.raises(ValueError, match=rf"^[^\n]*'{name}'[^\n]*$"):
        load_dataset(DataConfig(f"tfds:{name}", str(tmp_path)), SHAPE)
