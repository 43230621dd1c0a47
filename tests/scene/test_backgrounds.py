"""Backdrops, the learned background, and what every background has to keep to."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamjax.scene.backgrounds.backdrops import (
    Backdrop,
    Backdrops,
    backdrop_rgb,
    sample_backdrop,
)
from dreamjax.scene.backgrounds.learned import Learned
from dreamjax.scene.backgrounds.textures import Textures, random_texture
from dreamjax.scene.camera import orbit
from dreamjax.scene.rays import camera_rays

pytestmark = pytest.mark.usefixtures("quick_compilation")

KEY = jax.random.key(3)
DIRECTION = camera_rays(orbit(20, 30, 3, 1.2), 8).direction


def test_a_backdrop_is_linear_between_its_ends_with_top_in_row_zero():
    bottom, top = np.array([0.0, 0.2, 1.0]), np.array([1.0, 0.4, 0.0])
    rgb = np.asarray(backdrop_rgb(Backdrop(jnp.float32(bottom), jnp.float32(top)), 4))
    height = np.array([0.875, 0.625, 0.375, 0.125])[:, None, None]
    expected = np.broadcast_to(bottom + height * (top - bottom), (4, 4, 3))
    np.testing.assert_allclose(rgb, expected, atol=1e-6)


def test_half_of_the_backdrops_are_solid_and_half_grey():
    drawn = jax.jit(jax.vmap(sample_backdrop))(jax.random.split(jax.random.key(0), 2000))
    bottom, top = np.asarray(drawn.bottom), np.asarray(drawn.top)
    assert min(bottom.min(), top.min()) >= 0.0 and max(bottom.max(), top.max()) <= 1.0
    assert np.mean(np.all(bottom == top, axis=-1)) == pytest.approx(0.5, abs=0.05)
    assert np.mean(np.ptp(bottom, axis=-1) == 0) == pytest.approx(0.5, abs=0.05)


def test_the_learned_background_starts_grey_and_can_learn_a_direction():
    background = Learned()
    ends = jnp.array([[[0.0, 0.0, 1.0], [0.0, 0.0, -1.0]]])
    params = jax.jit(background.init)(jax.random.key(0))
    np.testing.assert_allclose(background(params, KEY, ends), 0.5, atol=1e-6)

    @jax.jit
    def loss(params):
        up, down = background(params, KEY, ends)[0, 0]
        return jnp.sum((up - 0.9) ** 2 + (down - 0.1) ** 2)

    @jax.jit
    def descend(params):
        def step(params, _):
            return jax.tree.map(lambda p, g: p - 0.3 * g, params, jax.grad(loss)(params)), None

        return jax.lax.scan(step, params, None, 200)[0]

    assert loss(params) > 0.9
    assert loss(descend(params)) < 0.01


def test_the_learned_background_has_its_width_and_depth():
    params = Learned(width=16, depth=3).init(KEY)
    kernels = [params[name]["kernel"].shape for name in sorted(params)]
    assert kernels == [(24, 16), (16, 16), (16, 16), (16, 3)]
    assert all(np.any(kernel) for kernel in jax.tree.leaves(params["Dense_0"]["kernel"]))


@pytest.mark.parametrize(
    "background", [Backdrops(), Learned(), Textures(), Textures(each=3)], ids=str
)
def test_a_background_gives_as_many_pictures_as_it_says(background):
    params = background.init(jax.random.key(0))
    rgb = jax.jit(background)(params, KEY, DIRECTION)
    assert rgb.shape == (background.each, 8, 8, 3) and rgb.dtype == jnp.float32
    assert rgb.min() >= 0.0 and rgb.max() <= 1.0
    assert bool(jax.tree.leaves(params)) == isinstance(background, Learned)
    again = jax.jit(background)(params, jax.random.key(4), DIRECTION)
    assert np.all(again == rgb) == isinstance(background, Learned)


def test_backdrops_and_textures_are_those_of_their_keys():
    rgb = jax.jit(Backdrops())({}, KEY, DIRECTION)
    np.testing.assert_allclose(rgb[0], backdrop_rgb(sample_backdrop(KEY), 8), atol=1e-6)
    rgb = jax.jit(Textures(each=3))({}, KEY, DIRECTION)
    draw = jax.jit(lambda key: random_texture(key, 8))
    expected = [draw(key) for key in jax.random.split(KEY, 3)]
    np.testing.assert_allclose(rgb, np.stack(expected), atol=1e-6)
    assert np.abs(expected[0] - expected[1]).max() > 0.05
