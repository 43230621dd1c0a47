"""The protocol of fields."""

from typing import NamedTuple, Protocol

from jaxtyping import Array, Float, Key, PyTree


class FieldOutput(NamedTuple):
    """What a field says of Gaussians in space.

    `log_density` is the natural logarithm of density per scene unit, float32, before the blob, bias
    and contrast of `scene.density`. `albedo` is rgb in [0, 1].
    """

    log_density: Float[Array, "*batch"]
    albedo: Float[Array, "*batch 3"]


class Field(Protocol):
    """A learnt function from Gaussians in space to log density and albedo; settings, no arrays.

    It knows no border: it is looked at inside the scene's sphere alone.
    """

    def init(self, key: Key[Array, ""]) -> PyTree:
        """The parameters at the start."""
        ...

    def __call__(
        self, params: PyTree, mean: Float[Array, "*batch 3"], var: Float[Array, "*#batch #3"]
    ) -> FieldOutput:
        """What is at Gaussians N(mean, diag(var)), in scene units."""
        ...
