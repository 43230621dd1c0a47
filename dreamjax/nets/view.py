"""How a network is told a thing and a view: tokens, and the mean picture that they stand for.

Camera and kind of picture are three more tokens beside the text's, mixed with them by a
transformer: what a thing looks like from its side is a matter of both. From the tokens a small
decoder draws the mean of all pictures that they stand for. That is what an ideal denoiser answers
at t = T. It is learnt far sooner apart than by the image network, which is given it beside the
noisy picture (docs/objects.md).

Symbols: N pictures, L words, D channels. Azimuth 0 is the object's front, as in `scene.camera`;
degrees.
"""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from dreamjax.nets.text import Text, TextBlock
from dreamjax.nets.unet import depth_to_space

HARMONICS = (1.0, 2.0, 3.0, 4.0)
MEAN_SIZE = 16  # pixels a side of mean pictures


def angle_features(degrees: Float[Array, " n"]) -> Float[Array, "n f"]:
    """Sines and cosines of an angle and of its multiples `HARMONICS`."""
    angles = jnp.deg2rad(degrees.astype(jnp.float32))[:, None] * jnp.array(HARMONICS)
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


class ViewEncoder(nn.Module):
    """Words and a view to one text: the words, the azimuth, the elevation, the kind of picture.

    A camera that is not told has learned tokens in its place. At initialisation nothing is mixed:
    words leave as they came.
    """

    dim: int
    looks: int
    layers: int
    heads: int

    @nn.compact
    def __call__(
        self,
        words: Text,
        azimuth: Float[Array, " n"],
        elevation: Float[Array, " n"],
        look: Int[Array, " n"],
        told: Bool[Array, " n"],
    ) -> Text:
        """Tokens [N, L + 3, D] of words, cameras in degrees, kinds of picture 0..looks-1.

        In float32; padding stays zero and masked.
        """
        init = nn.initializers.normal(1.0)
        unknown = self.param("unknown", init, (2, self.dim))
        kinds = self.param("look", init, (self.looks, self.dim))

        def token(name, degrees):
            h = nn.silu(nn.Dense(self.dim, name=f"{name}_in")(angle_features(degrees)))
            return nn.LayerNorm(name=f"{name}_norm")(nn.Dense(self.dim, name=f"{name}_out")(h))

        camera = jnp.stack([token("azimuth", azimuth), token("elevation", elevation)], axis=1)
        camera = jnp.where(told[:, None, None], camera, unknown)
        view = jnp.concatenate([camera, kinds[look][:, None]], axis=1)
        tokens = jnp.concatenate([words.tokens, view], axis=1)
        mask = jnp.concatenate([words.mask, jnp.ones(view.shape[:2], bool)], axis=1)
        h = tokens
        for layer in range(self.layers):
            h = TextBlock(self.heads, name=f"block_{layer}")(h, mask)
        mixed = nn.Dense(self.dim, kernel_init=nn.initializers.zeros, name="mixed")
        tokens = tokens + mixed(nn.LayerNorm(name="norm")(h))
        return Text(tokens * mask[..., None], mask)


class MeanPicture(nn.Module):
    """Tokens to the mean of the pictures that they stand for, without backdrops.

    From the mean token by way of 4 x 4 and 8 x 8 places.
    """

    channels: int = 32  # of the last layer but one

    @nn.compact
    def __call__(self, text: Text) -> Float[Array, "n 16 16 4"]:
        """What is seen of an object [N, 16, 16, 4]: rgb in [0, 1] times the mask, and the mask.

        In float32; it may go beyond [0, 1] a little.
        """
        count = jnp.maximum(text.mask.sum(1, keepdims=True), 1)
        h = (text.tokens * text.mask[..., None]).sum(1) / count
        h = nn.silu(nn.Dense(16 * self.channels, name="mixed")(h))
        h = nn.silu(nn.Dense(64 * self.channels, name="places")(h))
        h = h.reshape(-1, 4, 4, 4 * self.channels)
        for features in (2 * self.channels, self.channels):
            h = depth_to_space(nn.Dense(4 * features, name=f"up_{features}")(h), 2)
            h = nn.silu(nn.Conv(features, (3, 3), name=f"conv_{features}")(h))
        return nn.Conv(4, (3, 3), kernel_init=nn.initializers.zeros, name="out")(h)
