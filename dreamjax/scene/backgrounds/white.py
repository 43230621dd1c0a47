"""White, what models of single objects were trained before."""

from typing import ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Float, Key, PyTree

from dreamjax.settings import settings


@settings
class White:
    """White everywhere."""

    each: ClassVar[int] = 1  # backgrounds that every rendering is shown before

    def init(self, key: Key[Array, ""]) -> PyTree:
        """No parameters."""
        return {}

    def __call__(
        self, params: PyTree, key: Key[Array, ""], direction: Float[Array, "h w 3"]
    ) -> Float[Array, "1 h w 3"]:
        """White."""
        return jnp.ones((1, *direction.shape))
