"""Folders as people have them: classes, splits, links, litter, and every kind of image file."""

import os

import numpy as np
import pytest
from PIL import Image

from ddim_jax.config import DataConfig
from ddim_jax.data import MissingSplit, decode, load_dataset
from ddim_jax.data.dataset import about, check_record, run_classes, save_record

SHAPE = (4, 4, 1)


def put(path, level=0, side=4):
    """A grey image."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((side, side), level, np.uint8)).save(path)
    return path


def load(folder, split="train", shape=SHAPE):
    return load_dataset(DataConfig(f"folder:{folder}"), shape, split)


def content(dataset):
    """The grey value of each image, and the name of its class."""
    indices = np.arange(dataset.size)
    levels = dataset.read(indices)[:, 0, 0, 0].tolist()
    names = [dataset.classes[k] for k in dataset.label(indices)] if dataset.label else None
    return levels, names


def the_image(folder, image, name="x.png", shape=(256, 256, 1), **options):
    image.save(folder / name, **options)
    return load(folder, shape=shape).read(np.array([0]))[0]


def test_sixteen_bits_keep_their_levels(tmp_path):
    """A ramp of 65,536 levels becomes 256 levels of 256 pixels, but for rounding at both ends."""
    ramp = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    expected = np.floor(np.arange(65536) / 257 + 0.5).reshape(256, 256, 1)
    for name in ("x.png", "x.tif", "x.pgm"):
        folder = tmp_path / name[2:]
        folder.mkdir()
        np.testing.assert_array_equal(the_image(folder, Image.fromarray(ramp), name), expected)


def test_numbers_without_a_known_range_are_refused(tmp_path):
    Image.fromarray(np.ones((4, 4), np.float32)).save(tmp_path / "x.tif")
    with pytest.raises(ValueError, match=r"x.tif is not a readable .*8 or 16 bits"):
        load(tmp_path)
    Image.fromarray(np.full((4, 4), 70_000, np.int32)).save(tmp_path / "x.tif")
    with pytest.raises(ValueError, match=r"x.tif is not a readable .*8 or 16 bits"):
        load(tmp_path)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_says_which_side_is_up(tmp_path, orientation):
    """The four quarters of a picture, stored as a camera stores it and seen upright."""
    upright = np.array([[0, 80], [160, 240]], np.uint8)
    rotate, mirror = np.rot90, np.fliplr
    stored = {
        1: upright, 2: mirror(upright), 3: rotate(upright, 2), 4: np.flipud(upright),
        5: upright.T, 6: rotate(upright), 7: upright[::-1, ::-1].T, 8: rotate(upright, -1),
    }[orientation]  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture = Image.fromarray(stored.repeat(16, 0).repeat(16, 1))
    image = the_image(tmp_path, picture, "x.jpg", (32, 32, 1), exif=exif, quality=100)
    np.testing.assert_allclose(image[8::16, 8::16, 0], upright, atol=2)


def test_every_mode_becomes_grey_or_colour_on_white(tmp_path):
    red, white = (255, 0, 0), (255, 255, 255)
    half = Image.new("LA", (4, 4), (0, 0))
    half.putpixel((0, 0), (100, 255))
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([*red, 9, 9, 9])
    palette.putpixel((0, 0), 0)
    cases = {
        "bits.png": (Image.new("1", (4, 4), 1), white, white, {}),
        "grey.png": (Image.new("L", (4, 4), 7), (7,) * 3, (7,) * 3, {}),
        "alpha.png": (half, (100,) * 3, white, {}),
        "rgba.png": (Image.new("RGBA", (4, 4), (0, 0, 0, 0)), white, white, {}),
        "palette.png": (palette, red, (9, 9, 9), {}),
        "clear.png": (palette, red, white, {"transparency": 1}),
        "clear.gif": (palette, red, white, {"transparency": 1}),
        "cmyk.tif": (Image.new("CMYK", (4, 4), (0, 255, 255, 0)), red, red, {}),
    }
    for name, (image, first, last, options) in cases.items():
        folder = tmp_path / name
        folder.mkdir()
        pixels = the_image(folder, image, name, (4, 4, 3), **options)
        assert (tuple(pixels[0, 0]), tuple(pixels[3, 3])) == (first, last), name
        assert load(folder).read(np.array([0])).shape == (1, 4, 4, 1)


def test_of_an_animation_the_first_frame_is_taken_and_that_is_said(tmp_path):
    frames = [Image.new("L", (4, 4), level) for level in (10, 200)]
    frames[0].save(tmp_path / "x.gif", save_all=True, append_images=frames[1:])
    put(tmp_path / "y.png", 30)
    dataset = load(tmp_path)
    assert content(dataset)[0] == [10, 30]
    assert dataset.notes == ("of animated images the first frame is taken: x.gif",)


def test_classes_are_the_sorted_names_of_folders_nested_or_linked(tmp_path):
    """As ImageFolder has it: names are sorted as text, and links are followed."""
    root, elsewhere = tmp_path / "root", tmp_path / "elsewhere"
    put(root / "10" / "a.png", 1)
    put(root / "2" / "deep" / "er" / "b.png", 2)
    put(elsewhere / "c.png", 3)
    (root / "linked").symlink_to(elsewhere, target_is_directory=True)
    (root / "2" / "up").symlink_to(root, target_is_directory=True)  # a loop
    (elsewhere / "self.png").symlink_to(elsewhere / "c.png")
    (root / "nothing").mkdir()
    dataset = load(root)
    assert dataset.classes == ("10", "2", "linked")
    assert content(dataset) == ([1, 2, 3, 3], ["10", "2", "linked", "linked"])
    assert "3 classes: 10, 2, linked" in about(dataset, False)


def test_litter_is_ignored_and_other_files_are_named(tmp_path):
    put(tmp_path / "cat" / "a.png", 1)
    for name in (".DS_Store", "Thumbs.db", "._a.png", "desktop.ini"):
        (tmp_path / "cat" / name).write_text("x")
    for name in ("__MACOSX/cat/b.png", ".ipynb_checkpoints/c.png"):
        put(tmp_path / name)
    (tmp_path / "cat" / "labels.csv").write_text("x")
    dataset = load(tmp_path)
    assert content(dataset) == ([1], ["cat"])
    assert dataset.notes == ("left out, not being images: cat/labels.csv",)


@pytest.mark.parametrize("test", ["test", "val"])
def test_splits_beside_each_other(tmp_path, test):
    for k, name in enumerate(("train/cat/a", "train/dog/b", f"{test}/dog/c")):
        put(tmp_path / f"{name}.png", k)
    put(tmp_path / "more.png", 9)
    put(tmp_path / "other" / "cat" / "more.png", 9)
    for folder in (tmp_path, tmp_path / "train"):
        assert content(load(folder)) == ([0, 1], ["cat", "dog"])
        assert content(load(folder, "test")) == ([2], ["dog"])
    assert load(tmp_path).notes == (f"left out, not being in train and {test}: 2 images",)


def test_a_split_with_classes_goes_before_one_without(tmp_path):
    for k, name in enumerate(("train/cat/a", "test/b", "val/cat/c")):
        put(tmp_path / f"{name}.png", k)
    assert content(load(tmp_path, "test")) == ([2], ["cat"])
    (tmp_path / "val" / "cat").rename(tmp_path / "val" / "cow")
    assert content(load(tmp_path, "test")) == ([1], None)


def test_folders_that_are_no_splits_are_classes(tmp_path):
    put(tmp_path / "train" / "a.png", 1)
    put(tmp_path / "bus" / "b.png", 2)
    assert load(tmp_path).classes == ("bus", "train")
    with pytest.raises(MissingSplit, match="has no test split"):
        load(tmp_path, "test")


def test_all_broken_files_are_named_at_once(tmp_path):
    for k in range(9):
        put(tmp_path / f"{k}.png", k)
    for k in range(7):
        (tmp_path / f"{k}.png").write_bytes(b"nothing")
    (tmp_path / "1.png").unlink()
    (tmp_path / "1.png").symlink_to(tmp_path / "gone")
    (tmp_path / "2.png").unlink()
    os.mkfifo(tmp_path / "2.png")  # reading it would never end
    with pytest.raises(ValueError, match=r"; and 2 more; repair these 7 of 9 or remove") as error:
        load(tmp_path)
    assert [name for name in "012345678" if f"/{name}.png is not" in str(error.value)] == [*"01234"]


@pytest.mark.parametrize("path", ["", "/no/such/place", "x" * 300, "~nobody-here/x", "a\0b"])
def test_a_path_that_is_no_folder(path):
    with pytest.raises(ValueError, match="is not a directory; give folder:PATH"):
        load(path)


def test_a_name_that_is_not_text_can_be_printed_and_saved(tmp_path):
    try:
        os.mkdir(os.fsencode(tmp_path) + b"/caf\xe9")
    except OSError:
        pytest.skip("this file system allows no such names")
    put(tmp_path / os.fsdecode(b"caf\xe9") / "a.png", 5)
    dataset = load(tmp_path)
    assert content(dataset) == ([5], ["caf�"])
    save_record(tmp_path / "run", dataset)
    assert run_classes(tmp_path / "run") == ("caf�",)


def test_a_run_notices_that_its_folder_changed(tmp_path):
    """Names and sizes count; the place and the times do not, since a copy has others."""
    root, run = tmp_path / "root", tmp_path / "run"
    for k in range(3):
        put(root / "cat" / f"{k}.png", k)
    check_record(run, load(root))  # a run that remembers nothing
    save_record(run, load(root))
    os.utime(root / "cat" / "0.png", (0, 0))
    root = root.rename(tmp_path / "moved")
    check_record(run, load(root))
    put(root / "cat" / "1.png", 1, side=90)
    with pytest.raises(ValueError, match=r"changed since .*run began: 3 images then, 3 in .* now"):
        check_record(run, load(root))
    put(root / "cat" / "1.png", 1)
    check_record(run, load(root))
    put(root / "cat" / "9.png")
    with pytest.raises(ValueError, match=r"3 images then, 4 in .* now.*remove .*data.json"):
        check_record(run, load(root))
    (root / "cat" / "9.png").unlink()
    dataset = load(root)
    for held_out in (None, dataset._replace(fingerprint="another", size=7)):
        check_record(run, dataset, held_out)  # a run that remembers no held-out images
    save_record(run, dataset, dataset)
    check_record(run, dataset)
    with pytest.raises(ValueError, match=r"held out for the validation loss changed.*3 .*, 7 in"):
        check_record(run, dataset, held_out)


def test_what_was_decoded_is_kept_until_a_file_changes(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(decode, "_PART", 2)
    calls = []
    fit = decode.fit
    monkeypatch.setattr(decode, "fit", lambda *given: calls.append(1) or fit(*given))
    for k in range(5):
        put(tmp_path / "root" / f"{k}.png", k)
    for _ in range(2):
        assert content(load(tmp_path / "root"))[0] == [0, 1, 2, 3, 4]
    assert len(calls) == 5
    put(tmp_path / "root" / "3.png", 33)
    os.utime(tmp_path / "root" / "3.png", (0, 0))
    assert content(load(tmp_path / "root"))[0] == [0, 1, 2, 33, 4]
    (kept,) = (tmp_path / "cache" / "ddim_jax" / "images").iterdir()  # the old one is gone
    kept.write_bytes(kept.read_bytes()[:-7])
    assert content(load(tmp_path / "root"))[0] == [0, 1, 2, 33, 4]
    (tmp_path / "root" / "4.png").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"4.png is not a readable image"):
        load(tmp_path / "root")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "root" / "0.png"))  # cannot be written
    put(tmp_path / "root" / "4.png", 44)
    assert content(load(tmp_path / "root"))[0] == [0, 1, 2, 33, 44]
