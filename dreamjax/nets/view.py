"""How a network is told the camera and the kind of picture: three more tokens beside the text's.

Symbols: N pictures, D channels. Azimuth 0 is the object's front, as in `scene.camera`; degrees.
"""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

TOKENS = 3
HARMONICS = (1.0, 2.0, 3.0, 4.0)


def angle_features(degrees: Float[Array, " n"]) -> Float[Array, "n f"]:
    """Sines and cosines of an angle and of its multiples `HARMONICS`."""
    angles = jnp.deg2rad(degrees.astype(jnp.float32))[:, None] * jnp.array(HARMONICS)
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


class ViewEncoder(nn.Module):
    """A token for the azimuth, one for the elevation and one for the kind of picture.

    A camera that is not told has learned tokens in its place.
    """

    dim: int
    looks: int

    @nn.compact
    def __call__(
        self,
        azimuth: Float[Array, " n"],
        elevation: Float[Array, " n"],
        look: Int[Array, " n"],
        told: Bool[Array, " n"],
    ) -> Float[Array, "n 3 d"]:
        """Tokens [N, 3, D] of cameras in degrees and kinds of picture 0..looks-1, in float32."""
        init = nn.initializers.normal(1.0)
        unknown = self.param("unknown", init, (2, self.dim))
        kinds = self.param("look", init, (self.looks, self.dim))

        def token(name, degrees):
            h = nn.silu(nn.Dense(self.dim, name=f"{name}_in")(angle_features(degrees)))
            return nn.LayerNorm(name=f"{name}_norm")(nn.Dense(self.dim, name=f"{name}_out")(h))

        camera = jnp.stack([token("azimuth", azimuth), token("elevation", elevation)], axis=1)
        camera = jnp.where(told[:, None, None], camera, unknown)
        return jnp.concatenate([camera, kinds[look][:, None]], axis=1)
