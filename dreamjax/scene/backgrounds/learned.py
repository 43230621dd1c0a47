"""A background that is learnt with the scene."""

from typing import Annotated, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, PyTree

from dreamjax.scene.encoding import integrated_pos_enc
from dreamjax.settings import Range, settings

DEGREES = 4


@settings
class Learned:
    """A learnt colour for every direction, grey at the start (DreamFusion, section 3.2)."""

    width: Annotated[int, Range(1, 1024)] = 32  # units of each layer
    depth: Annotated[int, Range(0, 16)] = 2  # hidden layers

    @property
    def each(self) -> int:
        """How many backgrounds every rendering is shown before."""
        return 1

    def init(self, key: Key[Array, ""]) -> PyTree:
        """The parameters at the start."""
        return _Network(self).init(key, jnp.zeros((1, 3)))["params"]

    def __call__(
        self, params: PyTree, key: Key[Array, ""], direction: Float[Array, "h w 3"]
    ) -> Float[Array, "1 h w 3"]:
        """The picture behind rays of these unit directions; `key` is not used."""
        rgb = cast(Array, _Network(self).apply({"params": params}, direction))
        return rgb[None]


class _Network(nn.Module):
    """An MLP on encoded directions."""

    learned: Learned

    @nn.compact
    def __call__(self, direction):
        no_variance = jnp.zeros((1,) * direction.ndim)
        x = integrated_pos_enc(direction, no_variance, 0, DEGREES)
        for _ in range(self.learned.depth):
            x = nn.silu(nn.Dense(self.learned.width, precision=jax.lax.Precision.HIGHEST)(x))
        zero = nn.initializers.zeros_init()
        return nn.sigmoid(nn.Dense(3, kernel_init=zero, precision=jax.lax.Precision.HIGHEST)(x))
