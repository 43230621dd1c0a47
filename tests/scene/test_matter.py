"""What the renderer is given: field, density and front put together."""

import functools

import jax
import numpy as np
import pytest

from dreamjax.clock import Clock, Ramp
from dreamjax.scene.density import Blob, Contrast, Density
from dreamjax.scene.fields.mlp import Mlp
from dreamjax.scene.matter import matter_fn

FIELD = Mlp(width=16, blocks=1, max_deg=3)
DENSITY = Density(-1.0, Blob(3.0, 0.4), Contrast(Ramp(1.0, 4.0), 2.0))
MEAN = np.float32(np.random.default_rng(7).uniform(-1, 1, size=(50, 3)))
VAR = np.float32([[0.01, 0.02, 0.03]])
PARAMS = jax.tree.map(lambda p: 3.0 * p, FIELD.init(jax.random.key(0)))


pytestmark = pytest.mark.usefixtures("quick_compilation")


@functools.partial(jax.jit, static_argnames="turned")
def matter(mean, var, step, front, turned=True):
    return matter_fn(FIELD, DENSITY, PARAMS, Clock(step, 10), front if turned else None)(mean, var)


def test_matter_is_the_fields_albedo_and_the_density_of_its_time():
    out = jax.jit(FIELD)(PARAMS, MEAN, VAR)
    density = jax.jit(lambda step: DENSITY(out.log_density, MEAN, Clock(step, 10)))
    for step in (0, 5, 10):
        found = matter(MEAN, VAR, step, 0, turned=False)
        np.testing.assert_allclose(found.albedo, out.albedo, atol=1e-6)
        np.testing.assert_allclose(found.density, density(step), rtol=1e-4)
    assert not np.allclose(density(0), density(10), rtol=0.1)


def test_the_front_is_turned_to_azimuth_0():
    for quarters in range(4):
        angle = 0.5 * np.pi * quarters
        rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        there = MEAN.copy()
        there[:, :2] = MEAN[:, :2] @ rotation.T
        spread = VAR[:, [1, 0, 2]] if quarters % 2 else VAR
        expected = matter(there, spread, 3, 0, turned=False)
        found = matter(MEAN, VAR, 3, quarters)
        np.testing.assert_allclose(found.density, expected.density, rtol=1e-4)
        np.testing.assert_allclose(found.albedo, expected.albedo, atol=1e-5)
    assert np.abs(found.albedo - matter(MEAN, VAR, 3, 0).albedo).max() > 0.01
