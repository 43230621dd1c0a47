"""The picture of an object that a dream starts from: its colours, where it is, how far away.

The alpha channel of the picture says where the object is. A picture that is not square gets empty
margins, so that nothing of it is cut off.
"""

import contextlib
from pathlib import Path

import numpy as np
from jaxtyping import Float
from PIL import Image, ImageOps

from dreamjax.data.images import FORMATS, read_image
from dreamjax.errors import UserError

HOW = 'pip install "rembg[cpu,cli]" and rembg i PHOTO.jpg OBJECT.png make such a file'


def read_object(
    path: str | Path, size: int
) -> tuple[Float[np.ndarray, "size size 3"], Float[np.ndarray, "size size"]]:
    """A picture of an object: rgb in [0, 1] over white, and its mask, 1 where the object is.

    Raises UserError for a file that cannot be read, for one without alpha, and where alpha shows
    nothing or all of the picture.
    """
    image = _open(path)
    if not image.has_transparency_data:
        raise UserError(f"{path} has no alpha channel, which says where the object is: {HOW}")
    image = image.convert("RGBA")
    alpha = np.asarray(image.getchannel("A"))
    if alpha.min() > 127:
        raise UserError(f"{path} is opaque everywhere: expected alpha 0 around the object. {HOW}")
    rgba = np.asarray(_square(image, size), np.float32) / 255.0
    mask = rgba[..., 3]
    if alpha.max() < 128 or mask.max() < 0.5:
        raise UserError(f"{path} is transparent everywhere: expected alpha 255 on the object")
    return rgba[..., :3] * mask[..., None] + (1.0 - mask[..., None]), mask


def read_depth(
    path: str | Path, of: str | Path, mask: Float[np.ndarray, "size size"]
) -> Float[np.ndarray, "size size"]:
    """The depth, brighter being farther, of the picture `of` with this mask, in no unit.

    Raises UserError for a file that cannot be read, of another size than the picture, and where the
    object is as far away everywhere.
    """
    image, picture = _open(path), _open(of)
    if image.size != picture.size:
        found, right = (f"{i.width} x {i.height}" for i in (image, picture))
        raise UserError(f"the depth {path} is {found} pixels: expected {right}, as {of}")
    whole = image if image.mode.startswith("I") else image.convert("L")  # 16 bits stay
    depth = np.asarray(_square(Image.fromarray(np.asarray(whole, np.float32)), len(mask)))
    inside = depth[mask > 0.5]
    if np.ptp(inside) == 0.0:
        raise UserError(f"the depth {path} is the same everywhere on the object")
    return (depth - inside.min()) / np.ptp(inside)


def _open(path: str | Path) -> Image.Image:
    """A picture, upright; raises UserError as `read_image` does."""
    read_image(path, 1)  # says what is wrong with a file that is no picture
    with Image.open(path, formats=FORMATS) as image:
        image.load()
        with contextlib.suppress(Exception):  # an EXIF that cannot be read turns nothing
            return ImageOps.exif_transpose(image)
        return image


def _square(image: Image.Image, size: int) -> Image.Image:
    """A picture at `size` pixels a side with empty margins, smoothed where it shrinks."""
    return ImageOps.pad(image, (size, size), Image.Resampling.BICUBIC)
