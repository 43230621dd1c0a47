"""The field against a float64 NumPy forward pass, its blob, and density at its extremes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamjax.scene.field import LARGEST_LOG_DENSITY, Field, FieldConfig, truncated_exp

CONFIG = FieldConfig(width=16, blocks=2, max_deg=4)
RNG = np.random.default_rng(4)


@pytest.fixture(scope="module")
def params():
    point = jnp.zeros((1, 3))
    return jax.jit(Field(CONFIG).init)(jax.random.key(0), point, point[:, :1])


def silu(x):
    return x / (1.0 + np.exp(-x))


def forward(params, mean, var):
    weights = jax.tree.map(np.float64, params["params"])

    def dense(name, x):
        return x @ weights[name]["kernel"] + weights[name]["bias"]

    degrees = 2.0 ** np.arange(CONFIG.min_deg, CONFIG.max_deg)[:, None]
    angle, decay = degrees * mean[:, None], np.exp(-0.5 * degrees**2 * var[:, None])
    x = np.concatenate(
        [(wave(angle) * decay).reshape(len(mean), -1) for wave in (np.sin, np.cos)], 1
    )
    x = silu(dense("stem", x))
    for i in range(CONFIG.blocks):
        x = x + dense(f"block_{i}_out", silu(dense(f"block_{i}_in", x)))
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
    out = dense("head", x)
    blob = CONFIG.blob_strength * np.exp(-np.sum(mean**2, -1) / (2 * CONFIG.blob_width**2))
    return np.exp(out[:, 0] + blob + CONFIG.density_bias), 1 / (1 + np.exp(-out[:, 1:]))


def test_field_against_numpy(params):
    mean = RNG.uniform(-1, 1, size=(64, 3))
    var = 10.0 ** RNG.uniform(-4, -1, size=(64, 3))
    shaken = jax.tree.map(lambda p: p + 0.3 * RNG.normal(size=p.shape).astype("float32"), params)
    apply = jax.jit(Field(CONFIG).apply)
    for tried in (params, shaken):
        found = apply(tried, jnp.float32(mean), jnp.float32(var))
        density, albedo = forward(tried, mean, var)
        np.testing.assert_allclose(found.density, density, rtol=1e-4)
        np.testing.assert_allclose(found.albedo, albedo, atol=1e-5)
    assert np.ptp(found.albedo) > 0.3


@pytest.mark.parametrize("power, pivot", [(3.0, 2.0), (0.5, 1.0)])
def test_power_is_contrast_about_the_pivot(params, power, pivot):
    mean, var = RNG.uniform(-0.5, 0.5, size=(64, 3)), np.full((64, 3), 0.01)
    apply = jax.jit(Field(CONFIG).apply, static_argnums=4)
    found = apply(params, jnp.float32(mean), jnp.float32(var), jnp.float32(power), pivot)
    density, albedo = forward(params, mean, var)
    assert density.min() < pivot < density.max()
    np.testing.assert_allclose(found.density, pivot * (density / pivot) ** power, rtol=1e-3)
    np.testing.assert_allclose(found.albedo, albedo, atol=1e-5)


def test_it_starts_as_a_soft_ball_of_the_configured_strength_and_width(params):
    distance = jnp.array([0.0, 0.2, 0.4, 0.9])
    mean = distance[:, None] * jnp.array([1.0, 0.0, 0.0])
    log_density = np.log(jax.jit(Field(CONFIG).apply)(params, mean, jnp.full((4, 1), 0.05)).density)
    expected = 5.0 * np.exp(-0.5 * (np.asarray(distance) / 0.2) ** 2) - 1.0
    np.testing.assert_allclose(log_density, expected, atol=0.5)
    assert np.all(np.diff(log_density) < -0.3)


def test_any_batch_shape_and_a_narrow_dtype(params):
    mean = jnp.float32(RNG.uniform(-1, 1, size=(2, 3, 4, 3)))
    out = jax.jit(Field(CONFIG).apply)(params, mean, jnp.full((2, 3, 4, 1), 0.01))
    assert out.density.shape == (2, 3, 4) and out.albedo.shape == (2, 3, 4, 3)
    narrow = FieldConfig(**{**CONFIG.__dict__, "dtype": "bfloat16"})
    half = jax.jit(Field(narrow).apply)(params, mean, jnp.full((2, 3, 4, 1), 0.01))
    assert half.density.dtype == half.albedo.dtype == jnp.float32
    np.testing.assert_allclose(half.albedo, out.albedo, atol=0.02)
    assert np.any(half.albedo != out.albedo)


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
