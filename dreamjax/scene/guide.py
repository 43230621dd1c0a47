"""Where along a ray to look: intervals drawn from a coarse grid of density.

Most of a ray passes through nothing, or through what lies behind a surface. The density at the
cells of a coarse grid says where its compositing weights are, and the ends of the intervals are
drawn from there, as from a proposal (NeRF section 5.2; mip-NeRF eq. 18 and its padding). Shapes are
static, any field will do, and nothing is remembered from step to step. No gradient flows through
the grid.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from dreamjax.scene.matter import MatterFn
from dreamjax.scene.rays import Rays

PADDING = 0.3  # of a ray's intervals for its even share, where the ray's opacity is 1: 0.3 / 1.3
AT_A_TIME = 4096  # cells that the field is asked for together


class Guide(NamedTuple):
    """Density per scene unit at the cells of the cube around the scene's sphere, 0 outside it."""

    density: Float[Array, "n n n"]
    radius: Float[Array, ""]


def make_guide(
    matter_fn: MatterFn, cells: int, radius: float, lam: float | Float[Array, ""]
) -> Guide:
    """Look at the middle of each of `cells`^3 cells of [-radius, radius]^3, with variance `lam`."""
    middle = radius * (2.0 * np.arange(cells) + 1.0 - cells) / cells
    points = np.stack(np.meshgrid(middle, middle, middle, indexing="ij"), axis=-1).reshape(-1, 3)
    # A cell that the sphere touches has its middle within half a diagonal of it.
    inside = np.flatnonzero(np.linalg.norm(points, axis=-1) < radius * (1.0 + np.sqrt(3.0) / cells))
    var = jnp.reshape(jnp.asarray(lam, jnp.float32), (1,))
    found = jax.lax.map(
        lambda point: matter_fn(point, var).density,
        jnp.asarray(points[inside], jnp.float32),
        batch_size=min(AT_A_TIME, len(inside)),
    )
    density = jnp.zeros(cells**3).at[inside].set(jax.lax.stop_gradient(found))
    return Guide(density.reshape(cells, cells, cells), jnp.float32(radius))


def guided_density(
    guide: Guide, rays: Rays, near: Float[Array, " r"], far: Float[Array, " r"], bins: int
) -> Float[Array, "r bins"]:
    """The grid's density in each of `bins` equal parts of [near, far] of R rays."""
    cells = guide.density.shape[0]
    share = (jnp.arange(bins, dtype=jnp.float32) + 0.5) / bins
    dist = near[:, None] + (far - near)[:, None] * share
    point = rays.origin[:, None, :] + dist[..., None] * rays.direction[:, None, :]
    place = jnp.floor((point / guide.radius + 1.0) * (0.5 * cells)).astype(jnp.int32)
    x, y, z = jnp.moveaxis(jnp.clip(place, 0, cells - 1), -1, 0)
    return guide.density.reshape(-1)[(x * cells + y) * cells + z]


def proposal(
    weights: Float[Array, "r bins"],
) -> Float[Array, "r edges"]:
    """The distribution, from 0 to 1 at the ends of equal bins, that intervals are drawn from.

    Weights are spread to their neighbours (mip-NeRF eq. 18); `PADDING` is added evenly, so that no
    part of a ray is left out.
    """
    beside = jnp.pad(weights, ((0, 0), (1, 1)), mode="edge")
    pairs = jnp.maximum(beside[:, :-1], beside[:, 1:])
    mass = 0.5 * (pairs[:, :-1] + pairs[:, 1:]) + PADDING / weights.shape[1]
    cdf = jnp.cumsum(mass, axis=1)
    return jnp.pad(cdf / cdf[:, -1:], ((0, 0), (1, 0)))


def invert(cdf: Float[Array, "r edges"], level: Float[Array, "r n"]) -> Float[Array, "r n"]:
    """Where in [0, 1] a piecewise linear distribution function reaches each level.

    `cdf` rises from 0 to 1 over edges that are evenly spaced.
    """
    bins = cdf.shape[1] - 1
    number = jnp.sum(cdf[:, None, 1:-1] <= level[:, :, None], axis=-1)
    low = jnp.take_along_axis(cdf, number, axis=1)
    high = jnp.take_along_axis(cdf, number + 1, axis=1)
    return (number + (level - low) / (high - low)) / bins
