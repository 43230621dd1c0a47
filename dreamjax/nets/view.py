"""How a network is told a thing and a view: tokens, and the mean picture that they stand for.

Camera and kind of picture are three more tokens beside the text's, mixed with them by a
transformer: what a thing looks like from its side is a matter of both. How large a unit of length
is in the picture belongs to the camera: without it, what is thin is blurred. From the tokens a
small decoder draws the mean of all pictures that they stand for. That is what an ideal denoiser
answers at t = T. It is learnt far sooner apart than by the image network, which is given it beside
the noisy picture (docs/objects.md).

Symbols: N pictures, L words, D channels. Azimuth 0 is the object's front, as in `scene.camera`;
degrees.
"""

from typing import NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from dreamjax.nets.text import Text, TextBlock
from dreamjax.nets.unet import depth_to_space

HARMONICS = (1.0, 2.0, 3.0, 4.0)


SIZES = (0.35, 0.5)  # apparent sizes that the cameras of `scene.camera` give


class ToldView(NamedTuple):
    """N views as the network is told them.

    `azimuth` from the object's front and `elevation` are in degrees, `size` in image widths: how
    large a unit of length at the origin is seen. `look` is the kind of picture, from 0 on. Where
    `camera` is false the first three are not told.
    """

    azimuth: Float[Array, " n"]
    elevation: Float[Array, " n"]
    size: Float[Array, " n"]
    look: Int[Array, " n"]
    camera: Bool[Array, " n"]


def angle_features(degrees: Float[Array, " n"]) -> Float[Array, "n f"]:
    """Sines and cosines of an angle and of its multiples `HARMONICS`."""
    angles = jnp.deg2rad(degrees.astype(jnp.float32))[:, None] * jnp.array(HARMONICS)
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


def size_features(size: Float[Array, " n"]) -> Float[Array, "n 3"]:
    """Powers one to three of an apparent size, brought from `SIZES` to [-1, 1]."""
    low, high = SIZES
    x = (2.0 * size.astype(jnp.float32) - low - high) / (high - low)
    return jnp.stack([x, x**2, x**3], axis=-1)


class ViewEncoder(nn.Module):
    """Words and a view to one text: words, azimuth, elevation with size, the kind of picture.

    A camera that is not told has learned tokens in its place. At initialisation nothing is mixed:
    words leave as they came.
    """

    dim: int
    looks: int
    layers: int
    heads: int

    @nn.compact
    def __call__(self, words: Text, view: ToldView) -> Text:
        """Tokens [N, L + 3, D] of words and views; `view.look` is below `looks`.

        In float32; padding stays zero and masked.
        """
        init = nn.initializers.normal(1.0)
        unknown = self.param("unknown", init, (2, self.dim))
        kinds = self.param("look", init, (self.looks, self.dim))

        def token(name, features):
            h = nn.silu(nn.Dense(self.dim, name=f"{name}_in")(features))
            return nn.LayerNorm(name=f"{name}_norm")(nn.Dense(self.dim, name=f"{name}_out")(h))

        elevation = [angle_features(view.elevation), size_features(view.size)]
        camera = [
            token("azimuth", angle_features(view.azimuth)),
            token("elevation", jnp.concatenate(elevation, axis=-1)),
        ]
        camera = jnp.where(view.camera[:, None, None], jnp.stack(camera, axis=1), unknown)
        kind = kinds[view.look][:, None]
        tokens = jnp.concatenate([words.tokens, camera, kind], axis=1)
        known = jnp.ones((len(kind), 3), bool)
        mask = jnp.concatenate([words.mask, known], axis=1)
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
