"""The contact sheet and the grid, pixel by pixel where it matters."""

import numpy as np
from PIL import Image

from dreamjax.export.sheet import SHEET_VIEWS, contact_sheet, grid, to_uint8, write_png


def views(count=9, size=32):
    rgb = np.broadcast_to(np.linspace(0, 1, count)[:, None, None, None], (count, size, size, 3))
    normal = np.zeros((count, size, size, 3))
    normal[..., 2] = 1.0
    opacity = np.ones((count, size, size))
    opacity[:, : size // 2] = 0.0
    depth = np.broadcast_to(np.linspace(2, 4, count)[:, None, None], opacity.shape).copy()
    depth[opacity == 0] = 99.0
    return rgb, normal, depth, opacity


def tile_at(sheet, row, column, tile):
    y = 21 + row * (tile + 4)
    x = 64 + column * (tile + 4)
    return sheet[y : y + tile, x : x + tile]


def test_rows_and_columns_show_what_they_should():
    sheet = contact_sheet(*views(), tile=96)
    assert sheet.dtype == np.uint8
    assert sheet.shape == (21 + 4 * 100, 64 + 9 * 100, 3)

    def middle(row, column):
        return tile_at(sheet, row, column, 96)[72, 48]

    np.testing.assert_array_equal(middle(0, 4), [128, 128, 128])
    np.testing.assert_array_equal(middle(1, 0), [128, 128, 255])
    depths = [int(middle(2, column)[0]) for column in range(9)]
    assert depths[0] == 255 and depths[-1] == 51 and depths == sorted(depths, reverse=True)
    np.testing.assert_array_equal(tile_at(sheet, 2, 0, 96)[10, 48], [0, 0, 0])
    np.testing.assert_array_equal(middle(3, 5), [255, 255, 255])
    assert tile_at(sheet, 3, 5, 96)[10, 48].max() == 0


def test_labels_are_drawn():
    sheet = contact_sheet(*views(), tile=96)
    assert (sheet[:21, 64:] < 128).any() and (sheet[21:, :60] < 128).any()


def test_an_empty_scene_and_large_views_work():
    rgb, normal, depth, opacity = views(2, 160)
    sheet = contact_sheet(rgb, normal, depth, 0 * opacity, ("a", "b"), tile=96)
    assert sheet.shape[1] == 64 + 2 * 164
    assert tile_at(sheet, 2, 1, 160).max() == 0


def test_sheet_views_go_round_and_above():
    azimuths = [azimuth for _, azimuth, elevation in SHEET_VIEWS if elevation < 60]
    assert azimuths == [45.0 * i for i in range(8)]
    assert SHEET_VIEWS[-1][2] > 60


def test_grid_places_pictures_and_captions(tmp_path):
    images = np.linspace(0, 1, 5)[:, None, None, None] * np.ones((5, 32, 32, 3))
    plain = grid(images, columns=3, tile=96)
    assert plain.shape == (2 * 100 + 4, 3 * 100 + 4, 3)
    np.testing.assert_array_equal(plain[4 + 100 + 48, 4 + 100 + 48], [255, 255, 255])
    np.testing.assert_array_equal(plain[48, 100 + 48], [64, 64, 64])
    with_text = grid(images, 3, ["a rather long caption that needs lines"] * 5)
    assert with_text.shape[0] > plain.shape[0] + 20
    assert (with_text[102:120, 4:100] < 128).any()
    write_png(tmp_path / "grid.png", with_text)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "grid.png")), with_text)


def test_to_uint8_rounds_clips_and_keeps_bytes():
    values = np.array([-1.0, 0.5, 2.0, np.nan])
    np.testing.assert_array_equal(to_uint8(values), [0, 128, 255, 0])
    np.testing.assert_array_equal(to_uint8(np.array([7], np.uint8)), [7])
