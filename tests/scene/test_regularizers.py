"""The penalties against float64 NumPy, and which of their arguments they move."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamjax.scene.regularizers import (
    normal_variation,
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


def test_variation_of_normals_against_numpy():
    normal, opacity = RNG.normal(size=(2, 4, 4, 3)), RNG.uniform(size=(2, 4, 4))
    expected = np.zeros(2)
    for view in range(2):
        for i, j in np.ndindex(4, 4):
            for k, m in ((i + 1, j), (i, j + 1)):
                if k < 4 and m < 4:
                    apart = np.linalg.norm(normal[view, i, j] - normal[view, k, m])
                    both = opacity[view, i, j] * opacity[view, k, m]
                    expected[view] += 4 * both * np.hypot(apart, 0.01)
    args = jnp.float32(normal), jnp.float32(opacity)
    np.testing.assert_allclose(normal_variation(*args), expected, rtol=1e-5)
    gradients = jax.grad(lambda *args: jnp.sum(normal_variation(*args)), argnums=(0, 1))(*args)
    assert np.abs(gradients[0]).min() > 1e-3
    np.testing.assert_array_equal(gradients[1], 0.0)
    flat = jax.grad(lambda n: jnp.sum(normal_variation(n, args[1])))(jnp.ones((2, 4, 4, 3)))
    np.testing.assert_array_equal(flat, 0.0)


def test_a_dent_costs_but_an_edge_costs_what_a_curve_does():
    """Across a picture normals turn by a right angle: at once, or bit by bit, or there and back
    first. The least a pair costs, 0.01 of width, is left out."""

    def cost(*angles, size=16):
        angle = np.interp(np.linspace(0, 1, size), np.linspace(0, 1, len(angles)), angles)
        normal = np.stack([np.cos(angle), np.sin(angle), 0 * angle], axis=-1)
        picture = jnp.float32(np.broadcast_to(normal, (size, size, 3)))
        return float(normal_variation(picture, jnp.ones((size, size)))) / size**2

    turn, flat = np.pi / 2, cost(0, 0)
    edge, curve = cost(*[0] * 8, *[turn] * 8) - flat, cost(0, turn) - flat
    assert flat == pytest.approx(2 * 15 * 0.01, rel=1e-4)
    assert edge == pytest.approx(np.hypot(np.sqrt(2), 0.01) - 0.01, rel=1e-3)
    assert curve == pytest.approx(15 * (np.hypot(2 * np.sin(turn / 30), 0.01) - 0.01), rel=1e-3)
    assert 0.9 * edge < curve < 1.1 * edge and cost(0, turn, 0, turn) - flat > 2.5 * curve
    # At twice as wide it is four times as much, as what is summed over pixels.
    assert cost(0, turn, size=32) == pytest.approx(curve + flat, rel=0.15)


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
