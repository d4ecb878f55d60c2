import numpy as np
import pytest
from PIL import Image

from ddim_jax.config import DataConfig
from ddim_jax.data import Dataset, load_dataset
from ddim_jax.data.dataset import about, class_index, in_memory, mirrors


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


def test_digits_and_letters_are_never_mirrored_and_others_as_asked():
    """Asked: None, True, False. Known: CIFAR-10 yes, digits no, a folder unknown."""
    made = Dataset("x", 1, (1, 1, 1), None, lambda indices: np.zeros((1, 1, 1, 1), np.uint8))
    for known, expected in (
        (True, [True, True, False]),
        (False, [False, False, False]),
        (None, [False, True, False]),
    ):
        dataset = made._replace(flippable=known)
        assert [mirrors(asked, dataset) for asked in (None, True, False)] == expected
        for mirrored in set(expected):
            (line,) = about(dataset, mirrored)
            assert line.startswith("images are mirrored") == mirrored


def test_a_fingerprint_changes_with_images_labels_and_classes():
    images, labels = np.zeros((2, 1, 1, 1), np.uint8), [0, 1]
    changes = {
        "as it was": (images.copy(), labels, ("a", "b")),
        "images": (images + np.uint8(1), labels, ("a", "b")),
        "labels": (images, [1, 0], ("a", "b")),
        "classes": (images, labels, ("b", "a")),
    }
    prints = {
        name: in_memory("x", one, (1, 1, 1), None, two, three).fingerprint
        for name, (one, two, three) in changes.items()
    }
    assert len(set(prints.values())) == 4
    assert (
        in_memory("y", images, (1, 1, 1), None, labels, ("a", "b")).fingerprint
        == prints["as it was"]
    )


@pytest.mark.parametrize("label", ["4", "-1", "1.0", "²", "cow", "9" * 5000])
def test_a_label_that_is_no_class(label):
    with pytest.raises(ValueError, match=r"^--label is .*0 to 3, or a name: a, b, c, d\.$"):
        class_index(label, ("a", "b", "c", "d"), 4)


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
