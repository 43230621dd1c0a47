"""A folder of image files."""

import zlib
from pathlib import Path

import numpy as np

from dreamjax.data.base import Split
from dreamjax.data.images import Images, read_image
from dreamjax.errors import UserError
from dreamjax.settings import Pixels, settings
from dreamjax.workdir import resolved

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


@settings
class Folder:
    """Image files, a class a subfolder if there are any; one in ten is held out by its name."""

    dir: str = ""  # the folder
    size: Pixels = 32  # images are cropped to the middle square and brought to this size
    flip: bool = False  # mirror half of what is trained on

    def load(self, split: Split) -> Images:
        """Return a split; raises UserError for a folder that is not there or has no images."""
        root = resolved(self.dir)
        if not self.dir or not root.is_dir():
            raise UserError(f"data.dir is {self.dir!r}: expected a folder of images")
        every = sorted(path for path in root.rglob("*") if path.suffix.lower() in SUFFIXES)
        places = {path: path.relative_to(root) for path in every}
        files = [path for path in every if _is_held_out(places[path]) == (split == "held_out")]
        if not files:
            raise UserError(f"there are no images ({', '.join(SUFFIXES)}) for {split} under {root}")
        classes = sorted({place.parts[0] for place in places.values() if len(place.parts) > 1})
        labels = np.zeros(len(files), np.int32)
        if classes:
            labels[:] = [classes.index(_class_of(places[path])) for path in files]

        def rows(numbers):
            return np.stack([read_image(files[i], self.size) for i in numbers]), labels[numbers]

        shape = (self.size, self.size, 3)
        return Images("folder", rows, len(files), shape, tuple(classes), flip=self.flip)


def _is_held_out(place: Path) -> bool:
    return zlib.crc32(place.as_posix().encode()) % 10 == 0


def _class_of(place: Path) -> str:
    if len(place.parts) == 1:
        raise UserError(
            f"the image {place} lies beside folders that are classes: move it into one of them"
        )
    return place.parts[0]
