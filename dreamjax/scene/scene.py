"""A scene: its parts, what of it is trained, and how it looks at a time of the run."""

from typing import Annotated

import jax
from jaxtyping import Array, Float, Int, Key, PyTree

from dreamjax.clock import Clock
from dreamjax.scene.backgrounds.backdrops import Backdrops
from dreamjax.scene.backgrounds.base import Background
from dreamjax.scene.camera import Cameras, middle_camera
from dreamjax.scene.density import Density
from dreamjax.scene.fields.base import Field
from dreamjax.scene.fields.mlp import Mlp
from dreamjax.scene.matter import MatterFn, matter_fn
from dreamjax.scene.penalties import Penalty
from dreamjax.scene.render import Renderer, Rendering, render_image
from dreamjax.scene.shading import Light, Shading
from dreamjax.settings import Home, settings


@settings
class Scene:
    """What is made, how it is seen, and what is asked of it besides pleasing the prior."""

    field: Annotated[Field, Home("dreamjax.scene.fields")] = Mlp()  # the network behind the object
    density: Density = Density()  # from the field's log density to density
    renderer: Renderer = Renderer()  # how rays are sampled
    cameras: Cameras = Cameras()  # where views are taken from
    light: Light = Light()  # how views are lit, and how often
    background: Annotated[Background, Home("dreamjax.scene.backgrounds")] = Backdrops()
    """what is behind the object"""
    penalties: Annotated[tuple[Penalty, ...], Home("dreamjax.scene.penalties")] = ()
    """what renderings cost besides the objective, as means over pixels"""


def init_scene(key: Key[Array, ""], scene: Scene) -> dict[str, PyTree]:
    """Parameters {"field", "background"} of a scene that nobody has looked at yet."""
    key_field, key_background = jax.random.split(key)
    return {
        "field": scene.field.init(key_field),
        "background": scene.background.init(key_background),
    }


def matter_at(
    scene: Scene, params: PyTree, clock: Clock, front: Int[Array, ""] | None = None
) -> MatterFn:
    """Density and albedo of Gaussians at this time.

    `front` counts quarter turns: with it the object is turned so that its front is at azimuth 0.
    """
    return matter_fn(scene.field, scene.density, params["field"], clock, front)


def look(
    scene: Scene,
    params: PyTree,
    clock: Clock,
    azimuth: Float[Array, ""],
    elevation: Float[Array, ""],
    size: int,
    shading: Shading,
    behind: Float[Array, "#size #size 3"],
    front: Int[Array, ""] | None = None,
) -> Rendering:
    """One picture from these angles (degrees), by the middle camera of those that training uses."""
    camera = middle_camera(scene.cameras, azimuth, elevation)
    variance = scene.renderer.variance(clock)
    matter = matter_at(scene, params, clock, front)
    return render_image(matter, camera, size, variance, shading, behind, scene.renderer)
