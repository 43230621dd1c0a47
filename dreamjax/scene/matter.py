"""Matter: what the renderer and the mesh see of a scene, density and albedo at places in space."""

from collections.abc import Callable
from typing import NamedTuple

from jaxtyping import Array, Float, Int, PyTree

from dreamjax.clock import Clock
from dreamjax.scene.density import Density
from dreamjax.scene.encoding import quarter_turns
from dreamjax.scene.fields.base import Field


class Matter(NamedTuple):
    """What is at a place: `density` >= 0 per scene unit, `albedo` rgb in [0, 1]."""

    density: Float[Array, "*batch"]
    albedo: Float[Array, "*batch 3"]


# (mean [..., 3], var [..., 3 or 1]) of Gaussians in scene units -> Matter.
MatterFn = Callable[[Float[Array, "*batch 3"], Float[Array, "*#batch #3"]], Matter]


def matter_fn(
    field: Field,
    density: Density,
    params: PyTree,
    clock: Clock,
    front: Int[Array, ""] | None = None,
) -> MatterFn:
    """The scene at this time, of a field's `params`, as a function of Gaussians.

    With `front`, the quarter turns from azimuth 0 to the object's front, the scene is turned so
    that its front is at azimuth 0.
    """

    def matter(mean, var):
        if front is not None:
            mean, var = quarter_turns(mean, var, front)
        found = field(params, mean, var)
        return Matter(density(found.log_density, mean, clock), found.albedo)

    return matter
