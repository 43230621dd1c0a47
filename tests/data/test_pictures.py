"""What is stored of a picture, and what recolouring, light and backdrop make of it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamjax.data import pictures
from dreamjax.data.pictures import ALBEDO, LIT, TEXTURELESS, GBuffer, Recolor
from dreamjax.errors import UserError
from dreamjax.scene.camera import orbit
from dreamjax.scene.shading import Light

SIZE = 16
LIGHT = Light()
pytestmark = pytest.mark.usefixtures("quick_compilation")


def random_buffers(seed: int = 0) -> GBuffer:
    rng = np.random.default_rng(seed)
    normal = rng.normal(size=(SIZE, SIZE, 3))
    mask = rng.integers(0, 5, (SIZE, SIZE)) / 4.0
    return GBuffer(
        albedo=rng.random((SIZE, SIZE, 3)),
        normal=normal / np.linalg.norm(normal, axis=-1, keepdims=True),
        mask=mask,
        depth=rng.uniform(1.5, 4.5, (SIZE, SIZE)),
        cover=mask * rng.integers(0, 2, (SIZE, SIZE)),
        shade=rng.uniform(0.5, 1.6, (SIZE, SIZE)),
    )


def test_bytes_hold_g_buffers_to_half_a_unit():
    buffers = random_buffers()
    found = pictures.unpack(pictures.pack(buffers))
    for name, atol in (("albedo", 0.002), ("mask", 0.002), ("cover", 0.002), ("shade", 0.004)):
        np.testing.assert_allclose(getattr(found, name), getattr(buffers, name), atol=atol)
    np.testing.assert_allclose(found.depth, buffers.depth, atol=1e-4)
    np.testing.assert_allclose(found.normal, buffers.normal, atol=0.008)


def two_colours() -> GBuffer:
    """The left half dominant, light red above and dark red below; the right half green."""
    albedo = np.zeros((SIZE, SIZE, 3))
    left = np.arange(SIZE) < SIZE // 2
    upper = np.arange(SIZE) < SIZE // 2
    shade = np.where(upper, 1.2, 0.8)[:, None] * left
    albedo[..., 0] = 0.5 * shade
    albedo[:, ~left, 1] = 0.7
    ones = np.ones((SIZE, SIZE))
    normal = np.tile([1.0, 0.0, 0.0], (SIZE, SIZE, 1))
    return GBuffer(albedo, normal, ones, 3.0 * ones, ones * left, shade)


def test_recolouring_keeps_other_faces_and_the_shades():
    buffers = two_colours()
    recolor = Recolor(np.array([0.5, 0, 0]), np.array([0.1, 0.2, 0.5]), np.float32(1.0))
    found = np.asarray(pictures.recolored(buffers, recolor))
    half = SIZE // 2
    np.testing.assert_allclose(found[:, half:], buffers.albedo[:, half:])
    np.testing.assert_allclose(found[0, 0], [0.12, 0.24, 0.6], atol=1e-6)
    np.testing.assert_allclose(found[-1, 0], [0.08, 0.16, 0.4], atol=1e-6)
    off = recolor._replace(on=np.float32(0.0))
    np.testing.assert_allclose(pictures.recolored(buffers, off), buffers.albedo)


def test_a_pixel_that_both_colours_share_keeps_its_other_part():

    def pixel(v):
        return np.full((1, 1), v)

    albedo = np.array([[[0.25, 0.35, 0.0]]])  # half red (0.5, 0, 0), half green (0, 0.7, 0)
    buffers = GBuffer(albedo, albedo, pixel(1.0), pixel(3.0), pixel(0.5), pixel(1.0))
    recolor = Recolor(np.array([0.5, 0, 0]), np.array([0, 0, 1.0]), np.float32(1.0))
    found = pictures.recolored(buffers, recolor)
    np.testing.assert_allclose(found[0, 0], [0.0, 0.35, 0.5], atol=1e-6)


def seen(look: int, seed: int = 0, size: int = SIZE, light: Light = LIGHT, mask: float = 1.0):
    buffers = two_colours()
    stored = jnp.asarray(pictures.pack(buffers._replace(mask=mask * buffers.mask)))
    nothing = Recolor(jnp.zeros(3), jnp.zeros(3), jnp.zeros(()))
    camera, key = orbit(0.0, 0.0, 3.0, 1.3), jax.random.key(seed)
    compose = jax.jit(pictures.compose, static_argnums=(5, 6))
    return compose(stored, camera, nothing, jnp.int32(look), key, light, size)


def composed(*args, **kwargs) -> np.ndarray:
    return np.asarray(seen(*args, **kwargs).rgb)


def test_matter_is_the_picture_without_its_backdrop():
    whole = seen(LIT)
    np.testing.assert_allclose(whole.matter[..., :3], whole.rgb, atol=1e-6)
    np.testing.assert_allclose(whole.matter[..., 3], 1.0, atol=1e-6)
    half, other = seen(LIT, mask=0.4), seen(LIT, seed=3, mask=0.4)
    np.testing.assert_allclose(half.matter, 0.4 * whole.matter, atol=1e-6)
    backdrop = (half.rgb - half.matter[..., :3]) / 0.6
    np.testing.assert_allclose(backdrop[:, 0], backdrop[:, -1], atol=1e-4)  # graded upwards only
    assert jnp.abs(half.rgb - other.rgb).max() > 0.1  # another backdrop


def test_looks_are_albedo_light_on_albedo_and_light_on_white():
    albedo, lit, white = (composed(look) for look in (ALBEDO, LIT, TEXTURELESS))
    np.testing.assert_allclose(albedo, two_colours().albedo, atol=0.003)
    np.testing.assert_allclose(white[..., 0], white[..., 1], atol=1e-6)
    np.testing.assert_allclose(lit, albedo * white, atol=1e-3)
    assert 0.3 <= white.min() and white.max() <= 1.0


def test_a_smaller_picture_is_the_mean_of_the_larger_ones_pixels():
    whole, half = composed(LIT), composed(LIT, size=SIZE // 2)
    pooled = whole.reshape(SIZE // 2, 2, SIZE // 2, 2, 3).mean((1, 3))
    np.testing.assert_allclose(half, pooled, atol=1e-6)
    with pytest.raises(UserError, match="16 pixels cannot be averaged to 5"):
        composed(LIT, size=5)


def test_shares_of_looks():
    looks = pictures.looks_of(Light(shaded=0.5, textureless=0.2))
    assert looks == pytest.approx((0.5, 0.4, 0.1))
