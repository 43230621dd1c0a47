"""The MLP against a float64 NumPy forward pass."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamjax.scene.fields.mlp import Mlp

FIELD = Mlp(width=16, blocks=2, max_deg=4)
RNG = np.random.default_rng(4)


@pytest.fixture(scope="module")
def params():
    return jax.jit(FIELD.init)(jax.random.key(0))


def silu(x):
    return x / (1.0 + np.exp(-x))


def forward(params, mean, var):
    weights = jax.tree.map(np.float64, params)

    def dense(name, x):
        return x @ weights[name]["kernel"] + weights[name]["bias"]

    degrees = 2.0 ** np.arange(FIELD.min_deg, FIELD.max_deg)[:, None]
    angle, decay = degrees * mean[:, None], np.exp(-0.5 * degrees**2 * var[:, None])
    x = np.concatenate(
        [(wave(angle) * decay).reshape(len(mean), -1) for wave in (np.sin, np.cos)], 1
    )
    x = silu(dense("stem", x))
    for i in range(FIELD.blocks):
        x = x + dense(f"block_{i}_out", silu(dense(f"block_{i}_in", x)))
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
    out = dense("head", x)
    return out[:, 0], 1 / (1 + np.exp(-out[:, 1:]))


def test_field_against_numpy(params):
    mean = RNG.uniform(-1, 1, size=(64, 3))
    var = 10.0 ** RNG.uniform(-4, -1, size=(64, 3))
    shaken = jax.tree.map(lambda p: p + 0.3 * RNG.normal(size=p.shape).astype("float32"), params)
    for tried in (params, shaken):
        found = jax.jit(FIELD)(tried, jnp.float32(mean), jnp.float32(var))
        log_density, albedo = forward(tried, mean, var)
        # Densities to 1e-4 of themselves.
        np.testing.assert_allclose(found.log_density, log_density, atol=1e-4)
        np.testing.assert_allclose(found.albedo, albedo, atol=1e-5)
    assert np.ptp(found.albedo) > 0.3 and np.ptp(found.log_density) > 0.5


def test_it_starts_all_but_flat(params):
    """What is added to its log density is what one sees first."""
    mean = jnp.float32(RNG.uniform(-1, 1, size=(200, 3)))
    found = jax.jit(FIELD)(params, mean, jnp.full((200, 1), 0.05))
    assert 0.0 < np.abs(found.log_density).max() < 0.5
    np.testing.assert_allclose(found.albedo, 0.5, atol=0.1)


def test_any_batch_shape_and_a_narrow_dtype(params):
    mean = jnp.float32(RNG.uniform(-1, 1, size=(2, 3, 4, 3)))
    out = jax.jit(FIELD)(params, mean, jnp.full((2, 3, 4, 1), 0.01))
    assert out.log_density.shape == (2, 3, 4) and out.albedo.shape == (2, 3, 4, 3)
    narrow = dataclasses.replace(FIELD, dtype="bfloat16")
    half = jax.jit(narrow)(params, mean, jnp.full((2, 3, 4, 1), 0.01))
    assert half.log_density.dtype == half.albedo.dtype == jnp.float32
    np.testing.assert_allclose(half.albedo, out.albedo, atol=0.02)
    assert np.any(half.albedo != out.albedo)
