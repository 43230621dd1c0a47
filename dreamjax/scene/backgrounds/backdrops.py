"""Random backdrops, as augmentation: solid colours and gradients."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, PyTree

from dreamjax.settings import settings


@settings
class Backdrops:
    """Backdrops drawn at random: half of them solid, half graded, half of either kind grey."""

    @property
    def each(self) -> int:
        """How many backgrounds every rendering is shown before."""
        return 1

    def init(self, key: Key[Array, ""]) -> PyTree:
        """No parameters."""
        return {}

    def __call__(
        self, params: PyTree, key: Key[Array, ""], direction: Float[Array, "h h 3"]
    ) -> Float[Array, "1 h h 3"]:
        """One random backdrop."""
        return backdrop_rgb(sample_backdrop(key), direction.shape[0])[None]


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
