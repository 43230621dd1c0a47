"""A folder of image files."""

import os
import warnings
import zlib
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePath

import numpy as np
from tqdm import tqdm

from dreamjax.data.base import Split
from dreamjax.data.images import Images, read_image
from dreamjax.errors import UserError
from dreamjax.settings import Pixels, settings
from dreamjax.workdir import resolved

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")


@settings
class Folder:
    """Image files, a class a subfolder if there are any; one in ten is held out by its name.

    At least one is held out. Hidden files and what lies beside class folders are left out.
    """

    dir: str = ""  # the folder
    size: Pixels = 32  # images are cropped to the middle square and brought to this size
    flip: bool = False  # mirror half of what is trained on

    def load(self, split: Split) -> Images:
        """Return a split, each of its files read once to see that it can be.

        What is trained on says how many there are and what was left out. Raises UserError for a
        folder that is not there or has fewer than two images, and for one that cannot be read.
        """
        root = resolved(self.dir)
        if not self.dir or not root.is_dir():
            raise UserError(f"data.dir is {self.dir!r}: expected a folder of images")
        places, skipped = find(root)
        left_out = "; skipped " + ", ".join(f"{n} {what}" for what, n in skipped.items())
        if len(places) < 2:
            raise UserError(
                f"there are {len(places) or 'no'} images ({', '.join(SUFFIXES)}) under {root}: "
                f"expected at least 2{left_out * bool(skipped)}"
            )
        held_out = are_held_out(places)
        mine = [p for p, out in zip(places, held_out, strict=True) if out == (split == "held_out")]
        if split == "train":
            count = f"{len(mine)} images to train on, {sum(held_out)} held out"
            print(f"{root}: {count}{left_out * bool(skipped)}", flush=True)
        files = [root / place for place in mine]
        check(files, self.size)
        classes = classes_of(places)
        labels = np.zeros(len(files), np.int32)
        if classes:
            labels[:] = [classes.index(place.parts[0]) for place in mine]

        def rows(numbers):
            return np.stack([read_image(files[i], self.size) for i in numbers]), labels[numbers]

        shape = (self.size, self.size, 3)
        return Images("folder", rows, len(files), shape, classes, flip=self.flip)


def find(root: Path) -> tuple[list[Path], Counter[str]]:
    """The images' places under `root`, sorted, and how many of which kind were left out."""
    places, skipped = [], Counter()
    for path in root.rglob("*"):
        place = path.relative_to(root)
        if path.suffix.lower() not in SUFFIXES:
            continue
        if any(part.startswith(".") or part == "__MACOSX" for part in place.parts):
            skipped["hidden"] += 1
        elif path.is_dir():
            skipped["folders named as images"] += 1
        else:
            places.append(place)
    places.sort(key=PurePath.as_posix)
    if classes_of(places):
        beside = [place for place in places if len(place.parts) == 1]
        if beside:
            skipped["beside the folders of classes"] += len(beside)
        places = [place for place in places if len(place.parts) > 1]
    return places, skipped


def classes_of(places: Sequence[PurePath]) -> tuple[str, ...]:
    """The names of the folders that images lie in."""
    return tuple(sorted({place.parts[0] for place in places if len(place.parts) > 1}))


def are_held_out(places: Sequence[PurePath]) -> list[bool]:
    """Whether each image is kept from training: one in ten, by a checksum of its place.

    The same on every system; of two or more, one at least is, and one is not.
    """
    sums = [zlib.crc32(place.as_posix().encode("utf-8", "surrogateescape")) for place in places]
    held_out = [number % 10 == 0 for number in sums]
    if not any(held_out):
        held_out[sums.index(min(sums))] = True
    if all(held_out):
        held_out[sums.index(max(sums))] = False
    return held_out


def check(files: Sequence[Path], size: int) -> None:
    """Read every file once; raises UserError for the first that cannot be read."""
    with warnings.catch_warnings(), ThreadPoolExecutor(os.cpu_count()) as pool:
        warnings.simplefilter("ignore")  # of Pillow, about what it reads all the same
        read = [pool.submit(read_image, file, size) for file in files]
        try:
            for done in tqdm(read, desc="checking images", leave=False, delay=2.0):
                done.result()
        finally:
            for waiting in read:
                waiting.cancel()
