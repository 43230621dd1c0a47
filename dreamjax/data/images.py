"""Labelled images to train on, and the reading of image files.

Images are whole numbers 0..levels-1, [N, H, W, C]; `to_x` brings them to [-1, 1]. Row numbers are
drawn by the caller, so a batch is a function of the step alone and a resumed run sees the same.
"""

import contextlib
import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int, Integer
from PIL import Image, ImageOps

from dreamjax.errors import UserError

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "DIB", "GIF", "TIFF")
MOST_PIXELS = 8192 * 8192
TOO_MANY = ": expected at most 8192 x 8192"


@dataclasses.dataclass(frozen=True)
class Images:
    """A split: `rows(numbers)` gives images [N, H, W, C] and labels [N] of `count` in all.

    `flip` asks whoever trains on them to mirror half of them.
    """

    name: str
    rows: Callable[[Int[np.ndarray, " n"]], tuple[np.ndarray, np.ndarray]]
    count: int
    shape: tuple[int, int, int]
    classes: tuple[str, ...]
    levels: int = 256
    flip: bool = False


def to_x(images: Integer[np.ndarray, "*shape"], levels: int) -> Float[np.ndarray, "*shape"]:
    """Levels 0..levels-1 as float32 in [-1, 1]."""
    return images.astype(np.float32) * np.float32(2.0 / (levels - 1)) - np.float32(1.0)


def in_memory(
    name: str,
    images: np.ndarray,
    labels: np.ndarray,
    classes: tuple[str, ...],
    levels: int = 256,
    flip: bool = False,
) -> Images:
    """A split from arrays; raises UserError for images that are not levels, as for NaN."""
    images = whole(name, images, levels)
    labels = np.asarray(labels, np.int32)
    if len(labels) != len(images):
        raise UserError(f"{name}: {len(images)} images but {len(labels)} labels")

    def rows(numbers):
        return images[numbers], labels[numbers]

    return Images(name, rows, len(images), images.shape[1:], classes, levels, flip)


def whole(name: str, images: np.ndarray, levels: int) -> np.ndarray:
    """Images [N, H, W, C] as uint8; raises UserError unless they are whole, in 0..levels-1."""
    images = np.asarray(images)
    if images.ndim != 4 or len(images) == 0:
        raise UserError(f"{name}: expected images [N, H, W, C]; got shape {list(images.shape)}")
    with np.errstate(invalid="ignore"):
        good = (images >= 0) & (images <= levels - 1) & (images == np.round(images))
    if not good.all():
        place = tuple(int(i) for i in np.argwhere(~good)[0])
        raise UserError(
            f"{name}: images must be whole numbers in 0..{levels - 1}; "
            f"images{list(place)} is {images[place]}"
        )
    return images.astype(np.uint8)


def read_image(path: str | Path, size: int, mode: str = "RGB") -> np.ndarray:
    """The middle square of an image file, uint8 [size, size, 3] (or, as "L", [size, size]).

    It is turned as its EXIF says; 16 bits a channel are scaled to 8; what is transparent lies over
    white; of an animation it is the first frame. Raises UserError where it cannot be read.
    """
    try:
        if not Path(path).is_file():  # opening a pipe would wait for ever
            raise OSError("it is no file" if Path(path).exists() else "there is no such file")
        Image.init()  # with `formats` only what has been loaded is known
        with Image.open(path, formats=FORMATS) as image:
            if image.width * image.height > MOST_PIXELS:
                raise OSError(f"it is {image.width} x {image.height} pixels{TOO_MANY}")
            return squared(_opaque(image).convert(mode), size)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise UserError(f"cannot read the image {path}: it is too large{TOO_MANY}") from error
    except Exception as error:  # Pillow's decoders raise whatever they meet
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise UserError(f"cannot read the image {path}: {reason}") from error


def _opaque(image: Image.Image) -> Image.Image:
    """An image upright, 8 bits a channel, over white; raises OSError for other numbers."""
    with contextlib.suppress(Exception):  # an EXIF that cannot be read turns nothing
        image = ImageOps.exif_transpose(image)
    if image.mode == "F":
        raise OSError("it holds real numbers: expected 8 or 16 bits a channel")
    if image.mode == "I" or image.mode.startswith("I;16"):
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise OSError("it holds 32 bits a channel: expected 8 or 16")
        return Image.fromarray(np.round(values / 257.0).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image


def squared(image: Image.Image, size: int) -> np.ndarray:
    """The middle square of an image at `size` pixels, smoothed where it shrinks."""
    return np.asarray(ImageOps.fit(image, (size, size), Image.Resampling.BICUBIC))
