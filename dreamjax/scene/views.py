"""Views: what an objective and a prior know of the pictures they are shown, and views' names.

Azimuths are counted from the object's front, counter-clockwise seen from above; degrees.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from dreamjax.scene.camera import Camera, off_front

VIEW_WORDS = ("front", "side", "back", "overhead")
OVERHEAD_ELEVATION = 60.0
HALF_VIEW = 45.0

# What views are called, in rows of (greatest elevation in degrees, names): names are evenly spaced
# from the front round to the back, the same on either side.
ViewNames = tuple[tuple[float, tuple[str, ...]], ...]


class Views(NamedTuple):
    """V views; every leaf has a leading axis V.

    `camera.azimuth` is counted from the object's front. `index` is a view's number in the global
    batch: its randomness is folded from it, so it counts over all devices. `lit` is 1 where a view
    shows light and shadow, 0 where it shows albedo alone. `textureless` is 1 where it shows shape
    alone, else 0.
    """

    camera: Camera
    index: Int[Array, " v"]
    lit: Float[Array, " v"]
    textureless: Float[Array, " v"]


def view_index(azimuth: Float[Array, "*b"], elevation: Float[Array, "*b"]) -> Int[Array, "*b"]:
    """Index into `VIEW_WORDS`: overhead above 60 degrees, front or back within 45, else side."""
    off = off_front(azimuth)
    around = jnp.where(off <= HALF_VIEW, 0, jnp.where(off >= 180.0 - HALF_VIEW, 2, 1))
    return jnp.where(jnp.asarray(elevation) > OVERHEAD_ELEVATION, 3, around).astype(jnp.int32)


def all_names(names: ViewNames) -> list[str]:
    """The names in one list, row by row; `name_index` counts in it."""
    return [name for _, row in names for name in row]


def name_index(
    names: ViewNames, azimuth: Float[Array, "*b"], elevation: Float[Array, "*b"]
) -> Int[Array, "*b"]:
    """Index into `all_names(names)`: the nearest name in the lowest row that reaches so high."""
    row, place = name_place(names, azimuth, elevation)
    first = np.cumsum([0, *(len(row) for _, row in names)])[:-1]
    return jnp.asarray(first)[row] + jnp.round(place).astype(jnp.int32)


def name_place(
    names: ViewNames, azimuth: Float[Array, "*b"], elevation: Float[Array, "*b"]
) -> tuple[Int[Array, "*b"], Float[Array, "*b"]]:
    """Row of a view, and where in the row: 0 at its first name, 1.5 between second and third."""
    tops = jnp.array([top for top, _ in names[:-1]])
    row = jnp.searchsorted(tops, jnp.asarray(elevation, jnp.float32)).astype(jnp.int32)
    gaps = jnp.array([len(row) - 1 for _, row in names])
    return row, off_front(azimuth) / 180.0 * gaps[row]
