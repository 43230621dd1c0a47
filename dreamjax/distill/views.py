"""What an objective is told about the views it is shown."""

from typing import NamedTuple

from jaxtyping import Array, Float, Int

from dreamjax.scene.camera import Camera


class Views(NamedTuple):
    """V views: their cameras and numbers in the global batch.

    All leaves have a leading axis V. `index` is what a view's randomness is folded from, so it
    counts over all devices. `textureless` is 1 where a view shows shape alone, else 0.
    """

    camera: Camera
    index: Int[Array, " v"]
    textureless: Float[Array, " v"]
