"""Rays through the pixels of a camera, and where they meet the scene's sphere."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from dreamjax.scene.camera import Camera


class Rays(NamedTuple):
    """Rays in world space: `direction` has unit length, `radius` is the cone's at distance 1."""

    origin: Float[Array, "*batch 3"]
    direction: Float[Array, "*batch 3"]
    radius: Float[Array, "*batch"]


def camera_rays(camera: Camera, size: int) -> Rays:
    """Rays through the pixel centres of a `size` x `size` picture, row 0 at its top.

    The cone's radius is the distance between neighbours times 2 / sqrt(12), which gives it the
    pixel's variance (mip-NeRF, section 3.1).
    """
    offset = (jnp.arange(size, dtype=jnp.float32) + 0.5) / size - 0.5
    x, y = jnp.meshgrid(offset, -offset)
    local = jnp.stack([x, y, jnp.full_like(x, -1.0) * camera.focal], axis=-1)
    length = jnp.linalg.norm(local, axis=-1, keepdims=True)
    direction = jnp.einsum(
        "ij,hwj->hwi", camera.rotation, local / length, precision=jax.lax.Precision.HIGHEST
    )
    radius = (2.0 / jnp.sqrt(12.0)) / size / length[..., 0]
    return Rays(jnp.broadcast_to(camera.position, direction.shape), direction, radius)


def intersect_sphere(
    origin: Float[Array, "*b 3"], direction: Float[Array, "*b 3"], radius: float
) -> tuple[Float[Array, "*b"], Float[Array, "*b"], Bool[Array, "*b"]]:
    """Distances at which rays enter and leave the sphere around the origin, and whether they do.

    A ray that starts inside enters at 0; one that misses has near = far = the distance of its
    closest approach (not below 0) and `hit` false.
    """
    closest = -jnp.sum(origin * direction, axis=-1)
    off_axis = origin + closest[..., None] * direction
    half_squared = radius**2 - jnp.sum(off_axis**2, axis=-1)
    half = jnp.sqrt(jnp.where(half_squared > 0.0, half_squared, 1.0))
    half = jnp.where(half_squared > 0.0, half, 0.0)
    near, far = jnp.maximum(closest - half, 0.0), jnp.maximum(closest + half, 0.0)
    return near, far, (half_squared > 0.0) & (far > 0.0)
