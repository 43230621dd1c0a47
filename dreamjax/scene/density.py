"""From a field's log density to density: bias, blob and contrast, the same for every field."""

import math
from typing import Annotated

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from dreamjax.clock import Clock, Ramp
from dreamjax.scene.ranges import BothEnds, Length
from dreamjax.settings import Range, settings

LARGEST_LOG_DENSITY = 12.0


@settings
class Blob:
    """A soft ball around the origin that a scene starts from (DreamFusion, A.2)."""

    strength: Annotated[float, Range(0.0, 100.0)] = 5.0  # added to log density at the origin
    width: Length = 0.2  # standard deviation, in scene units

    def __call__(self, mean: Float[Array, "*batch 3"]) -> Float[Array, "*batch"]:
        """What is added to log density at these points: strength exp(-r^2 / (2 width^2))."""
        return self.strength * jnp.exp(-0.5 * jnp.sum(mean**2, axis=-1) / self.width**2)


@settings
class Contrast:
    """From haze to a solid: density becomes pivot (density / pivot)^power.

    A power above 1 thins what is thinner than `pivot` and thickens the rest. NeuS (Wang et al.,
    2021, section 3.1) lets the deviation of its density about the surface shrink to the same end.
    """

    power: Annotated[Ramp, BothEnds(0.0, 100.0, above=True)] = Ramp(1.0, 3.0)  # 1 changes nothing
    pivot: Annotated[float, Range(1e-4, 1e5)] = 10.0  # the density that stays, per scene unit

    def __call__(self, log_density: Float[Array, "*batch"], clock: Clock) -> Float[Array, "*batch"]:
        """Log density with the contrast of this time."""
        level = math.log(self.pivot)
        return level + self.power(clock) * (log_density - level)


@settings
class Density:
    """Density from log density: bias and blob are added, then contrast, then exp."""

    bias: Annotated[float, Range(-100.0, 100.0)] = -1.0  # added to log density everywhere
    blob: Blob | None = Blob()  # what a scene starts from
    contrast: Contrast | None = None  # against haze

    def __call__(
        self, log_density: Float[Array, "*batch"], mean: Float[Array, "*batch 3"], clock: Clock
    ) -> Float[Array, "*batch"]:
        """Density >= 0 per scene unit where a field says `log_density` at points `mean`."""
        if self.blob is not None:
            log_density = log_density + self.blob(mean)
        log_density = log_density + self.bias
        if self.contrast is not None:
            log_density = self.contrast(log_density, clock)
        return truncated_exp(log_density)


@jax.custom_jvp
def truncated_exp(x: Float[Array, "*batch"]) -> Float[Array, "*batch"]:
    """exp(min(x, 12)), whose derivative is its value everywhere.

    exp(12) = 1.6e5 is opaque within a thousandth of a unit, so the bound changes no picture; it
    keeps density and its gradients finite. Above the bound the derivative is not zero, so that the
    inside of a solid still has a normal and can thin out again.
    """
    return jnp.exp(jnp.minimum(x, LARGEST_LOG_DENSITY))


@truncated_exp.defjvp
def _truncated_exp_jvp(primals, tangents):
    value = truncated_exp(*primals)
    return value, value * tangents[0]
