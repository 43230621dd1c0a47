"""Penalties on renderings, means over pixels, so that a weight means the same at every size.

threestudio's published weights can be typed as they are: its lambda_orient is the weight of
`Orientation` (divided, as there, by the rays that are hit), lambda_sparsity that of `Opacity`,
lambda_opaque that of `Entropy`. DreamFusion's own weights (appendix A.2) are of sums.
"""

import math
from typing import Annotated, ClassVar, Protocol

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from dreamjax.clock import Clock, Ramp
from dreamjax.scene.ranges import Weight
from dreamjax.scene.render import Rendering
from dreamjax.settings import Range, ShareSpan, settings

TargetOpacity = Annotated[float, Range(0.0, 1.0, above=True)]


class Penalty(Protocol):
    """What a scene is to avoid; settings, no arrays."""

    needs_normals: ClassVar[bool]  # of no use in renderings without normals

    @property
    def weight(self) -> Ramp:
        """What the penalty is multiplied by."""
        ...

    def __call__(self, seen: Rendering, clock: Clock) -> Float[Array, " v"]:
        """The penalty of V views, before its weight; leaves of `seen` are [V, H, W, ...]."""
        ...


@settings
class Orientation:
    """Normals that face away from the camera, squared, mean over the rays that hit anything.

    As threestudio's loss_orient: (w max(0, n.v)^2).sum() / (opacity > 0).sum(). Rays hit are those
    through the scene's sphere where density is never 0; threestudio leaves out thin air.
    """

    needs_normals: ClassVar[bool] = True

    weight: Weight = Ramp()  # by run time; threestudio: 10 to 1000 in the first half

    def __call__(self, seen: Rendering, clock: Clock) -> Float[Array, " v"]:
        """The penalty of V views."""
        hit = jnp.sum(seen.opacity > 0.0, axis=(-2, -1))
        return jnp.sum(seen.orientation, axis=(-2, -1)) / jnp.maximum(hit, 1)


@settings
class Opacity:
    """Mean of sqrt(opacity^2 + 0.01): keeps empty space empty without a kink at zero.

    As threestudio's loss_sparsity (DreamFusion, appendix A.2).
    """

    needs_normals: ClassVar[bool] = False

    weight: Weight = Ramp()  # by run time; threestudio: 1

    def __call__(self, seen: Rendering, clock: Clock) -> Float[Array, " v"]:
        """The penalty of V views."""
        return jnp.mean(jnp.sqrt(seen.opacity**2 + 0.01), axis=(-2, -1))


@settings
class Entropy:
    """Mean entropy of opacity, in nats: a ray hits and hides all behind it, or there is nothing.

    -o log o - (1 - o) log(1 - o) is least at 0 and 1, where its slope is infinite: opacity is first
    brought into [0.001, 0.999], outside of which it is left alone. As threestudio's loss_opaque.
    """

    needs_normals: ClassVar[bool] = False

    weight: Weight = Ramp()  # by run time

    def __call__(self, seen: Rendering, clock: Clock) -> Float[Array, " v"]:
        """The penalty of V views."""
        o = jnp.clip(seen.opacity, 1e-3, 1.0 - 1e-3)
        return jnp.mean(-o * jnp.log(o) - (1.0 - o) * jnp.log1p(-o), axis=(-2, -1))


@settings
class Smoothness:
    """Variation of the normals seen: dents cost, but a sharp edge costs what a curve does.

    Total variation (Rudin, Osher and Fatemi, 1992): the sum over neighbouring pixels a, b of
    stop_gradient(o_a o_b) |n_a - n_b|, divided by the picture's width in pixels. That is the mean
    over pixels of the variation per picture width. Lengths are rounded off at 0.01.
    """

    needs_normals: ClassVar[bool] = True

    weight: Weight = Ramp()  # by run time

    def __call__(self, seen: Rendering, clock: Clock) -> Float[Array, " v"]:
        """The penalty of V views."""

        def along(normal, opacity):
            step = jnp.sum((normal[..., 1:, :, :] - normal[..., :-1, :, :]) ** 2, axis=-1)
            both = jax.lax.stop_gradient(opacity[..., 1:, :] * opacity[..., :-1, :])
            return jnp.sum(both * jnp.sqrt(step + 1e-4), axis=(-2, -1))

        normal, opacity = seen.normal, seen.opacity
        across = along(jnp.swapaxes(normal, -3, -2), jnp.swapaxes(opacity, -2, -1))
        return (along(normal, opacity) + across) / opacity.shape[-1]


@settings
class Transmittance:
    """-min(1 - target, mean transmittance) of each view (Dream Fields, arXiv 2112.01455).

    Mean opacity over its target costs; below it there is no gradient. The target falls first, or
    the scene would go empty before there is anything to see.
    """

    needs_normals: ClassVar[bool] = False

    weight: Weight = Ramp()  # by run time; Dream Fields: 0.5
    target: tuple[TargetOpacity, TargetOpacity] = (0.6, 0.12)  # mean opacity, at first and at last
    over: ShareSpan = (0.0, 0.05)  # fractions of the run between which the target falls

    def __call__(self, seen: Rendering, clock: Clock) -> Float[Array, " v"]:
        """The penalty of V views; the target falls as a geometric series does."""
        first, last = map(math.log, self.target)
        target = jnp.exp(Ramp(first, last, self.over)(clock))
        transmittance = 1.0 - jnp.mean(seen.opacity, axis=(-2, -1))
        return -jnp.minimum(1.0 - target, transmittance)
