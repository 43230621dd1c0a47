"""Random textures to put behind an object (Dream Fields, arXiv 2112.01455).

A background that is different every time and full of edges cannot be painted on to please CLIP, so
that the object must stand for itself. All are pictures [size, size, 3] with rgb in [0, 1].
"""

from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key, PyTree

from dreamjax.settings import Range, settings

SQUARES = 8  # a side of the checkerboard
DECAY = 1.5  # amplitude of a Fourier texture falls as frequency^-DECAY
CONTRAST = 2.0  # standard deviation of a Fourier texture before the sigmoid
# Standard deviation of the blur, and the reach of its kernel, as shares of the picture's side.
LARGEST_BLUR = 10 / 224
REACH = 7 / 224
# Columns are independent directions of colour: mostly brightness, as in photographs (Olah et al.,
# "Feature visualization", 2017).
COLORS = np.array([[0.56, 0.20, 0.04], [0.58, 0.0, -0.11], [0.58, -0.20, 0.07]], np.float32)


@settings
class Textures:
    """Noise, checkerboards and Fourier textures, all blurred (Dream Fields)."""

    each: Annotated[int, Range(1, 64)] = 1  # backgrounds that every rendering is shown before

    def init(self, key: Key[Array, ""]) -> PyTree:
        """No parameters."""
        return {}

    def __call__(
        self, params: PyTree, key: Key[Array, ""], direction: Float[Array, "h h 3"]
    ) -> Float[Array, "each h h 3"]:
        """Random textures."""
        size = direction.shape[0]
        return jax.vmap(lambda k: random_texture(k, size))(jax.random.split(key, self.each))


def noise(key: Key[Array, ""], size: int) -> Float[Array, "size size 3"]:
    """Every pixel uniform and by itself."""
    return jax.random.uniform(key, (size, size, 3))


def checkerboard(key: Key[Array, ""], size: int) -> Float[Array, "size size 3"]:
    """Squares of two uniform colours, eight a side."""
    number = jnp.arange(size) * SQUARES // size
    odd = (number[:, None] + number) % 2 == 1
    first, second = jax.random.uniform(key, (2, 3))
    return jnp.where(odd[..., None], first, second)


def fourier(key: Key[Array, ""], size: int) -> Float[Array, "size size 3"]:
    """A smooth Gaussian random field that repeats at the borders, through a sigmoid."""
    frequency = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.fftfreq(size))
    amplitude = np.maximum(frequency, 1.0 / size) ** -DECAY
    amplitude *= CONTRAST / np.sqrt(np.mean(amplitude**2))
    white = jnp.fft.fft2(jax.random.normal(key, (size, size, 3)), axes=(0, 1))
    field = jnp.fft.ifft2(white * jnp.float32(amplitude)[..., None], axes=(0, 1)).real
    spread = COLORS / np.linalg.norm(COLORS, axis=1, keepdims=True)
    return jax.nn.sigmoid(jnp.einsum("hwk,ck->hwc", field, spread))


def blur(
    rgb: Float[Array, "size size 3"], deviation: float | Float[Array, ""]
) -> Float[Array, "size size 3"]:
    """Smoothed by a Gaussian of this standard deviation in pixels, cut off at its reach."""
    place = jnp.arange(rgb.shape[0])
    distance = jnp.abs(place[:, None] - place)
    # At 0 the Gaussian would be 0 / 0; near it, it is the one pixel in the middle.
    weight = jnp.exp(-0.5 * (distance / jnp.maximum(deviation, 1e-3)) ** 2)
    weight = jnp.where(distance <= max(1, round(REACH * rgb.shape[0])), weight, 0.0)
    weight = weight / jnp.sum(weight, axis=1, keepdims=True)
    return jnp.einsum("ih,jw,hwc->ijc", weight, weight, rgb, precision=jax.lax.Precision.HIGHEST)


def random_texture(key: Key[Array, ""], size: int) -> Float[Array, "size size 3"]:
    """Noise, a checkerboard or a Fourier texture, each as often, blurred by a random amount."""
    key_kind, key_draw, key_blur = jax.random.split(key, 3)
    kind = jax.random.randint(key_kind, (), 0, 3)
    drawn = jnp.stack([draw(key_draw, size) for draw in (noise, checkerboard, fourier)])
    deviation = LARGEST_BLUR * size * jax.random.uniform(key_blur)
    return blur(drawn[kind], deviation)
