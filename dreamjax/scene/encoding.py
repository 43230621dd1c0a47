"""Gaussians along rays and their integrated positional encoding (mip-NeRF, arXiv 2103.13415).

`dist` is distance along a ray in scene units and `dist_edges` the ends of its intervals. `mean` and
`var` are the centre and the diagonal of the covariance of a Gaussian in world space; a last axis of
1 in `var` means the same variance in all three directions. Degree l has frequency 2^l, without pi.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from dreamjax.scene.rays import Rays


def integrated_pos_enc(
    mean: Float[Array, "*batch 3"], var: Float[Array, "*#batch #3"], min_deg: int, max_deg: int
) -> Float[Array, "*batch features"]:
    """E[sin(2^l x)] and E[cos(2^l x)] of x ~ N(mean, diag(var)) (eq. 13-14).

    Degrees l run from `min_deg` to below `max_deg`; the 6 (max_deg - min_deg) features are
    degree-major with xyz fastest, all sines and then all cosines. Sine and cosine are evaluated
    once and then doubled in angle, which is twice as fast as evaluating each degree and loses no
    more than rounding `mean` to float32 does.
    """
    batch = mean.shape[:-1]
    scales = 2.0 ** jnp.arange(min_deg, max_deg, dtype=jnp.float32)[:, None]
    decay = jnp.exp(-0.5 * scales**2 * var[..., None, :])
    sin, cos = jnp.sin(2.0**min_deg * mean), jnp.cos(2.0**min_deg * mean)
    sines, cosines = [sin], [cos]
    for _ in range(min_deg + 1, max_deg):
        sin, cos = 2.0 * sin * cos, (cos - sin) * (cos + sin)
        sines.append(sin)
        cosines.append(cos)
    waves = jnp.stack([jnp.stack(sines, axis=-2), jnp.stack(cosines, axis=-2)], axis=-3)
    return (waves * decay[..., None, :, :]).reshape(*batch, 6 * (max_deg - min_deg))


def conical_frustum_gaussian(
    rays: Rays, dist_edges: Float[Array, "*batch edges"]
) -> tuple[Float[Array, "*batch samples 3"], Float[Array, "*batch samples 3"]]:
    """Mean and diagonal covariance of uniform points in each frustum of the rays' cones.

    The stable form of mip-NeRF eq. 7, 8 and 16, from the middle and half-width of each interval. An
    empty interval at the cone's apex gets the apex and no variance.
    """
    start, end = dist_edges[..., :-1], dist_edges[..., 1:]
    middle, half = 0.5 * (start + end), 0.5 * (end - start)
    # Fractions of middle^2 and half^2 in 3 middle^2 + half^2: bounded, so nothing below cancels.
    total = jnp.maximum(3.0 * middle**2 + half**2, jnp.finfo(jnp.float32).tiny)
    share = half**2 / total
    dist = middle + 2.0 * middle * share
    along = half**2 / 3.0 - 4.0 / 15.0 * share**2 * (12.0 * middle**2 - half**2)
    across = rays.radius[..., None] ** 2 * (
        0.25 * middle**2 + 5.0 / 12.0 * half**2 - 4.0 / 15.0 * share * half**2
    )
    direction = rays.direction[..., None, :]
    mean = rays.origin[..., None, :] + dist[..., None] * direction
    squared = direction**2
    return mean, along[..., None] * squared + across[..., None] * (1.0 - squared)


def isotropic(
    rays: Rays, dist_edges: Float[Array, "*batch edges"], lam: float | Float[Array, ""]
) -> tuple[Float[Array, "*batch samples 3"], Float[Array, "*batch samples 1"]]:
    """Interval midpoints with covariance lam I, not the frustum's (DreamFusion, section 3.1).

    `lam` is in squared scene units.
    """
    dist = 0.5 * (dist_edges[..., :-1] + dist_edges[..., 1:])
    mean = rays.origin[..., None, :] + dist[..., None] * rays.direction[..., None, :]
    return mean, jnp.broadcast_to(jnp.asarray(lam, jnp.float32), (*mean.shape[:-1], 1))


def quarter_turns(
    mean: Float[Array, "*batch 3"], var: Float[Array, "*#batch #3"], quarters: int | Int[Array, ""]
) -> tuple[Float[Array, "*batch 3"], Float[Array, "*#batch #3"]]:
    """The Gaussians turned about z by so many right angles, counter-clockwise seen from above.

    Exact, and the covariance stays diagonal, as it would not at other angles.
    """
    cosine = jnp.array([1.0, 0.0, -1.0, 0.0])[quarters % 4]
    sine = jnp.array([0.0, 1.0, 0.0, -1.0])[quarters % 4]
    x, y, z = jnp.moveaxis(mean, -1, 0)
    mean = jnp.stack([cosine * x - sine * y, sine * x + cosine * y, z], axis=-1)
    if var.shape[-1] == 3:
        var = jnp.where(quarters % 2 == 1, var[..., jnp.array([1, 0, 2])], var)
    return mean, var
