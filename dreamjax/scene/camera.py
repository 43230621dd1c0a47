"""Cameras on a sphere around the object.

World: right-handed, z up. Azimuth 0 is +x (the object's front) and grows counter-clockwise seen
from above; elevation 0 is the horizon and 90 straight above. All angles are degrees, all lengths
scene units. Everything here is one camera; batch with `jax.vmap`.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

VIEW_WORDS = ("front", "side", "back", "overhead")
OVERHEAD_ELEVATION = 60.0
HALF_VIEW = 45.0

# What views are called, in rows of (greatest elevation in degrees, names): names are evenly spaced
# from the front round to the back, the same on either side.
ViewNames = tuple[tuple[float, tuple[str, ...]], ...]


@dataclasses.dataclass(frozen=True)
class CameraConfig:
    """The distribution that training cameras are drawn from (DreamFusion, section 3.2).

    Ranges are uniform. `area_uniform` is the share of cameras whose elevation is uniform in area on
    the sphere rather than in angle. The jitters are the half-width of a uniform offset of the
    position and the standard deviations of normal offsets of the looked-at point and of up.
    """

    distance: tuple[float, float] = (2.8, 3.4)
    elevation: tuple[float, float] = (-10.0, 80.0)
    area_uniform: float = 0.5
    focal: tuple[float, float] = (1.2, 1.4)
    jitter_position: float = 0.05
    jitter_look_at: float = 0.02
    jitter_up: float = 0.02


class Camera(NamedTuple):
    """A pinhole camera with its centre of projection in the middle of a square image.

    `rotation` maps camera to world; its columns are the camera's right, up and backward. `focal` is
    in image widths. `azimuth` and `elevation` are those it was aimed from, in degrees.
    """

    position: Float[Array, "*batch 3"]
    rotation: Float[Array, "*batch 3 3"]
    focal: Float[Array, "*batch"]
    azimuth: Float[Array, "*batch"]
    elevation: Float[Array, "*batch"]


def direction(azimuth: Float[Array, "*b"], elevation: Float[Array, "*b"]) -> Float[Array, "*b 3"]:
    """Unit vectors from the origin towards azimuth and elevation in degrees."""
    azimuth, elevation = jnp.deg2rad(azimuth), jnp.deg2rad(elevation)
    horizontal = jnp.cos(elevation)
    return jnp.stack(
        [horizontal * jnp.cos(azimuth), horizontal * jnp.sin(azimuth), jnp.sin(elevation)], axis=-1
    )


def look_at(
    position: Float[Array, "3"], target: Float[Array, "3"], up: Float[Array, "3"]
) -> Float[Array, "3 3"]:
    """Camera-to-world rotation (columns right, up, backward) of a camera that looks at `target`.

    `up` must not be parallel to the line of sight.
    """
    backward = position - target
    backward = backward / jnp.linalg.norm(backward)
    right = jnp.cross(up, backward)
    right = right / jnp.linalg.norm(right)
    return jnp.stack([right, jnp.cross(backward, right), backward], axis=-1)


def orbit(azimuth: float, elevation: float, distance: float, focal: float) -> Camera:
    """A camera that looks at the origin from the given angles (degrees) and distance.

    Straight above it keeps the azimuth: the top of its picture points away from where it stands.
    """
    azimuth, elevation, distance, focal = (
        jnp.asarray(v, jnp.float32) for v in (azimuth, elevation, distance, focal)
    )
    backward = direction(azimuth, elevation)
    right = direction(azimuth + 90.0, jnp.zeros_like(elevation))
    rotation = jnp.stack([right, jnp.cross(backward, right), backward], axis=-1)
    return Camera(distance * backward, rotation, focal, azimuth, elevation)


def middle_camera(config: CameraConfig, azimuth: float, elevation: float) -> Camera:
    """`orbit` in the middle of the distances and focal lengths that training draws from."""
    distance, focal = (sum(ends) / 2 for ends in (config.distance, config.focal))
    return orbit(azimuth, elevation, distance, focal)


def sample_camera(key: Key[Array, ""], config: CameraConfig) -> Camera:
    """One random camera; azimuth and elevation are those it was aimed from, before the jitter."""
    keys = jax.random.split(key, 8)
    azimuth = jax.random.uniform(keys[0], (), minval=-180.0, maxval=180.0)
    low, high = config.elevation
    by_angle = jax.random.uniform(keys[1], (), minval=low, maxval=high)
    sin_low, sin_high = jnp.sin(jnp.deg2rad(jnp.array([low, high])))
    by_area = jnp.rad2deg(
        jnp.arcsin(jax.random.uniform(keys[1], (), minval=sin_low, maxval=sin_high))
    )
    elevation = jnp.where(jax.random.bernoulli(keys[2], config.area_uniform), by_area, by_angle)
    distance = jax.random.uniform(keys[3], (), minval=config.distance[0], maxval=config.distance[1])
    focal = jax.random.uniform(keys[4], (), minval=config.focal[0], maxval=config.focal[1])
    camera = orbit(azimuth, elevation, distance, focal)
    position = camera.position + config.jitter_position * jax.random.uniform(
        keys[5], (3,), minval=-1.0, maxval=1.0
    )
    target = config.jitter_look_at * jax.random.normal(keys[6], (3,))
    up = camera.rotation[:, 1] + config.jitter_up * jax.random.normal(keys[7], (3,))
    return camera._replace(position=position, rotation=look_at(position, target, up))


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


def off_front(azimuth: Float[Array, "*b"]) -> Float[Array, "*b"]:
    """Degrees from azimuth 0 on either side, 0 to 180."""
    return jnp.abs(jnp.mod(jnp.asarray(azimuth) + 180.0, 360.0) - 180.0)
