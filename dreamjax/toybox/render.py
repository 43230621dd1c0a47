"""Sphere tracing of toybox objects, with exact ground truth beside the picture."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from dreamjax.scene.backgrounds.backdrops import Backdrop, backdrop_rgb
from dreamjax.scene.camera import Camera
from dreamjax.scene.rays import camera_rays, intersect_sphere
from dreamjax.scene.shading import Shading, lambertian
from dreamjax.toybox.primitives import Shape, signed_distance

BOUND = 1.0
MARCH_STEPS = 36
SURFACE = 0.03


class Picture(NamedTuple):
    """What a camera sees of an object; depth is along the ray, 0 where nothing is hit."""

    rgb: Float[Array, "*b h w 3"]
    albedo: Float[Array, "*b h w 3"]
    normal: Float[Array, "*b h w 3"]
    depth: Float[Array, "*b h w"]
    mask: Float[Array, "*b h w"]


def _replaced(point, axis: int, value):
    return tuple(value if k == axis else p for k, p in enumerate(point))


def render(
    shape: Shape,
    palette: Float[Array, "parts 3"],
    camera: Camera,
    shading: Shading,
    backdrop: Backdrop,
    size: int,
    supersample: int = 2,
) -> Picture:
    """Trace one object; a pixel is the mean of `supersample`^2 rays, its normal unit again."""
    fine = size * supersample
    rays = camera_rays(camera, fine)
    origin, direction = rays.origin.reshape(-1, 3), rays.direction.reshape(-1, 3)
    near, far, meets = intersect_sphere(origin, direction, BOUND)
    ox, oy, oz = origin.T
    dx, dy, dz = direction.T

    def at(dist):
        return ox + dist * dx, oy + dist * dy, oz + dist * dz

    def march(_, dist):
        step, _ = signed_distance(shape, at(dist))
        return jnp.minimum(dist + step, far)

    dist = jax.lax.fori_loop(0, MARCH_STEPS, march, near)
    point = at(dist)
    distance, part = signed_distance(shape, point)
    gradient = [
        jax.jvp(lambda v, k=k: signed_distance(shape, _replaced(point, k, v))[0], (p,), (one,))[1]
        for k, (p, one) in enumerate((p, jnp.ones_like(p)) for p in point)
    ]
    normal = jnp.stack(gradient, axis=-1)
    normal = normal / jnp.maximum(jnp.linalg.norm(normal, axis=-1, keepdims=True), 1e-6)
    # A ray that ends near the surface hits it only if it still heads for it: one that grazes past
    # is as near, but runs along it.
    towards = jnp.maximum(-jnp.sum(normal * direction, axis=-1), 0.0)
    hit = meets & (distance < SURFACE * towards) & (dist < far)
    albedo = palette[part]
    shaded = lambertian(albedo, normal, jnp.stack(point, axis=-1), shading)

    mask = hit.astype(jnp.float32).reshape(fine, fine)

    def pooled(values):
        masked = values.reshape(fine, fine, -1) * mask[..., None]
        return masked.reshape(size, supersample, size, supersample, -1).mean((1, 3))

    coverage = pooled(jnp.ones(fine * fine))[..., 0]
    share = jnp.maximum(coverage, 1e-6)[..., None]
    behind = backdrop_rgb(backdrop, size)
    normal = pooled(normal)
    return Picture(
        rgb=jnp.clip(pooled(shaded) + (1.0 - coverage[..., None]) * behind, 0.0, 1.0),
        albedo=pooled(albedo) / share,
        normal=normal / jnp.maximum(jnp.linalg.norm(normal, axis=-1, keepdims=True), 1e-6),
        depth=(pooled(dist) / share)[..., 0],
        mask=coverage,
    )
