"""Rays against a float64 pinhole projection, and their meeting with the sphere against geometry."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamjax.scene.camera import orbit
from dreamjax.scene.rays import camera_rays, intersect_sphere

SIZE = 8


def test_rays_pass_through_the_pixels_that_their_points_project_to():
    camera = orbit(25, 35, 3, 1.2)
    rays = camera_rays(camera, SIZE)
    points = np.asarray(rays.origin, np.float64) + 2.7 * np.asarray(rays.direction, np.float64)
    away = points - np.asarray(camera.position, np.float64)
    local = away @ np.asarray(camera.rotation, np.float64)
    column = (1.2 * local[..., 0] / -local[..., 2] + 0.5) * SIZE - 0.5
    row = (0.5 - 1.2 * local[..., 1] / -local[..., 2]) * SIZE - 0.5
    expected_row, expected_column = np.mgrid[:SIZE, :SIZE]
    np.testing.assert_allclose(column, expected_column, atol=2e-5)
    np.testing.assert_allclose(row, expected_row, atol=2e-5)
    np.testing.assert_allclose(np.linalg.norm(rays.direction, axis=-1), 1.0, atol=1e-6)


def test_cone_radius_is_the_scaled_distance_between_neighbours():
    rays = camera_rays(orbit(0, 0, 3, 1.2), 64)
    direction = np.asarray(rays.direction, np.float64)
    # Where the pixels' rays cross one plane at unit distance along the middle ray.
    depth = -direction[..., :1]
    spacing = np.linalg.norm(np.diff(direction / depth, axis=1), axis=-1)
    expected = spacing * depth[:, 1:, 0] * 2 / np.sqrt(12)
    np.testing.assert_allclose(rays.radius[:, 1:], expected, rtol=1e-4)
    assert np.ptp(rays.radius) > 0.05 * np.max(rays.radius)


def test_ends_lie_on_the_sphere_and_match_the_quadratic():
    rng = np.random.default_rng(0)
    origin = rng.normal(size=(500, 3))
    origin *= 3.0 / np.linalg.norm(origin, axis=-1, keepdims=True)
    direction = -origin / 3.0 + 0.3 * rng.normal(size=(500, 3))
    direction /= np.linalg.norm(direction, axis=-1, keepdims=True)
    near, far, hit = intersect_sphere(jnp.float32(origin), jnp.float32(direction), 1.4)
    b = np.sum(origin * direction, axis=-1)
    discriminant = b**2 - (np.sum(origin**2, axis=-1) - 1.4**2)
    clear = np.abs(discriminant) > 1e-3
    np.testing.assert_array_equal(hit[clear], discriminant[clear] > 0)
    meets = clear & (discriminant > 0)
    assert 100 < meets.sum() < 490
    root = np.sqrt(discriminant[meets])
    np.testing.assert_allclose(near[meets], (-b[meets] - root), atol=2e-4)
    np.testing.assert_allclose(far[meets], (-b[meets] + root), atol=2e-4)


@pytest.mark.parametrize(
    ("origin", "direction", "near", "far", "hit"),
    [
        ([0, 0, 0], [1, 0, 0], 0, 1, True),
        ([0.5, 0, 0], [1, 0, 0], 0, 0.5, True),
        ([3, 0, 0], [-1, 0, 0], 2, 4, True),
        ([3, 0, 0], [1, 0, 0], 0, 0, False),
        ([3, 2, 0], [-1, 0, 0], 3, 3, False),
    ],
)
def test_rays_from_inside_away_and_past(origin, direction, near, far, hit):
    found = intersect_sphere(jnp.float32(origin), jnp.float32(direction), 1.0)
    np.testing.assert_allclose(found[:2], (near, far), atol=1e-6)
    assert bool(found[2]) is hit


def test_gradient_is_finite_where_a_ray_touches_or_misses():
    def chord(origin):
        near, far, _ = intersect_sphere(origin, jnp.array([-1.0, 0.0, 0.0]), 1.0)
        return far - near

    for offset in (0.0, 1.0, 2.0):
        assert np.all(np.isfinite(jax.grad(chord)(jnp.array([3.0, offset, 0.0]))))
