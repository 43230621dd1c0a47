"""Backdrops and the learned background."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamjax.scene.background import Backdrop, BackgroundMLP, backdrop_rgb, sample_backdrop


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
    model = BackgroundMLP()
    up, down = jnp.array([0.0, 0.0, 1.0]), jnp.array([0.0, 0.0, -1.0])
    params = jax.jit(model.init)(jax.random.key(0), up)
    np.testing.assert_allclose(model.apply(params, jnp.stack([up, down])), 0.5, atol=1e-6)

    @jax.jit
    def loss(params):
        return jnp.sum(
            (model.apply(params, up) - 0.9) ** 2 + (model.apply(params, down) - 0.1) ** 2
        )

    @jax.jit
    def descend(params):
        def step(params, _):
            return jax.tree.map(lambda p, g: p - 0.3 * g, params, jax.grad(loss)(params)), None

        return jax.lax.scan(step, params, None, 200)[0]

    assert loss(params) > 0.9
    assert loss(descend(params)) < 0.01
