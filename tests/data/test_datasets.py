import numpy as np
import pytest
from PIL import Image

from ddim_jax.config import DataConfig
from ddim_jax.data import load_dataset


@pytest.mark.parametrize(
    ("source", "shape", "sizes"),
    [("digits", (8, 8, 1), (1437, 360)), ("emoji", (32, 32, 3), (3302, 345))],
)
def test_embedded_sources(source, shape, sizes):
    for split, size in zip(("train", "test"), sizes, strict=True):
        dataset = load_dataset(DataConfig(source), shape, split)
        assert (dataset.size, dataset.shape, dataset.flippable) == (size, shape, False)
        images = dataset.read(np.arange(size))
        assert images.shape == (size, *shape)
        assert images.dtype == np.uint8
        assert images.min() == 0
        assert images.max() == 255
        labels = dataset.label(np.arange(size))
        assert set(labels) == set(range(len(dataset.classes)))
    with pytest.raises(
        ValueError, match=rf"{source} has images of shape .* use --model.image-size {shape[0]}"
    ):
        load_dataset(DataConfig(source), (16, 16, 3))


def test_the_credits_travel_with_the_data():
    import importlib.resources

    text = importlib.resources.files("ddim_jax.data").joinpath("embedded/CREDITS.md").read_text()
    assert all(word in text for word in ("CC BY 4.0", "Alpaydin", "Noto Emoji", "Google", "Apache"))


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "sub").mkdir()
    wide = np.zeros((20, 60, 3), np.uint8)
    wide[:, 20:40] = [255, 0, 0]  # the centre square is red, the rest black
    Image.fromarray(wide).save(tmp_path / "b.png")
    Image.fromarray(np.full((30, 30), 128, np.uint8)).save(tmp_path / "sub" / "c.jpg")
    Image.new("RGBA", (16, 16), (0, 0, 0, 0)).save(tmp_path / "a.PNG")  # wholly transparent: white
    (tmp_path / "notes.txt").write_text("not an image")
    return tmp_path


def test_a_folder_is_resized_and_cropped(folder):
    dataset = load_dataset(DataConfig(f"folder:{folder}"), (8, 8, 3))
    images = dataset.read(np.arange(dataset.size))
    assert dataset.size == 3
    assert dataset.flippable is None
    np.testing.assert_array_equal(images[0], np.full((8, 8, 3), 255))
    np.testing.assert_array_equal(images[1], np.broadcast_to([255, 0, 0], (8, 8, 3)))
    np.testing.assert_allclose(images[2], 128, atol=2)
    assert load_dataset(DataConfig(f"folder:{folder}"), (8, 8, 1)).read(np.array([0])).shape == (
        1,
        8,
        8,
        1,
    )


def test_the_classes_of_a_folder_are_its_directories(folder):
    assert (
        load_dataset(DataConfig(f"folder:{folder}"), (8, 8, 3)).classes == ()
    )  # two images lie beside the directory
    for name in ("a.PNG", "b.png"):
        (folder / "more").mkdir(exist_ok=True)
        (folder / name).rename(folder / "more" / name)
    dataset = load_dataset(DataConfig(f"folder:{folder}"), (8, 8, 3))
    assert dataset.classes == ("more", "sub")
    labels = dataset.label(np.arange(3))
    np.testing.assert_allclose(dataset.read(np.flatnonzero(labels == 1)), 128, atol=2)


def test_a_broken_image_is_named(folder):
    path = folder / "sub" / "c.jpg"
    path.write_bytes(path.read_bytes()[:-80])
    with pytest.raises(
        ValueError, match=rf"{path} is not a readable image .*; repair it or remove it"
    ):
        load_dataset(DataConfig(f"folder:{folder}"), (8, 8, 3))
    path.write_text("nothing")
    with pytest.raises(ValueError, match=rf"{path} is not a readable image"):
        load_dataset(DataConfig(f"folder:{folder}"), (8, 8, 3))


@pytest.mark.parametrize(
    ("source", "split", "message"),
    [
        ("folder:{tmp}/nowhere", "train", "nowhere is not a directory"),
        ("folder:{tmp}", "train", "holds no images"),
        ("tfds:no_such_data_set", "train", "knows no data set 'no_such_data_set'"),
        ("tfds:mnist", "train", "'mnist' is not prepared in {tmp}: .*tfds build mnist"),
    ],
)
def test_refusals(source, split, message, tmp_path):
    with pytest.raises(ValueError, match=message.format(tmp=tmp_path)):
        load_dataset(
            DataConfig(source.format(tmp=tmp_path), data_dir=str(tmp_path)), (8, 8, 1), split
        )
