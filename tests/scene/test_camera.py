"""Cameras against float64 NumPy, the world's conventions, and the distribution of drawn ones."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamjax.scene.camera import (
    Cameras,
    direction,
    look_at,
    middle_camera,
    orbit,
    sample_camera,
)


@pytest.fixture(scope="module")
def drawn():
    """4000 cameras without jitter of position, so that distances can be read off."""
    cameras = Cameras(jitter_position=0.0)
    keys = jax.random.split(jax.random.key(0), 4000)
    return cameras, jax.device_get(jax.jit(jax.vmap(lambda k: sample_camera(k, cameras)))(keys))


def test_orbit_against_numpy():
    for azimuth, elevation, distance in [(0, 0, 3), (37, 22, 2.5), (-130, -40, 1.2), (181, 89, 4)]:
        a, e = np.deg2rad(np.float64(azimuth)), np.deg2rad(np.float64(elevation))
        away = np.array([np.cos(e) * np.cos(a), np.cos(e) * np.sin(a), np.sin(e)])
        right = np.cross([0.0, 0.0, 1.0], away)
        right /= np.linalg.norm(right)
        camera = orbit(azimuth, elevation, distance, 1.3)
        expected = np.stack([right, np.cross(away, right), away], axis=1)
        np.testing.assert_allclose(camera.position, distance * away, atol=1e-6)
        np.testing.assert_allclose(camera.rotation, expected, atol=2e-6)


def test_front_is_plus_x_and_azimuth_is_counter_clockwise_from_above():
    np.testing.assert_allclose(orbit(0, 0, 2, 1).position, [2, 0, 0], atol=1e-6)
    np.testing.assert_allclose(orbit(90, 0, 2, 1).position, [0, 2, 0], atol=1e-6)
    np.testing.assert_allclose(orbit(0, 90, 2, 1).position, [0, 0, 2], atol=1e-6)
    # Seen from the front, the world's +y is on the right and +z is up.
    np.testing.assert_allclose(orbit(0, 0, 2, 1).rotation[:, 0], [0, 1, 0], atol=1e-6)
    np.testing.assert_allclose(orbit(0, 0, 2, 1).rotation[:, 1], [0, 0, 1], atol=1e-6)


def test_straight_above_is_finite_and_keeps_its_azimuth():
    camera = orbit(30, 90, 2, 1)
    assert np.all(np.isfinite(camera.rotation))
    np.testing.assert_allclose(camera.rotation[:, 1], -direction(30.0, 0.0), atol=1e-6)


def test_the_middle_camera_stands_in_the_middle_of_those_drawn(drawn):
    config, cameras = drawn
    camera = middle_camera(config, 30.0, 20.0)
    distances = np.linalg.norm(cameras.position, axis=-1)
    assert float(np.linalg.norm(camera.position)) == pytest.approx(np.mean(distances), abs=0.02)
    assert float(camera.focal) == pytest.approx(np.mean(cameras.focal), abs=0.01)
    np.testing.assert_allclose(camera.position / 3.1, direction(30.0, 20.0), atol=1e-6)


def test_look_at_is_a_rotation_that_faces_the_target():
    position, target = jnp.array([1.0, -2.0, 0.5]), jnp.array([0.1, 0.2, -0.3])
    rotation = np.asarray(look_at(position, target, jnp.array([0.1, 0.0, 1.0])), np.float64)
    np.testing.assert_allclose(rotation.T @ rotation, np.eye(3), atol=1e-6)
    assert np.linalg.det(rotation) == pytest.approx(1.0, abs=1e-5)
    seen = rotation.T @ (np.asarray(target) - np.asarray(position))
    np.testing.assert_allclose(seen[:2], 0.0, atol=1e-6)
    assert seen[2] < 0.0


def test_drawn_cameras_keep_to_their_ranges(drawn):
    config, cameras = drawn
    for values, (low, high) in [
        (np.linalg.norm(cameras.position, axis=-1), config.distance),
        (cameras.focal, config.focal),
        (cameras.elevation, config.elevation),
        (cameras.azimuth, (-180.0, 180.0)),
    ]:
        assert low - 1e-4 <= values.min() < low + 0.02 * (high - low)
        assert high - 0.02 * (high - low) < values.max() <= high + 1e-4
    rotation = cameras.rotation.astype(np.float64)
    products = np.einsum("nij,nik->njk", rotation, rotation)
    np.testing.assert_allclose(products, np.broadcast_to(np.eye(3), products.shape), atol=1e-5)


def test_elevation_is_the_mixture_of_uniform_in_angle_and_in_area(drawn):
    config, cameras = drawn
    low, high = config.elevation
    sin_low, sin_high = np.sin(np.deg2rad([low, high]))
    for cut in (10.0, 30.0, 60.0):
        by_angle = (cut - low) / (high - low)
        by_area = (np.sin(np.deg2rad(cut)) - sin_low) / (sin_high - sin_low)
        expected = 0.5 * by_angle + 0.5 * by_area
        # Four standard errors of 4000 draws.
        assert np.mean(cameras.elevation < cut) == pytest.approx(expected, abs=0.032)
