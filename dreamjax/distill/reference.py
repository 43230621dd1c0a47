"""The view that a picture shows: what its rendering costs where it looks different.

Symbols: S x S pixels; o is opacity, m the picture's mask, d the mean distance along a ray and D the
picture's depth, r their correlation where m > 1/2. The view is rendered by its albedo: the light in
the picture is taken for the object's own colour. The loss is

    color (mean of (rgb - picture)^2) + mask (mean of (o - m)^2) + depth (1 - r)

with rgb and picture both before white, and means over pixels (and channels). Magic123 (arXiv
2306.17843) and threestudio have these three.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from dreamjax.priors.base import Picture
from dreamjax.scene.camera import Elevation
from dreamjax.scene.guide import Guide
from dreamjax.scene.matter import MatterFn
from dreamjax.scene.rays import camera_rays
from dreamjax.scene.render import Renderer, render_rays
from dreamjax.scene.shading import Shading
from dreamjax.settings import NonNegative, settings

# Of depth, in squared scene units: below it there is nothing for depths to go along with.
LEAST_VARIANCE = 1e-6


@settings
class Reference:
    """Where the picture was taken from, always the front, and what it costs to look different.

    Distance and focal length are the middle of the cameras'. The weights of colours and mask are
    threestudio's for Stable Zero123 over its lambda_sds; that of depth has not been tried.
    """

    elevation: Elevation = 0.0  # degrees above the horizon, from which the picture was taken
    color: NonNegative = 5000.0  # weight of colours
    mask: NonNegative = 500.0  # weight of the silhouette
    depth_image: str = ""  # a grey picture of the same size, brighter being farther; optional
    depth: NonNegative = 50.0  # weight of depth, where there is such a picture


def reference_loss(
    reference: Reference,
    picture: Picture,
    matter: MatterFn,
    renderer: Renderer,
    variance: Float[Array, ""],
    guide: Guide | None,
    size: int,
    key: Key[Array, ""],
) -> tuple[Float[Array, ""], dict[str, Array]]:
    """The weighted loss of one rendering at `size` pixels, and each part before its weight."""
    camera = picture.camera
    one, zero = jnp.ones(()), jnp.zeros(())
    seen = render_rays(
        matter,
        camera_rays(camera, size),
        key,
        variance,
        Shading(camera.position, one, zero, zero),
        jnp.ones(3),
        renderer,
        with_normals=False,
        guide=guide,
    )
    rgb, mask = _resized(picture.rgb, size), _resized(picture.mask, size)
    parts = {
        "reference_color": jnp.mean((seen.rgb - rgb) ** 2),
        "reference_mask": jnp.mean((seen.opacity - mask) ** 2),
    }
    total = reference.color * parts["reference_color"] + reference.mask * parts["reference_mask"]
    if picture.depth is not None:
        depth = _resized(picture.depth * picture.mask, size) / jnp.maximum(mask, 0.5)
        parts["reference_depth"] = 1.0 - correlation(seen.depth, depth, (mask > 0.5) * 1.0)
        total = total + reference.depth * parts["reference_depth"]
    return total, parts


def correlation(
    x: Float[Array, "*shape"], y: Float[Array, "*shape"], weight: Float[Array, "*shape"]
) -> Float[Array, ""]:
    """Pearson's correlation under weights, 0 where either is the same everywhere."""
    weight = weight / jnp.maximum(jnp.sum(weight), 1e-6)
    x, y = x - jnp.sum(weight * x), y - jnp.sum(weight * y)
    spread = jnp.sum(weight * x**2) * jnp.sum(weight * y**2)
    return jnp.sum(weight * x * y) / jnp.sqrt(spread + LEAST_VARIANCE**2)


def _resized(image: Float[Array, "s s *channels"], size: int) -> Array:
    return jax.image.resize(image, (size, size, *image.shape[2:]), "linear")
