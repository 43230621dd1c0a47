"""What is scored of a finished run, whoever made it: pictures of its field, and its mesh."""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from dreamjax.export.gltf import Mesh
from dreamjax.scene.camera import Camera, Cameras, middle_camera
from dreamjax.scene.render import Rendering
from dreamjax.scene.shading import Shading, headlight

# (cameras [V], their shadings [V], rgb behind the object, H = W in pixels) -> pictures [V, ...].
RenderFn = Callable[[Camera, Shading, Float[Array, "#size #size 3"], int], Rendering]


@dataclasses.dataclass(frozen=True, eq=False)
class FinishedRun:
    """A run at its end; `cameras` are those of its training, `mesh` is the one it wrote, if any."""

    prompt: str
    cameras: Cameras
    render: RenderFn = dataclasses.field(repr=False)
    mesh: Mesh | None = dataclasses.field(default=None, repr=False)


@functools.partial(jax.jit, static_argnames=("cameras", "azimuths", "elevation", "textureless"))
def shots(
    cameras: Cameras, azimuths: tuple[float, ...], elevation: float, textureless: bool
) -> tuple[Camera, Shading]:
    """The middle camera of `cameras` at each azimuth (degrees), and a light beside it."""

    def one(azimuth):
        camera = middle_camera(cameras, azimuth, elevation)
        return camera, headlight(camera.position)._replace(textureless=jnp.float32(textureless))

    return jax.vmap(one)(jnp.array(azimuths))
