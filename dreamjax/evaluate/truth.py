"""Ground-truth renders to compare samples and dreams with: same object, same view, fresh draws."""

import dataclasses
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Key

from dreamjax.scene.backgrounds.backdrops import Backdrop, sample_backdrop
from dreamjax.scene.camera import Camera, Cameras, sample_camera
from dreamjax.scene.shading import Light, Shading, sample_shading
from dreamjax.scene.views import view_index
from dreamjax.toybox.draw import Draws, build_shape, draw_palette
from dreamjax.toybox.render import Picture, render

SIZE = 32
CHUNK = 32
_TRIES = 128


class Subject(NamedTuple):
    """N objects: indices into `KINDS` and of the two colours."""

    kind: Int[np.ndarray, " n"]
    colors: Int[np.ndarray, "n 2"]


class Taking(NamedTuple):
    """How pictures are taken; all leaves lead with the pictures' axis."""

    camera: Camera
    shading: Shading
    backdrop: Backdrop


def colored(light: Light) -> Light:
    """The same mixture of albedo and shaded looks, without the textureless ones."""
    kept = 1.0 - light.shaded * light.textureless
    shaded = light.shaded * (1.0 - light.textureless) / kept
    return dataclasses.replace(light, shaded=shaded, textureless=0.0)


def camera_seeing(key: Key[Array, ""], view: Int[Array, ""], cameras: Cameras) -> Camera:
    """A random camera of those that see the object from the view with this index."""
    keys = jax.random.split(key, _TRIES)
    drawn = jax.vmap(lambda k: sample_camera(k, cameras))(keys)
    first = jnp.argmax(view_index(drawn.azimuth, drawn.elevation) == view)
    return jax.tree.map(lambda leaf: leaf[first], drawn)


@partial(jax.jit, static_argnames="draws")
def takings_of_views(key: Key[Array, ""], views: Int[Array, " n"], draws: Draws) -> Taking:
    """Random cameras that see each of the `views`, with lights and backdrops as `draws` says."""
    light = colored(draws.light)

    def one(key, view):
        keys = jax.random.split(key, 3)
        camera = camera_seeing(keys[0], view, draws.cameras)
        shading = sample_shading(keys[1], camera.position, light)
        return Taking(camera, shading, sample_backdrop(keys[2]))

    return jax.vmap(one)(jax.random.split(key, len(views)), views)


@partial(jax.jit, static_argnames="size")
def _pictures(keys, kind, colors, taking, size):
    def one(args):
        key, kind, colors, taking = args
        key_shape, key_palette = jax.random.split(key)
        shape, palette = build_shape(key_shape, kind), draw_palette(key_palette, colors)
        camera, shading, backdrop = taking
        return render(shape, palette, camera, shading, backdrop, size)

    return jax.lax.map(one, (keys, kind, colors, taking))


def pictures(keys: Key[Array, " n"], subject: Subject, taking: Taking, size: int = SIZE) -> Picture:
    """N ground-truth pictures; a key draws an object's proportions and shades."""
    given = (keys, jnp.asarray(subject.kind), jnp.asarray(subject.colors), taking)

    def chunk(start: int) -> Picture:
        # The last chunk is filled up with the last picture: one shape, compiled once.
        rows = np.minimum(np.arange(start, start + CHUNK), len(keys) - 1)
        return jax.device_get(_pictures(*jax.tree.map(lambda leaf: leaf[rows], given), size))

    drawn = [chunk(start) for start in range(0, len(keys), CHUNK)]
    return jax.tree.map(lambda *leaves: np.concatenate(leaves)[: len(keys)], *drawn)
