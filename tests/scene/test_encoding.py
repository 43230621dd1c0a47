"""The encoding and the frustum's Gaussian against float64 NumPy formulas and integrals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamjax.scene.encoding import (
    conical_frustum_gaussian,
    integrated_pos_enc,
    isotropic,
    quarter_turns,
)
from dreamjax.scene.rays import Rays

RNG = np.random.default_rng(3)
DIRECTION = np.array([2.0, -1.0, 3.0]) / np.sqrt(14.0)
ORIGIN = np.array([0.3, -0.2, 0.1])


def encoded(mean, var, min_deg, max_deg):
    """Feature by feature: all sines, then all cosines; by degree; xyz fastest."""
    features = []
    for wave in (np.sin, np.cos):
        for degree in range(min_deg, max_deg):
            for axis in range(3):
                scale = 2.0**degree
                decay = np.exp(-0.5 * scale**2 * var[..., axis])
                features.append(wave(scale * mean[..., axis]) * decay)
    return np.stack(features, axis=-1)


def one_ray(radius):
    return Rays(jnp.float32(ORIGIN), jnp.float32(DIRECTION), jnp.float32(radius))


@pytest.mark.parametrize(("min_deg", "max_deg"), [(0, 8), (2, 5), (0, 1)])
def test_encoding_against_numpy(min_deg, max_deg):
    # Of float32 values, so that the test is of the encoding and not of rounding its argument.
    mean = np.float64(np.float32(RNG.uniform(-1.5, 1.5, size=(40, 5, 3))))
    var = np.float64(np.float32(10.0 ** RNG.uniform(-7, 0, size=(40, 5, 3))))
    found = integrated_pos_enc(jnp.float32(mean), jnp.float32(var), min_deg, max_deg)
    assert found.shape == (40, 5, 6 * (max_deg - min_deg)) and found.dtype == jnp.float32
    # Each doubling of the angle doubles the rounding: 2^7 * 6e-8 at the most.
    np.testing.assert_allclose(found, encoded(mean, var, min_deg, max_deg), atol=1e-5)


def test_one_variance_for_all_axes_broadcasts():
    mean = jnp.float32(RNG.uniform(-1, 1, size=(6, 3)))
    found = integrated_pos_enc(mean, jnp.full((6, 1), 0.01), 0, 6)
    np.testing.assert_array_equal(found, integrated_pos_enc(mean, jnp.full((6, 3), 0.01), 0, 6))


def test_encoding_is_the_expectation_of_waves():
    mean, deviation = np.array([0.3, -0.7, 1.1]), np.array([0.4, 0.1, 0.02])
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    weights = weights / weights.sum()
    points = mean[:, None] + deviation[:, None] * nodes
    expected = [
        np.sum(weights * wave(2.0**degree * points), axis=-1)
        for wave in (np.sin, np.cos)
        for degree in range(5)
    ]
    found = integrated_pos_enc(jnp.float32(mean), jnp.float32(deviation**2), 0, 5)
    np.testing.assert_allclose(found, np.concatenate(expected), atol=3e-6)


def test_encoding_at_extremes_is_finite_with_finite_gradients():
    encode = jax.jit(lambda mean, var: integrated_pos_enc(mean, var, 0, 8))
    slopes = jax.jit(jax.jacobian(encode, (0, 1)))
    for value in (0.0, 1e-20, 1.4, 1e3):
        for var in (0.0, 1e-30, 1e10):
            args = jnp.full(3, value), jnp.full(3, var)
            found, jacobian = encode(*args), slopes(*args)
            assert np.all(np.isfinite(found)) and np.all(np.abs(found) <= 1.0 + 1e-4)
            assert all(np.all(np.isfinite(j)) for j in jacobian)


@pytest.mark.parametrize(
    ("start", "end", "radius"), [(1.0, 1.5, 0.2), (0.0, 2.0, 0.5), (3, 3.1, 0.02)]
)
def test_frustum_gaussian_has_the_moments_of_uniform_points_in_the_frustum(start, end, radius):
    # Sections of the cone at t are discs of area ~ t^2 and variance (radius t)^2 / 4 across.
    nodes, weights = np.polynomial.legendre.leggauss(40)
    t = 0.5 * (start + end) + 0.5 * (end - start) * nodes
    weights = weights * t**2 / np.sum(weights * t**2)
    middle = np.sum(weights * t)
    along = np.sum(weights * (t - middle) ** 2)
    across = np.sum(weights * (radius * t) ** 2 / 4)
    covariance = along * np.outer(DIRECTION, DIRECTION) + across * (
        np.eye(3) - np.outer(DIRECTION, DIRECTION)
    )
    mean, var = conical_frustum_gaussian(one_ray(radius), jnp.float32([start, end]))
    np.testing.assert_allclose(mean[0], ORIGIN + middle * DIRECTION, atol=1e-6)
    np.testing.assert_allclose(var[0], np.diag(covariance), rtol=2e-5)


def test_frustum_gaussian_is_stable_far_away_and_at_the_apex():
    # Intervals of 1 at distance 1000: differences of cubes would leave no digit in float32.
    mean, var = conical_frustum_gaussian(one_ray(1e-3), jnp.float32([1000.0, 1001.0]))
    middle = 1000.5 + 2 * 1000.5 * 0.25 / (3 * 1000.5**2 + 0.25)
    np.testing.assert_allclose(mean[0], ORIGIN + middle * DIRECTION, rtol=1e-6)
    across = 1e-6 * (1000.5**2 / 4 + 5 / 48)
    expected = DIRECTION**2 / 12 + across * (1 - DIRECTION**2)
    np.testing.assert_allclose(var[0], expected, rtol=1e-5)
    mean, var = conical_frustum_gaussian(one_ray(0.1), jnp.zeros(2))
    np.testing.assert_allclose(mean[0], ORIGIN, atol=1e-7)
    np.testing.assert_array_equal(var, 0.0)


def test_isotropic_gaussian_is_the_midpoint_with_lambda():
    edges = np.array([0.5, 0.75, 2.0])
    mean, var = isotropic(one_ray(0.1), jnp.float32(edges), 0.03)
    expected = ORIGIN + np.array([[0.625], [1.375]]) * DIRECTION
    np.testing.assert_allclose(mean, expected, atol=1e-6)
    np.testing.assert_array_equal(var, np.full((2, 1), 0.03, np.float32))


@pytest.mark.parametrize("quarters", [0, 1, 2, 3, 5])
def test_quarter_turns_against_a_rotation_matrix(quarters):
    angle = 0.5 * np.pi * quarters
    rotation = np.array(
        [
            [np.cos(angle), -np.sin(angle), 0.0],
            [np.sin(angle), np.cos(angle), 0.0],
            [0.0, 0.0, 1.0],
        ]
    )
    mean, var = np.float32(RNG.normal(size=(7, 3))), np.float32(RNG.uniform(0.1, 1, (7, 3)))
    turned, spread = jax.jit(quarter_turns)(mean, var, jnp.int32(quarters))
    np.testing.assert_allclose(turned, mean @ rotation.T, atol=1e-6)
    whole = np.einsum("ij,nj,kj->nik", rotation, var, rotation)
    np.testing.assert_allclose(spread, np.diagonal(whole, axis1=1, axis2=2), atol=1e-6)
    # One variance for all directions stays one.
    np.testing.assert_array_equal(quarter_turns(mean, var[:, :1], quarters)[1], var[:, :1])
