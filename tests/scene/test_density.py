"""Blob, contrast and the exponential against float64 NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamjax.clock import Clock, Ramp
from dreamjax.scene.density import LARGEST_LOG_DENSITY, Blob, Contrast, Density, truncated_exp

RNG = np.random.default_rng(6)
MEAN = RNG.uniform(-0.6, 0.6, size=(64, 3))
LOG_DENSITY = RNG.normal(size=64)
END = Clock(100, 100)


def found(density, clock=END):
    at = jax.jit(
        lambda step: density(jnp.float32(LOG_DENSITY), jnp.float32(MEAN), Clock(step, 100))
    )
    return np.asarray(at(clock.step), np.float64)


def test_bias_and_blob_are_added_to_log_density():
    squared = np.sum(MEAN**2, axis=-1)
    blob = 4.0 * np.exp(-squared / (2 * 0.3**2))
    density = Density(bias=-2.0, blob=Blob(strength=4.0, width=0.3))
    np.testing.assert_allclose(found(density), np.exp(LOG_DENSITY + blob - 2.0), rtol=1e-5)
    plain = Density(bias=0.5, blob=None)
    np.testing.assert_allclose(found(plain), np.exp(LOG_DENSITY + 0.5), rtol=1e-5)


def test_a_flat_field_is_a_soft_ball():
    distance = np.array([0.0, 0.2, 0.4, 0.9])
    mean = jnp.float32(distance)[:, None] * jnp.array([1.0, 0.0, 0.0])
    log_density = np.log(Density()(jnp.zeros(4), mean, END))
    expected = 5.0 * np.exp(-0.5 * (distance / 0.2) ** 2) - 1.0
    np.testing.assert_allclose(log_density, expected, atol=1e-5)


@pytest.mark.parametrize(("power", "pivot"), [(3.0, 2.0), (0.5, 1.0)])
def test_power_is_contrast_about_the_pivot(power, pivot):
    plain = found(Density())
    assert plain.min() < pivot < plain.max()
    sharp = found(Density(contrast=Contrast(power=power, pivot=pivot)))
    np.testing.assert_allclose(sharp, pivot * (plain / pivot) ** power, rtol=1e-4)


def test_contrast_goes_by_the_time():
    density = Density(contrast=Contrast(power=Ramp(1.0, 3.0, (0.1, 0.3)), pivot=2.0))
    plain = found(Density())
    assert plain.min() < 1.0 and plain.max() > 4.0
    for step, power in ((0, 1.0), (10, 1.0), (20, 2.0), (25, 2.5), (30, 3.0), (100, 3.0)):
        expected = 2.0 * (plain / 2.0) ** power
        np.testing.assert_allclose(found(density, Clock(step, 100)), expected, rtol=1e-4)


def test_truncated_exp_against_numpy_and_at_extremes():
    x = np.linspace(-20, LARGEST_LOG_DENSITY, 50)
    value, slope = jax.vmap(jax.value_and_grad(truncated_exp))(jnp.float32(x))
    np.testing.assert_allclose(value, np.exp(x), rtol=2e-5)
    np.testing.assert_allclose(slope, np.exp(x), rtol=2e-5)
    for extreme in (-1e30, -1e3, 13.0, 1e3, 1e30):
        value, slope = jax.value_and_grad(truncated_exp)(jnp.float32(extreme))
        second = jax.grad(jax.grad(truncated_exp))(jnp.float32(extreme))
        expected = np.exp(min(extreme, LARGEST_LOG_DENSITY))
        np.testing.assert_allclose([value, slope, second], expected, rtol=1e-5)
