import numpy as np
import pytest
from PIL import Image

from ddim_jax.images import save_grid, save_rows, to_uint8, to_unit_range


def test_every_uint8_survives_the_round_trip():
    u = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    x = to_unit_range(u)
    assert (x.dtype, x.min(), x.max()) == (np.float32, -1, 1)
    np.testing.assert_array_equal(to_uint8(x), u)


def test_uint8_clips_and_rounds_to_the_nearest():
    x = np.array([-7, -1, 1, 9, 100.6 / 127.5 - 1, 100.4 / 127.5 - 1]).reshape(1, 1, 6, 1)
    assert to_uint8(x).ravel().tolist() == [0, 0, 255, 255, 101, 100]


def test_values_that_are_not_finite_are_refused():
    with pytest.raises(ValueError, match="1 of 2 values of the images are not finite"):
        to_uint8(np.array([np.nan, 0]).reshape(1, 1, 2, 1))


@pytest.mark.parametrize(("count", "grid"), [(1, (1, 1)), (4, (2, 2)), (5, (2, 3)), (64, (8, 8))])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_grid_shows_each_image_in_reading_order(tmp_path, count, grid, channels):
    images = np.arange(count, dtype=np.uint8)[:, None, None, None] * np.ones(
        (1, 8, 8, channels), np.uint8
    )
    save_grid(images, tmp_path / "new" / "grid.png")
    picture = np.asarray(Image.open(tmp_path / "new" / "grid.png")).reshape(
        -1, (48 + 2) * grid[1] + 2, channels
    )
    assert picture.shape == ((48 + 2) * grid[0] + 2, (48 + 2) * grid[1] + 2, channels)
    for i in range(count):
        top, left = 2 + 50 * (i // grid[1]), 2 + 50 * (i % grid[1])
        assert np.all(picture[top : top + 48, left : left + 48] == i)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_picture_of_rows_holds_the_pixels_magnified_by_a_whole_factor(channels, tmp_path):
    rows = np.random.default_rng(0).integers(0, 256, (2, 5, 8, 8, channels), np.uint8)
    save_rows(rows, tmp_path / "x.png", ["one", r"$\hat{x}_0$"], list("abcde"))
    with Image.open(tmp_path / "x.png") as image:
        pixels = np.asarray(image.convert("RGB"))[-102:, -252:]
    assert np.all(pixels[[0, 1, 50, 51, 100, 101]] == 255)
    tiles = pixels[2:, 2:].reshape(2, 50, 5, 50, 3)[:, :48, :, :48].transpose(0, 2, 1, 3, 4)
    np.testing.assert_array_equal(
        tiles, np.broadcast_to(rows.repeat(6, 2).repeat(6, 3), tiles.shape)
    )
