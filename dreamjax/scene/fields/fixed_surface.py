"""A field whose surface is given and whose colours are trained."""

from typing import Annotated

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, PyTree

from dreamjax.scene.fields.base import Field, FieldOutput
from dreamjax.scene.fields.mlp import Mlp
from dreamjax.settings import Home, Range, settings


@settings
class FixedSurface:
    """A field twice: density by parameters that no gradient reaches, albedo by others.

    Density is always looked at with the same variance, so it stays what it was while that of the
    Gaussians, in which albedo is looked at, shrinks.
    """

    field: Annotated[Field, Home("dreamjax.scene.fields")] = Mlp()  # what it is twice
    variance: Annotated[float, Range(0.0, 100.0)] = 2e-3  # of the Gaussians at which density is

    def init(self, key: Key[Array, ""]) -> PyTree:
        """The parameters at the start, the same for both."""
        return self.twice(self.field.init(key))

    @staticmethod
    def twice(params: PyTree) -> PyTree:
        """The parameters of `field` as this field's."""
        # Two arrays: a buffer cannot be donated twice.
        return {"surface": params, "albedo": jax.tree.map(jnp.array, params)}

    def __call__(
        self, params: PyTree, mean: Float[Array, "*batch 3"], var: Float[Array, "*#batch #3"]
    ) -> FieldOutput:
        """Log density and albedo of Gaussians N(mean, diag(var))."""
        surface = jax.lax.stop_gradient(params["surface"])
        fixed = jnp.full((1,) * mean.ndim, self.variance, mean.dtype)
        log_density = self.field(surface, mean, fixed).log_density
        return FieldOutput(log_density, self.field(params["albedo"], mean, var).albedo)
