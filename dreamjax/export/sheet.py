"""Many small pictures on one: the views of a scene, the samples of a prior."""

import io
import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Array, Float, UInt8
from PIL import Image, ImageDraw, ImageFont

from dreamjax.workdir import write_bytes

SHEET_VIEWS: tuple[tuple[str, float, float], ...] = (
    ("front 0°", 0.0, 15.0),
    ("45°", 45.0, 15.0),
    ("side 90°", 90.0, 15.0),
    ("135°", 135.0, 15.0),
    ("back 180°", 180.0, 15.0),
    ("225°", 225.0, 15.0),
    ("side 270°", 270.0, 15.0),
    ("315°", 315.0, 15.0),
    ("above", 0.0, 80.0),
)
"""Label, azimuth and elevation in degrees of the columns of `views.png`."""

_PAPER, _INK = (255, 255, 255), (40, 40, 40)
_GAP, _FONT = 4, 13


def contact_sheet(
    rgb: Float[np.ndarray, "V H W 3"],
    normal: Float[np.ndarray, "V H W 3"],
    depth: Float[np.ndarray, "V H W"],
    opacity: Float[np.ndarray, "V H W"],
    labels: Sequence[str] = tuple(view[0] for view in SHEET_VIEWS),
    tile: int = 128,
) -> UInt8[np.ndarray, "h w 3"]:
    """One picture with a column a view and the rows colour, normals, depth and opacity.

    `rgb` and `opacity` are in [0, 1], `normal` are world vectors shown as 0.5 + 0.5 n, `depth` are
    distances, shown from white at the nearest to dark grey at the farthest opaque pixel of all
    views and black elsewhere. Pictures smaller than `tile` pixels are enlarged to it.
    """
    depth, opacity = np.asarray(depth, np.float64), np.asarray(opacity, np.float64)
    opaque = (opacity > 0.5) & np.isfinite(depth)
    near, far = (depth[opaque].min(), depth[opaque].max()) if opaque.any() else (0.0, 1.0)
    closeness = 1.0 - 0.8 * np.clip((depth - near) / max(far - near, 1e-6), 0.0, 1.0)
    rows = {
        "colour": rgb,
        "normals": 0.5 + 0.5 * np.asarray(normal),
        "depth": _grey(np.where(opaque, closeness, 0.0)),
        "opacity": _grey(opacity),
    }
    cells = [[_enlarge(to_uint8(view), tile) for view in row] for row in rows.values()]
    height, width = cells[0][0].size[::-1]
    left, top = 64, _FONT + 2 * _GAP
    size = (left + len(labels) * (width + _GAP), top + len(rows) * (height + _GAP))
    sheet = Image.new("RGB", size, _PAPER)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(_FONT)
    for i, label in enumerate(labels):
        x = left + i * (width + _GAP) + width // 2
        draw.text((x, top // 2), label, _INK, font, anchor="mm")
    for j, (name, row) in enumerate(zip(rows, cells, strict=True)):
        y = top + j * (height + _GAP)
        draw.text((left - 2 * _GAP, y + height // 2), name, _INK, font, anchor="rm")
        for i, cell in enumerate(row):
            sheet.paste(cell, (left + i * (width + _GAP), y))
    return np.asarray(sheet)


def grid(
    images: Float[np.ndarray, "N H W C"] | UInt8[np.ndarray, "N H W C"],
    columns: int,
    captions: Sequence[str] | None = None,
    tile: int = 96,
) -> UInt8[np.ndarray, "h w 3"]:
    """Pictures (in [0, 1] or uint8, colour or grey) row by row, enlarged to `tile` pixels.

    Captions stand below.
    """
    cells = [_enlarge(to_uint8(image), tile) for image in images]
    width, height = cells[0].size
    font = ImageFont.load_default(_FONT - 2)
    letters = max(int(width / font.getlength("n")), 1)
    texts = [textwrap.wrap(text, letters) for text in captions or [""] * len(cells)]
    line = _FONT
    below = line * max(map(len, texts)) + (_GAP if captions else 0)
    rows = -(-len(cells) // columns)
    size = (columns * (width + _GAP) + _GAP, rows * (height + below + _GAP) + _GAP)
    sheet = Image.new("RGB", size, _PAPER)
    draw = ImageDraw.Draw(sheet)
    for i, (cell, text) in enumerate(zip(cells, texts, strict=True)):
        x = _GAP + i % columns * (width + _GAP)
        y = _GAP + i // columns * (height + below + _GAP)
        sheet.paste(cell, (x, y))
        for j, words in enumerate(text):
            draw.text((x + width // 2, y + height + line * (j + 0.6)), words, _INK, font, "mm")
    return np.asarray(sheet)


def to_uint8(image: Array | np.ndarray) -> UInt8[np.ndarray, "*shape"]:
    """Pictures in [0, 1] as bytes; bytes stay as they are, what is not finite turns black."""
    image = np.asarray(image)
    if image.dtype == np.uint8:
        return image
    image = np.where(np.isfinite(image), image, 0.0)
    return np.round(255.0 * np.clip(image, 0.0, 1.0)).astype(np.uint8)


def encode_png(image: UInt8[np.ndarray, "H W 3"]) -> bytes:
    """A picture as the bytes of a PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(np.asarray(image)).save(buffer, "png", optimize=True)
    return buffer.getvalue()


def write_png(path: str | Path, image: UInt8[np.ndarray, "H W 3"]) -> None:
    """Write a picture as a PNG file, whole or not at all; raises UserError if it cannot."""
    write_bytes(path, encode_png(image))


def _grey(values: Float[np.ndarray, "V H W"]) -> Float[np.ndarray, "V H W 3"]:
    return np.repeat(values[..., None], 3, axis=-1)


def _enlarge(image: UInt8[np.ndarray, "H W channels"], tile: int) -> Image.Image:
    picture = Image.fromarray(np.broadcast_to(image, (*image.shape[:2], 3)))
    factor = tile / min(picture.size)
    size = (round(picture.width * factor), round(picture.height * factor))
    return picture.resize(size, Image.Resampling.BICUBIC) if factor > 1.0 else picture
