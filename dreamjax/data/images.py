"""Labelled images to train on, and the reading of image files.

Images are whole numbers 0..levels-1, [N, H, W, C]; `to_x` brings them to [-1, 1]. Row numbers are
drawn by the caller, so a batch is a function of the step alone and a resumed run sees the same.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int, Integer
from PIL import Image, ImageOps, UnidentifiedImageError

from dreamjax.errors import UserError


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

    Raises UserError where it cannot be read.
    """
    try:
        with Image.open(path) as image:
            return squared(image.convert(mode), size)
    except (OSError, UnidentifiedImageError) as error:
        raise UserError(f"cannot read the image {path}: {error}") from error


def squared(image: Image.Image, size: int) -> np.ndarray:
    """The middle square of an image at `size` pixels, smoothed where it shrinks."""
    return np.asarray(ImageOps.fit(image, (size, size), Image.Resampling.BICUBIC))
