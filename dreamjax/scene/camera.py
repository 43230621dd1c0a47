"""Cameras on a sphere around the object.

World: right-handed, z up. Azimuth 0 is +x (the object's front) and grows counter-clockwise seen
from above; elevation 0 is the horizon and 90 straight above. All angles are degrees, all lengths
scene units. Everything here is one camera; batch with `jax.vmap`.
"""

import math
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from dreamjax.errors import UserError
from dreamjax.scene.ranges import LengthSpan
from dreamjax.settings import NonNegative, Range, Rising, Share, settings

Elevation = Annotated[float, Range(-90.0, 90.0)]
Focal = Annotated[float, Range(0.05, 1000.0)]


@settings
class Cameras:
    """The cameras that views are drawn from (DreamFusion, section 3.2); ranges are uniform."""

    distance: LengthSpan = (2.8, 3.4)  # from the origin, in scene units
    elevation: Annotated[tuple[Elevation, Elevation], Rising()] = (-10.0, 80.0)  # degrees
    area_uniform: Share = 0.5  # share of cameras whose elevation is uniform in area, not in angle
    focal: Annotated[tuple[Focal, Focal], Rising()] = (1.2, 1.4)  # focal lengths, in image widths
    jitter_position: NonNegative = 0.05  # half-width of a uniform offset of the position
    jitter_look_at: NonNegative = 0.02  # standard deviation of an offset of the looked-at point
    jitter_up: Annotated[float, Range(0.0, 1.0)] = 0.02  # standard deviation of an offset of up
    group: Annotated[int, Range(1, 64)] = 1
    """so many views in a row differ in azimuth alone, evenly spread around the object"""

    def __post_init__(self):
        """Refuse jitter that could put a camera at the origin, or turn it anywhere."""
        nearest = self.distance[0]
        if not math.sqrt(3.0) * self.jitter_position < nearest:
            raise UserError(
                f"jitter_position is {self.jitter_position}: expected below the least distance"
                f" {nearest} / sqrt(3), or a camera could stand at the origin"
            )
        if not self.jitter_look_at < nearest:
            raise UserError(
                f"jitter_look_at is {self.jitter_look_at}: expected below the least distance,"
                f" {nearest}"
            )


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


def direction(
    azimuth: float | Float[Array, "*b"], elevation: float | Float[Array, "*b"]
) -> Float[Array, "*b 3"]:
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


def orbit(
    azimuth: float | Float[Array, ""],
    elevation: float | Float[Array, ""],
    distance: float | Float[Array, ""],
    focal: float | Float[Array, ""],
) -> Camera:
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


def middle_camera(
    cameras: Cameras, azimuth: float | Float[Array, ""], elevation: float | Float[Array, ""]
) -> Camera:
    """`orbit` in the middle of these cameras' distances and focal lengths."""
    distance, focal = (sum(ends) / 2 for ends in (cameras.distance, cameras.focal))
    return orbit(azimuth, elevation, distance, focal)


def sample_camera(
    key: Key[Array, ""], cameras: Cameras, turn: float | Float[Array, ""] = 0.0
) -> Camera:
    """One random camera, `turn` degrees further round than the key alone has it.

    Azimuth and elevation are those it was aimed from, before the jitter.
    """
    keys = jax.random.split(key, 8)
    azimuth = turn + jax.random.uniform(keys[0], (), minval=-180.0, maxval=180.0)
    low, high = cameras.elevation
    by_angle = jax.random.uniform(keys[1], (), minval=low, maxval=high)
    sin_low, sin_high = jnp.sin(jnp.deg2rad(jnp.array([low, high])))
    by_area = jnp.rad2deg(
        jnp.arcsin(jax.random.uniform(keys[1], (), minval=sin_low, maxval=sin_high))
    )
    elevation = jnp.where(jax.random.bernoulli(keys[2], cameras.area_uniform), by_area, by_angle)
    distance = jax.random.uniform(
        keys[3], (), minval=cameras.distance[0], maxval=cameras.distance[1]
    )
    focal = jax.random.uniform(keys[4], (), minval=cameras.focal[0], maxval=cameras.focal[1])
    camera = orbit(azimuth, elevation, distance, focal)
    position = camera.position + cameras.jitter_position * jax.random.uniform(
        keys[5], (3,), minval=-1.0, maxval=1.0
    )
    target = cameras.jitter_look_at * jax.random.normal(keys[6], (3,))
    up = camera.rotation[:, 1] + cameras.jitter_up * jax.random.normal(keys[7], (3,))
    return camera._replace(position=position, rotation=look_at(position, target, up))


def camera_matrix(camera: Camera) -> Float[Array, "*batch 16"]:
    """Camera-to-world matrices [[rotation, position], [0, 0, 0, 1]], row by row."""
    top = jnp.concatenate([camera.rotation, camera.position[..., None]], axis=-1)
    last = jnp.broadcast_to(jnp.array([0.0, 0.0, 0.0, 1.0]), (*camera.focal.shape, 4))
    return jnp.concatenate([top.reshape(*camera.focal.shape, 12), last], axis=-1)


def off_front(azimuth: Float[Array, "*b"]) -> Float[Array, "*b"]:
    """Degrees from azimuth 0 on either side, 0 to 180."""
    return jnp.abs(jnp.mod(jnp.asarray(azimuth) + 180.0, 360.0) - 180.0)
