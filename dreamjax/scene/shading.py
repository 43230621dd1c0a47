"""Point lights and diffuse shading (DreamFusion, section 3.1 and equation 7)."""

from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from dreamjax.errors import UserError
from dreamjax.scene.ranges import LengthSpan
from dreamjax.settings import Range, Share, settings


@settings
class Light:
    """The light of a view, and how often and how strongly it is seen.

    A view is shaded with probability `shaded`; of those, `textureless` show white matter; the rest
    show albedo alone.
    """

    distance: LengthSpan = (2.5, 4.0)  # from the origin, in scene units; uniform
    spread: Annotated[float, Range(0.0, 100.0)] = 0.7  # direction is N(camera's, spread^2 I)
    ambient: Share = 0.3  # light that comes from everywhere
    diffuse: Share = 0.7  # light that comes from the lamp
    shaded: Share = 0.75  # share of views that are lit; the others show albedo alone
    textureless: Share = 0.5  # share of the lit views whose albedo is white

    def __post_init__(self):
        """Refuse lit views that are black."""
        if self.shaded and not self.ambient + self.diffuse:
            raise UserError("ambient and diffuse are both 0: expected one above 0 where shaded is")


class Shading(NamedTuple):
    """One view's light. Albedo alone is ambient 1, diffuse 0; `textureless` is 0 or 1."""

    light_position: Float[Array, "*batch 3"]
    ambient: Float[Array, "*batch"]
    diffuse: Float[Array, "*batch"]
    textureless: Float[Array, "*batch"]


def sample_light(
    key: Key[Array, ""], camera_position: Float[Array, "3"], light: Light
) -> Float[Array, "3"]:
    """A light near the camera's direction."""
    key_direction, key_distance = jax.random.split(key)
    towards = camera_position / jnp.linalg.norm(camera_position)
    towards = towards + light.spread * jax.random.normal(key_direction, (3,))
    towards = towards / jnp.maximum(jnp.linalg.norm(towards), 1e-6)
    low, high = light.distance
    return towards * jax.random.uniform(key_distance, (), minval=low, maxval=high)


def sample_shading(
    key: Key[Array, ""],
    camera_position: Float[Array, "3"],
    light: Light,
) -> Shading:
    """Draw the light and which of the three looks (albedo, shaded, textureless) a view gets."""
    key_light, key_shaded, key_textureless = jax.random.split(key, 3)
    shaded = jax.random.bernoulli(key_shaded, light.shaded)
    textureless = shaded & jax.random.bernoulli(key_textureless, light.textureless)
    return Shading(
        sample_light(key_light, camera_position, light),
        jnp.where(shaded, light.ambient, 1.0),
        jnp.where(shaded, light.diffuse, 0.0),
        textureless.astype(jnp.float32),
    )


def headlight(camera_position: Float[Array, "3"]) -> Shading:
    """A light at the camera, a little above it, for the pictures that people look at."""
    above = camera_position + jnp.array([0.0, 0.0, 1.0])
    return Shading(above, jnp.float32(0.45), jnp.float32(0.55), jnp.float32(0.0))


def lambertian(
    albedo: Float[Array, "*b 3"],
    normal: Float[Array, "*b 3"],
    point: Float[Array, "*b 3"],
    shading: Shading,
) -> Float[Array, "*b 3"]:
    """Colour of surface points under one light: albedo (ambient + diffuse max(0, n.l))."""
    to_light = shading.light_position - point
    to_light = to_light / jnp.maximum(jnp.linalg.norm(to_light, axis=-1, keepdims=True), 1e-6)
    cosine = jnp.maximum(jnp.sum(normal * to_light, axis=-1, keepdims=True), 0.0)
    albedo = jnp.where(shading.textureless > 0.5, 1.0, albedo)
    return albedo * (shading.ambient + shading.diffuse * cosine)
