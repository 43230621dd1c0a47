"""The penalties against float64 NumPy, and which of their arguments they move."""

import jax
import jax.numpy as jnp
import numpy as np

from dreamjax.scene.regularizers import (
    opacity_entropy,
    opacity_loss,
    orientation,
    transmittance_loss,
)

RNG = np.random.default_rng(2)
WEIGHTS = RNG.uniform(size=(7, 5))
NORMAL = RNG.normal(size=(7, 5, 3))
DIRECTION = RNG.normal(size=(7, 3))


def test_orientation_against_numpy():
    expected = np.zeros(7)
    for r in range(7):
        for i in range(5):
            expected[r] += WEIGHTS[r, i] * max(0.0, float(NORMAL[r, i] @ DIRECTION[r])) ** 2
    found = orientation(*map(jnp.float32, (WEIGHTS, NORMAL, DIRECTION)))
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_orientation_moves_normals_and_not_weights():
    def total(weights, normal):
        return jnp.sum(orientation(weights, normal, jnp.float32(DIRECTION)))

    args = jnp.float32(WEIGHTS), jnp.float32(NORMAL)
    weights_gradient, normal_gradient = jax.grad(total, argnums=(0, 1))(*args)
    np.testing.assert_array_equal(weights_gradient, 0.0)
    assert np.abs(normal_gradient).max() > 0.1


def test_normals_that_face_the_camera_cost_nothing():
    direction = jnp.array([0.0, 0.0, -1.0])
    assert orientation(jnp.ones(1), jnp.array([[0.0, 0.0, 1.0]]), direction) == 0.0
    assert orientation(jnp.ones(1), jnp.array([[0.0, 0.0, -1.0]]), direction) == 1.0


def test_opacity_against_numpy():
    opacity = np.linspace(0, 1, 11)
    expected = np.sqrt(opacity**2 + 0.01)
    np.testing.assert_allclose(opacity_loss(jnp.float32(opacity)), expected, rtol=1e-6)
    assert jax.grad(opacity_loss)(0.0) == 0.0


def test_entropy_against_numpy():
    opacity = np.linspace(0, 1, 12)
    o = np.clip(opacity, 1e-3, 1 - 1e-3)
    expected = -(o * np.log(o) + (1 - o) * np.log(1 - o))
    np.testing.assert_allclose(opacity_entropy(jnp.float32(opacity)), expected, rtol=1e-4)
    slope = jax.grad(lambda x: jnp.sum(opacity_entropy(x)))(jnp.float32(opacity))
    np.testing.assert_allclose(slope[1:-1], np.log((1 - o) / o)[1:-1], rtol=1e-4)
    # Thin gets thinner, thick thicker; what is settled is left alone, and nothing is infinite.
    assert (slope[1:6] > 0).all() and (slope[6:-1] < 0).all()
    assert slope[0] == 0.0 == slope[-1]


def test_transmittance_against_numpy():
    opacity = RNG.uniform(size=(6, 4, 5)) * np.linspace(0.1, 1.9, 6)[:, None, None].clip(0, 1)
    target = 0.3
    expected = [-min(1 - target, float(np.mean(1 - view))) for view in opacity]
    found = transmittance_loss(jnp.float32(opacity), target)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert len(set(expected)) > 2  # some over the target, some under it


def test_transmittance_pulls_down_to_the_target_and_no_further():
    gradient = jax.grad(lambda opacity, target: jnp.sum(transmittance_loss(opacity, target)))
    full, thin = jnp.full((2, 3), 0.5), jnp.full((2, 3), 0.1)
    np.testing.assert_allclose(gradient(full, 0.3), 1 / 6, rtol=1e-6)
    np.testing.assert_array_equal(gradient(thin, 0.3), 0.0)
    # Views are judged one by one: a thin one does not make up for a full one.
    both = gradient(jnp.stack([full, thin]), 0.3)
    np.testing.assert_allclose(both[0], 1 / 6, rtol=1e-6)
    np.testing.assert_array_equal(both[1], 0.0)
