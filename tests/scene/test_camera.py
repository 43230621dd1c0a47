"""Cameras against float64 NumPy, the world's conventions, and the distribution of drawn ones."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamjax.scene.camera import (
    FINE_VIEWS,
    VIEW_WORDS,
    CameraConfig,
    direction,
    fine_view_index,
    look_at,
    orbit,
    sample_camera,
    view_index,
)


@pytest.fixture(scope="module")
def drawn():
    """4000 cameras without jitter of position, so that distances can be read off."""
    config = CameraConfig(jitter_position=0.0)
    keys = jax.random.split(jax.random.key(0), 4000)
    return config, jax.device_get(jax.jit(jax.vmap(lambda k: sample_camera(k, config)))(keys))


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


def test_view_index_follows_the_definitions():
    cases = [
        (0, 0, "front"), (44, 10, "front"), (-44, 10, "front"), (359, 0, "front"),
        (46, 0, "side"), (90, 59, "side"), (-90, 0, "side"), (-134, 0, "side"), (270, 0, "side"),
        (136, 0, "back"), (180, 0, "back"), (-180, 0, "back"), (-136, 30, "back"), (540, 0, "back"),
        (0, 61, "overhead"), (180, 89, "overhead"), (0, 60, "front"), (0, -80, "front"),
    ]  # fmt: skip
    azimuth, elevation, words = zip(*cases, strict=True)
    index = view_index(jnp.array(azimuth, jnp.float32), jnp.array(elevation, jnp.float32))
    assert index.dtype == jnp.int32
    assert [VIEW_WORDS[i] for i in index] == list(words)


def test_fine_views_are_the_nearest_eighth_of_a_turn_at_three_heights():
    cases = [
        (0, 0, "level front"), (22, -10, "level front"), (-22, 25, "level front"),
        (359, 0, "level front"), (23, 0, "level front left"), (67, 0, "level front left"),
        (68, 0, "level left"), (90, 24, "level left"), (140, 0, "level back left"),
        (-180, 0, "level back"), (180, 0, "level back"), (540, 0, "level back"),
        (-140, 0, "level back right"), (270, 0, "level right"), (-90, 0, "level right"),
        (-45, 0, "level front right"), (0, 26, "high front"), (-91, 60, "high right"),
        (130, 61, "overhead back left"),
    ]  # fmt: skip
    azimuth, elevation, views = zip(*cases, strict=True)
    index = fine_view_index(jnp.array(azimuth, jnp.float32), jnp.array(elevation, jnp.float32))
    assert index.dtype == jnp.int32
    assert [FINE_VIEWS[i] for i in index] == list(views)
    assert len(set(FINE_VIEWS)) == 24


def test_fine_views_and_the_four_words_agree():
    azimuth = jnp.linspace(-200.0, 200.0, 801)
    for elevation in (0.0, 40.0, 80.0):
        elevations = jnp.full(azimuth.shape, elevation)
        coarse = [VIEW_WORDS[i] for i in view_index(azimuth, elevations)]
        fine = [FINE_VIEWS[i] for i in fine_view_index(azimuth, elevations)]
        for word, view in zip(coarse, fine, strict=True):
            height, along, *across = view.split()
            if word == "overhead" or height == "overhead":
                assert word == height
            elif along in ("left", "right"):
                assert word == "side"
            else:
                assert word == along or (across and word == "side")
