"""Reading a picture of an object with alpha, its depth, and what is said of files that are none."""

import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from dreamjax.data.reference import read_depth, read_object
from dreamjax.errors import UserError


def picture(width, height, inside):
    """An RGBA picture, orange and half transparent outside of `inside`, blue inside."""
    rgba = np.full((height, width, 4), (255, 128, 0, 0), np.uint8)
    rgba[inside] = (0, 0, 255, 255)
    return rgba


def save(path, array):
    Image.fromarray(array).save(path)
    return path


def test_what_is_transparent_is_white_and_not_what_lies_below(tmp_path):
    rgba = picture(32, 32, np.s_[8:24, 8:24])
    rgba[8:24, 8:12, 3] = 51
    rgb, mask = read_object(save(tmp_path / "a.png", rgba), 32)
    alpha = np.float64(rgba[..., 3]) / 255
    np.testing.assert_allclose(mask, alpha, atol=1e-6)
    over_white = np.float64(rgba[..., :3]) / 255 * alpha[..., None] + 1 - alpha[..., None]
    np.testing.assert_allclose(rgb, over_white, atol=0.5 / 255)
    # Shrunk, colours of transparent pixels do not shine through: red stays between blue and white.
    rgb, mask = read_object(tmp_path / "a.png", 8)
    np.testing.assert_allclose(rgb[..., 0], 1.0 - mask, atol=0.03)
    np.testing.assert_allclose(rgb[..., 2], 1.0, atol=0.03)


def test_a_wide_picture_gets_margins(tmp_path):
    path = save(tmp_path / "wide.png", picture(40, 20, np.s_[:, :]))
    with pytest.raises(UserError, match="opaque everywhere"):
        read_object(path, 20)
    rgba = picture(40, 20, np.s_[:, 4:])
    rgb, mask = read_object(save(path, rgba), 40)
    assert rgb.shape == (40, 40, 3) and mask.shape == (40, 40)
    assert (mask[:10] == 0).all() and (mask[30:] == 0).all() and (rgb[:10] == 1).all()
    np.testing.assert_array_equal(mask[10:30], rgba[..., 3] / np.float32(255))


def test_palettes_and_other_formats_have_alpha_too(tmp_path):
    rgba = picture(16, 16, np.s_[4:12, 4:12])
    Image.fromarray(rgba).save(tmp_path / "a.webp", lossless=True)
    Image.fromarray(rgba).quantize(8).save(tmp_path / "a.png")
    for name in ("a.webp", "a.png"):
        _, mask = read_object(tmp_path / name, 16)
        np.testing.assert_allclose(mask, rgba[..., 3] / 255, atol=0.01)


def huge(path, width, height):
    """The beginning of a PNG of so many pixels, and no more."""

    def chunk(kind, data):
        sum_ = zlib.crc32(kind + data)
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", sum_)

    head = struct.pack(">IIBBBBB", width, height, 8, 6, 0, 0, 0)
    body = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)
    return path


def test_what_is_no_picture_of_an_object_is_refused_in_one_line(tmp_path):
    opaque = np.full((8, 8, 3), 90, np.uint8)
    (tmp_path / "text.png").write_text("hello")
    cut = save(tmp_path / "cut.png", picture(64, 64, np.s_[8:56, 8:56]))
    cut.write_bytes(cut.read_bytes()[:-60])
    files = {
        "there is no such file": tmp_path / "missing.png",
        "it is no file": tmp_path,
        "cannot identify": tmp_path / "text.png",
        "truncated|broken": cut,
        "no alpha channel.*rembg": save(tmp_path / "photo.png", opaque),
        "has no alpha channel": save(tmp_path / "photo.jpg", opaque),
        "transparent everywhere": save(tmp_path / "empty.png", picture(8, 8, np.s_[:0])),
        "opaque everywhere": save(tmp_path / "full.png", picture(8, 8, np.s_[:])),
        "expected at most 8192 x 8192": huge(tmp_path / "huge.png", 30_000, 30_000),
    }
    for says, path in files.items():
        with pytest.raises(UserError, match=says) as error:
            read_object(path, 16)
        assert "\n" not in str(error.value) and str(path) in str(error.value)


def test_an_object_too_small_to_be_seen(tmp_path):
    path = save(tmp_path / "dot.png", picture(512, 512, np.s_[100:102, 100:102]))
    with pytest.raises(UserError, match="transparent everywhere"):
        read_object(path, 16)


def test_depth_is_read_in_sixteen_bits_and_framed_as_the_picture(tmp_path):
    of = save(tmp_path / "a.png", picture(40, 20, np.s_[5:15, 10:30]))
    _, mask = read_object(of, 40)
    given = (30_000 + np.arange(800, dtype=np.uint16)).reshape(20, 40)
    depth = read_depth(save(tmp_path / "depth.png", given), of, mask)
    assert depth.shape == (40, 40)
    inside = depth[mask > 0.5]
    assert (inside.min(), inside.max()) == (0.0, 1.0)
    wanted = np.float64(given[5:15, 10:30]).ravel()
    wanted = (wanted - wanted.min()) / np.ptp(wanted)
    np.testing.assert_allclose(inside, wanted, atol=1e-5)


def test_a_depth_that_says_nothing_or_of_another_picture(tmp_path):
    of = save(tmp_path / "a.png", picture(40, 20, np.s_[5:15, 10:30]))
    _, mask = read_object(of, 40)
    flat = save(tmp_path / "flat.png", np.full((20, 40), 7, np.uint8))
    with pytest.raises(UserError, match="same everywhere on the object"):
        read_depth(flat, of, mask)
    other = save(tmp_path / "other.png", np.zeros((20, 20), np.uint8))
    with pytest.raises(UserError, match="20 x 20 pixels: expected 40 x 20"):
        read_depth(other, of, mask)
    with pytest.raises(UserError, match="there is no such file"):
        read_depth(tmp_path / "none.png", of, mask)
