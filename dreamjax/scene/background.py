"""What is behind the object: random backdrops as augmentation, or a learned colour by direction."""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from dreamjax.scene.encoding import integrated_pos_enc

BACKGROUND_DEGREES = 4


class Backdrop(NamedTuple):
    """A vertical gradient in the picture; equal ends make it one solid colour. rgb in [0, 1]."""

    bottom: Float[Array, "*batch 3"]
    top: Float[Array, "*batch 3"]


def sample_backdrop(key: Key[Array, ""]) -> Backdrop:
    """A random backdrop: half of them solid, half graded, half of either kind grey."""
    key_colors, key_grey, key_solid = jax.random.split(key, 3)
    bottom, top = jax.random.uniform(key_colors, (2, 3))
    grey = jax.random.bernoulli(key_grey)
    bottom, top = jnp.where(grey, bottom[:1], bottom), jnp.where(grey, top[:1], top)
    return Backdrop(bottom, jnp.where(jax.random.bernoulli(key_solid), bottom, top))


def backdrop_rgb(backdrop: Backdrop, size: int) -> Float[Array, "size size 3"]:
    """The picture of a backdrop."""
    height = 1.0 - (jnp.arange(size, dtype=jnp.float32)[:, None, None] + 0.5) / size
    row = backdrop.bottom + height * (backdrop.top - backdrop.bottom)
    return jnp.broadcast_to(row, (size, size, 3))


class BackgroundMLP(nn.Module):
    """A learned colour for every direction, grey at the start (DreamFusion, section 3.2)."""

    width: int = 32
    depth: int = 2

    @nn.compact
    def __call__(self, direction: Float[Array, "*batch 3"]) -> Float[Array, "*batch 3"]:
        """The rgb in [0, 1] behind rays of these unit directions."""
        no_variance = jnp.zeros((1,) * direction.ndim)
        x = integrated_pos_enc(direction, no_variance, 0, BACKGROUND_DEGREES)
        for _ in range(self.depth):
            x = nn.silu(nn.Dense(self.width, precision=jax.lax.Precision.HIGHEST)(x))
        zero = nn.initializers.zeros_init()
        return nn.sigmoid(nn.Dense(3, kernel_init=zero, precision=jax.lax.Precision.HIGHEST)(x))
