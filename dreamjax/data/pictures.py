"""Pictures that are drawn once and lit anew each time: how G-buffers are stored, and what is made
of them.

A stored picture is `[S, S, CHANNELS]` bytes. Recolouring, light and backdrop are drawn inside the
training step, at the stored size; a smaller picture is the mean of its pixels.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, UInt8

from dreamjax.errors import UserError
from dreamjax.scene.backgrounds.backdrops import backdrop_rgb, sample_backdrop
from dreamjax.scene.camera import Camera
from dreamjax.scene.rays import camera_rays
from dreamjax.scene.shading import Light, Shading, lambertian, sample_light

CHANNELS = 11
DEPTH_UNIT = 1.0 / 8192.0  # scene units; two bytes reach 8
SHADE_UNIT = 2.0 / 255.0
ALBEDO, LIT, TEXTURELESS = range(3)
LOOKS = ("albedo", "lit", "textureless")


class GBuffer(NamedTuple):
    """What a camera sees in each pixel of a picture, row 0 at its top.

    `albedo` is the mean of the samples that hit (0 to 1), `normal` their mean made unit length,
    `depth` their mean distance along the ray (0 where nothing is hit). `mask` and `cover` are the
    shares of samples that hit anything and that hit the dominant colour; `shade` is the mean
    brightness of the latter beside the dominant colour's.
    """

    albedo: Float[Array, "*b h w 3"]
    normal: Float[Array, "*b h w 3"]
    mask: Float[Array, "*b h w"]
    depth: Float[Array, "*b h w"]
    cover: Float[Array, "*b h w"]
    shade: Float[Array, "*b h w"]


class Composed(NamedTuple):
    """A lit picture with its backdrop, in [0, 1], and what of it is the object.

    `matter` is the object's rgb times its mask, and the mask.
    """

    rgb: Float[Array, "*b h w 3"]
    matter: Float[Array, "*b h w 4"]


class Recolor(NamedTuple):
    """The dominant colour as it is and as it shall be, rgb in [0, 1]; `on` is 0 or 1."""

    old: Float[Array, "*b 3"]
    new: Float[Array, "*b 3"]
    on: Float[Array, "*b"]


def looks_of(light: Light) -> tuple[float, float, float]:
    """How likely each of `LOOKS` is."""
    bare = light.shaded * light.textureless
    return (1.0 - light.shaded, light.shaded - bare, bare)


def pack(buffers: GBuffer) -> UInt8[np.ndarray, "*b h w 11"]:
    """The bytes that are stored; a depth beyond 8 scene units is stored as 8."""

    def byte(values, unit=1.0 / 255.0, zero=0.0):
        return np.clip(np.rint(np.asarray(values) / unit + zero), 0, 255).astype(np.uint8)

    depth = np.clip(np.rint(np.asarray(buffers.depth) / DEPTH_UNIT), 0, 65535).astype(np.uint16)
    parts = [
        byte(buffers.albedo),
        byte(buffers.normal, 1.0 / 127.0, 128.0),
        *(
            channel[..., None]
            for channel in (
                byte(buffers.mask),
                (depth >> 8).astype(np.uint8),
                (depth & 255).astype(np.uint8),
                byte(buffers.cover),
                byte(buffers.shade, SHADE_UNIT),
            )
        ),
    ]
    return np.concatenate(parts, axis=-1)


def unpack(stored: UInt8[Array, "*b h w 11"]) -> GBuffer:
    """G-buffers from the bytes; normals have unit length again where there is anything."""
    values = jnp.asarray(stored).astype(jnp.float32)
    normal = (values[..., 3:6] - 128.0) / 127.0
    length = jnp.linalg.norm(normal, axis=-1, keepdims=True)
    return GBuffer(
        albedo=values[..., :3] / 255.0,
        normal=normal / jnp.maximum(length, 0.5),
        mask=values[..., 6] / 255.0,
        depth=(values[..., 7] * 256.0 + values[..., 8]) * DEPTH_UNIT,
        cover=values[..., 9] / 255.0,
        shade=values[..., 10] * SHADE_UNIT,
    )


def recolored(buffers: GBuffer, recolor: Recolor) -> Float[Array, "h w 3"]:
    """The albedo with the dominant colour turned into another; lighter faces stay lighter.

    Faces of other colours keep theirs. Where both share a pixel, the dominant one's part is taken
    off as its mean colour times its shade.
    """
    mask, cover = buffers.mask[..., None], buffers.cover[..., None]
    shade = buffers.shade[..., None]
    others = jnp.maximum(buffers.albedo * mask - cover * jnp.clip(shade * recolor.old, 0, 1), 0.0)
    others = jnp.where(cover > mask - 1.0 / 512.0, 0.0, others)
    changed = others + cover * jnp.clip(shade * recolor.new, 0.0, 1.0)
    changed = jnp.clip(changed / jnp.maximum(mask, 1e-3), 0.0, 1.0)
    return jnp.where((recolor.on > 0.5) & (cover > 0.0), changed, buffers.albedo)


def compose(
    stored: UInt8[Array, "h w 11"],
    camera: Camera,
    recolor: Recolor,
    look: Int[Array, ""],
    key: Key[Array, ""],
    light: Light,
    size: int,
) -> Composed:
    """One picture of `size` pixels, lit as `look` says, before a random backdrop.

    Args:
        stored: a stored picture, `size` times a whole number of pixels wide.
        camera: the one it was drawn from.
        recolor: the dominant colour's change.
        look: index into `LOOKS`.
        key: draws light and backdrop.
        light: the light's distribution (static).
        size: pixels of the result (static).
    """
    full = stored.shape[0]
    if full % size:
        raise UserError(f"pictures of {full} pixels cannot be averaged to {size}")
    key_light, key_backdrop = jax.random.split(key)
    buffers = unpack(stored)
    rays = camera_rays(camera, full)
    point = rays.origin + buffers.depth[..., None] * rays.direction
    lit = look != ALBEDO
    shading = Shading(
        sample_light(key_light, camera.position, light),
        jnp.where(lit, light.ambient, 1.0),
        jnp.where(lit, light.diffuse, 0.0),
        (look == TEXTURELESS).astype(jnp.float32),
    )
    rgb = lambertian(recolored(buffers, recolor), buffers.normal, point, shading)
    mask = buffers.mask[..., None]
    matter = jnp.concatenate([rgb * mask, mask], axis=-1)
    rgb = matter[..., :3] + (1.0 - mask) * backdrop_rgb(sample_backdrop(key_backdrop), full)

    def averaged(picture):
        step = full // size
        return jnp.clip(picture, 0.0, 1.0).reshape(size, step, size, step, -1).mean((1, 3))

    return Composed(averaged(rgb), averaged(matter))
