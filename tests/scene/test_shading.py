"""Diffuse shading against float64 NumPy, and how lights and looks are drawn."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamjax.scene.shading import (
    Light,
    Shading,
    headlight,
    lambertian,
    sample_light,
    sample_shading,
)

RNG = np.random.default_rng(1)
ALBEDO = RNG.uniform(size=(50, 3))
NORMAL = RNG.normal(size=(50, 3))
NORMAL /= np.linalg.norm(NORMAL, axis=-1, keepdims=True)
POINT = 0.5 * RNG.normal(size=(50, 3))
LIGHT = np.array([1.0, -2.0, 2.5])


def shading(ambient, diffuse, textureless=0.0):
    return Shading(jnp.float32(LIGHT), *map(jnp.float32, (ambient, diffuse, textureless)))


def lit(*args):
    return np.asarray(lambertian(*map(jnp.float32, (ALBEDO, NORMAL, POINT)), shading(*args)))


def test_lambertian_against_numpy():
    to_light = (LIGHT - POINT) / np.linalg.norm(LIGHT - POINT, axis=-1, keepdims=True)
    cosine = np.maximum(np.sum(NORMAL * to_light, axis=-1, keepdims=True), 0.0)
    assert 5 < np.sum(cosine == 0) < 45
    np.testing.assert_allclose(lit(0.1, 0.9), ALBEDO * (0.1 + 0.9 * cosine), atol=1e-6)
    white = np.broadcast_to(0.1 + 0.9 * cosine, ALBEDO.shape)
    np.testing.assert_allclose(lit(0.1, 0.9, 1.0), white, atol=1e-6)


def test_ambient_alone_shows_albedo():
    np.testing.assert_array_equal(lit(1.0, 0.0), np.float32(ALBEDO))


def test_no_normal_is_ambient_light_alone_with_a_finite_gradient():
    def color(normal):
        args = jnp.ones(3), normal, jnp.zeros(3), shading(0.2, 0.8)
        return jnp.sum(lambertian(*args))

    value, gradient = jax.value_and_grad(color)(jnp.zeros(3))
    assert value == pytest.approx(0.6, abs=1e-6)
    assert np.all(np.isfinite(gradient))


def test_lights_keep_their_distance_and_stay_near_the_camera():
    light = Light(distance=(0.8, 1.5), spread=0.3)
    keys = jax.random.split(jax.random.key(0), 2000)
    camera = jnp.array([0.0, 3.0, 0.0])
    lights = np.asarray(jax.jit(jax.vmap(lambda k: sample_light(k, camera, light)))(keys))
    distance = np.linalg.norm(lights, axis=-1)
    assert 0.8 - 1e-5 < distance.min() < 0.82 and 1.48 < distance.max() < 1.5 + 1e-5
    cosine = lights[:, 1] / distance
    assert np.mean(cosine > np.cos(np.deg2rad(60))) > 0.97
    assert np.std(lights[:, 0] / distance) == pytest.approx(0.29, abs=0.05)


def test_looks_come_with_their_probabilities():
    light = Light(ambient=0.1, diffuse=0.9, shaded=0.75, textureless=0.5)
    keys = jax.random.split(jax.random.key(1), 4000)
    drawn = jax.jit(jax.vmap(lambda k: sample_shading(k, jnp.ones(3), light)))(keys)
    shaded = np.asarray(drawn.diffuse) > 0
    textureless = np.asarray(drawn.textureless) > 0.5
    assert shaded.mean() == pytest.approx(0.75, abs=0.03)
    assert textureless[shaded].mean() == pytest.approx(0.5, abs=0.04)
    assert not np.any(textureless[~shaded])
    np.testing.assert_allclose(np.asarray(drawn.ambient)[~shaded], 1.0)
    np.testing.assert_allclose(np.asarray(drawn.ambient)[shaded], 0.1)


def test_the_headlight_stands_above_the_camera_and_lights_white_in_full():
    shading = headlight(jnp.array([3.0, 0.0, 1.0]))
    np.testing.assert_array_equal(shading.light_position, [3.0, 0.0, 2.0])
    towards = shading.light_position / jnp.linalg.norm(shading.light_position)
    seen = lambertian(jnp.ones(3), towards, jnp.zeros(3), shading)
    np.testing.assert_allclose(seen, 1.0, atol=1e-6)
    away = lambertian(jnp.ones(3), -towards, jnp.zeros(3), shading)
    np.testing.assert_allclose(away, 0.45, atol=1e-6)
