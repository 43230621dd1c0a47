"""Labelled images to train on, by name: the digits, the toybox, a folder, any TFDS image set.

Images are whole numbers 0..levels-1, [N, H, W, C]; `to_x` brings them to [-1, 1]. Row numbers are
drawn by the caller, so a batch is a function of the step alone and a resumed run sees the same.
"""

import dataclasses
import logging
import warnings
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int
from PIL import Image, ImageOps, UnidentifiedImageError

from dreamjax.config import nearest
from dreamjax.errors import UserError

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
TOYBOX_COUNTS = (131072, 2048, 2048)
SPLITS = ("train", "held_out")


@dataclasses.dataclass(frozen=True)
class ImagesConfig:
    """Which images: `name` is "digits", "toybox", "folder" or that of a TFDS image set.

    `dir` is the folder, or where data sets are kept ("" for the usual place). With `size` images
    are cropped to the middle square and resized, with 0 they stay. TFDS sets are fetched only with
    `download`, and their splits are `splits`, to train on and held out. `flip` mirrors half of what
    is trained on.
    """

    name: str = "digits"
    dir: str = ""
    size: int = 0
    splits: tuple[str, str] = ("train", "test")
    download: bool = False
    flip: bool = False


@dataclasses.dataclass(frozen=True)
class Images:
    """A split: `rows(numbers)` gives images [N, H, W, C] and labels [N] of `count` in all."""

    rows: Callable[[Int[np.ndarray, " n"]], tuple[np.ndarray, np.ndarray]]
    count: int
    shape: tuple[int, int, int]
    classes: tuple[str, ...]
    levels: int = 256


def load(c: ImagesConfig, split: str) -> Images:
    """A split of `SPLITS`; raises UserError for a data set that is not there."""
    if c.size < 0:
        raise UserError(f"data.size must be 0 (as it is) or pixels; got {c.size}")
    sets = {"digits": _digits, "toybox": _toybox, "folder": _folder}
    return sets.get(c.name, _tfds)(c, split)


def to_x(images: np.ndarray, levels: int) -> Float[np.ndarray, "n h w c"]:
    """Levels 0..levels-1 as float32 in [-1, 1]."""
    return images.astype(np.float32) * np.float32(2.0 / (levels - 1)) - np.float32(1.0)


def in_memory(
    name: str, images: np.ndarray, labels: np.ndarray, classes: tuple[str, ...], levels: int
) -> Images:
    """A split from arrays; raises UserError for images that are not levels, as for NaN."""
    images = whole(name, images, levels)
    labels = np.asarray(labels, np.int32)
    if len(labels) != len(images):
        raise UserError(f"{name}: {len(images)} images but {len(labels)} labels")
    return Images(
        lambda rows: (images[rows], labels[rows]), len(images), images.shape[1:], classes, levels
    )


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


def ahead(fetch: Callable[[int], object], stride: int, depth: int = 2) -> Callable[[int], object]:
    """`fetch(step)`, with the next `depth` steps, each `stride` further, fetched meanwhile."""
    pool = ThreadPoolExecutor(1)
    pending = {}

    def get(step: int):
        for number in range(step, step + stride * (depth + 1), stride):
            if number not in pending:
                pending[number] = pool.submit(fetch, number)
        return pending.pop(step).result()

    return get


def _digits(c: ImagesConfig, split: str) -> Images:
    """The 1797 handwritten digits of scikit-learn, 8 x 8 in 17 levels; each fifth is held out."""
    from sklearn.datasets import load_digits  # slow to import

    if c.size not in (0, 8):
        raise UserError(f"data.size is {c.size}: the digits are of 8 x 8 pixels")
    digits = load_digits()
    held_out = np.arange(len(digits.target)) % 5 == 4
    kept = held_out if split == "held_out" else ~held_out
    images = digits.images[kept][..., None]
    return in_memory("digits", images, digits.target[kept], tuple("0123456789"), 17)


def _toybox(c: ImagesConfig, split: str) -> Images:
    """Pictures of the toybox, labelled with their kind; drawn first if they are not there."""
    from dreamjax.toybox.dataset import load as load_toybox
    from dreamjax.toybox.kinds import KINDS

    folder = Path(c.dir or "~/.cache/dreamjax").expanduser()
    data = load_toybox(str(folder), split, c.size or 32, TOYBOX_COUNTS)
    return in_memory("toybox", data.rgb, data.kind, tuple(kind.name for kind in KINDS), 256)


def _folder(c: ImagesConfig, split: str) -> Images:
    """Image files, a class a subfolder if there are any; one in ten is held out by its name."""
    root = Path(c.dir).expanduser()
    if not c.dir or not root.is_dir():
        raise UserError(f"data.dir is {c.dir!r}: expected a folder of images")
    if c.size < 1:
        raise UserError("a folder of images needs data.size, the pixels to bring them to")
    files = sorted(path for path in root.rglob("*") if path.suffix.lower() in SUFFIXES)
    names = {path: str(path.relative_to(root)) for path in files}
    held_out = {path: zlib.crc32(names[path].encode()) % 10 == 0 for path in files}
    files = [path for path in files if held_out[path] == (split == "held_out")]
    if not files:
        raise UserError(f"there are no images ({', '.join(SUFFIXES)}) for {split} under {root}")
    folders = sorted({Path(name).parts[0] for name in names.values() if "/" in name})
    labels = np.array(
        [folders.index(Path(names[path]).parts[0]) if folders else 0 for path in files], np.int32
    )

    def rows(numbers):
        return np.stack([read_image(files[i], c.size) for i in numbers]), labels[numbers]

    return Images(rows, len(files), (c.size, c.size, 3), tuple(folders))


def read_image(path: str | Path, size: int, mode: str = "RGB") -> np.ndarray:
    """The middle square of an image file, uint8 [size, size, 3] (or, as "L", [size, size]).

    Raises UserError where it cannot be read.
    """
    try:
        with Image.open(path) as image:
            return _squared(image.convert(mode), size)
    except (OSError, UnidentifiedImageError) as error:
        raise UserError(f"cannot read the image {path}: {error}") from error


def _squared(image: Image.Image, size: int) -> np.ndarray:
    """The middle square at `size` pixels, smoothed where it shrinks."""
    return np.asarray(ImageOps.fit(image, (size, size), Image.Resampling.BICUBIC))


def _tfds(c: ImagesConfig, split: str) -> Images:
    """An image set of `tensorflow_datasets`, read without TensorFlow."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import tensorflow_datasets as tfds
    logging.getLogger("absl").setLevel(logging.ERROR)
    folder = str(Path(c.dir).expanduser()) if c.dir else None
    try:
        builder = tfds.builder(c.name, data_dir=folder, file_format="array_record")
    except (tfds.core.DatasetNotFoundError, ValueError) as error:
        known = ["digits", "toybox", "folder", *tfds.list_builders(with_community_datasets=False)]
        raise UserError(f"there is no data set {c.name!r}{nearest(c.name, known)}") from error
    if c.download:
        builder.download_and_prepare()
    if not builder.is_prepared():
        raise UserError(
            f"the data set {c.name} is not under {builder.data_dir}: "
            "--config.data.download=true fetches it"
        )
    name = c.splits[SPLITS.index(split)]
    if name not in builder.info.splits:
        raise UserError(
            f"{c.name} has no split {name!r} (data.splits); it has {', '.join(builder.info.splits)}"
        )
    features = builder.info.features
    if "image" not in features:
        raise UserError(f"the data set {c.name} has no images; it has {', '.join(features)}")
    source = builder.as_data_source(split=name)
    labelled = "label" in features and isinstance(features["label"], tfds.features.ClassLabel)
    height, width, channels = features["image"].shape
    if not c.size and (height is None or height != width):
        raise UserError(f"images of {c.name} are {height} x {width}: set data.size to square them")
    size = c.size or height

    def rows(numbers):
        examples = [source[int(i)] for i in numbers]
        images = [e["image"] for e in examples]
        if (height, width) != (size, size):
            images = [_squared(Image.fromarray(image.squeeze()), size) for image in images]
            images = [image.reshape(size, size, channels) for image in images]
        labels = [e["label"] if labelled else 0 for e in examples]
        return whole(c.name, np.stack(images), 256), np.array(labels, np.int32)

    classes = tuple(features["label"].names) if labelled else ()
    return Images(rows, len(source), (size, size, channels), classes)
