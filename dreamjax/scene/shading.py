"""Point lights and diffuse shading (DreamFusion, section 3.1 and equation 7)."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key


@dataclasses.dataclass(frozen=True)
class LightConfig:
    """Where the light is: direction N(camera direction, `spread`^2 I), distance uniform, in scene
    units.
    """

    distance: tuple[float, float] = (2.5, 4.0)
    spread: float = 0.7


@dataclasses.dataclass(frozen=True)
class ShadingConfig:
    """How often a view is shaded, and how strongly.

    A view is shaded with probability `shaded`; of those, `textureless` have their albedo replaced
    by white; the rest show albedo alone.
    """

    ambient: float = 0.3
    diffuse: float = 0.7
    shaded: float = 0.75
    textureless: float = 0.5


class Shading(NamedTuple):
    """One view's light. Albedo alone is ambient 1, diffuse 0; `textureless` is 0 or 1."""

    light_position: Float[Array, "*batch 3"]
    ambient: Float[Array, "*batch"]
    diffuse: Float[Array, "*batch"]
    textureless: Float[Array, "*batch"]


def sample_light(
    key: Key[Array, ""], camera_position: Float[Array, "3"], config: LightConfig
) -> Float[Array, "3"]:
    """A light near the camera's direction."""
    key_direction, key_distance = jax.random.split(key)
    towards = camera_position / jnp.linalg.norm(camera_position)
    towards = towards + config.spread * jax.random.normal(key_direction, (3,))
    towards = towards / jnp.maximum(jnp.linalg.norm(towards), 1e-6)
    low, high = config.distance
    return towards * jax.random.uniform(key_distance, (), minval=low, maxval=high)


def sample_shading(
    key: Key[Array, ""],
    camera_position: Float[Array, "3"],
    light: LightConfig,
    config: ShadingConfig,
) -> Shading:
    """Draw the light and which of the three looks (albedo, shaded, textureless) a view gets."""
    key_light, key_shaded, key_textureless = jax.random.split(key, 3)
    shaded = jax.random.bernoulli(key_shaded, config.shaded)
    textureless = shaded & jax.random.bernoulli(key_textureless, config.textureless)
    return Shading(
        sample_light(key_light, camera_position, light),
        jnp.where(shaded, config.ambient, 1.0),
        jnp.where(shaded, config.diffuse, 0.0),
        textureless.astype(jnp.float32),
    )


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
