"""Draws of t: their range, evenness and ends."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamjax.diffusion.schedule import linear
from dreamjax.diffusion.timesteps import central, from_fractions, stratified, uniform


def test_uniform_is_even_over_the_half_open_range():
    t = jax.jit(uniform, static_argnums=1)(jax.random.key(0), (20000,), 3, 7)
    assert jnp.issubdtype(t.dtype, jnp.integer)
    counts = np.bincount(np.asarray(t), minlength=8)
    assert counts[:3].sum() == counts[7:].sum() == 0
    assert (np.abs(counts[3:7] - 5000) < 5 * np.sqrt(20000 * 0.25 * 0.75)).all()


def test_central_draws_have_the_density_of_beta_2_2():
    t = np.asarray(jax.jit(central, static_argnums=1)(jax.random.key(3), (40000,), 5, 13))
    edges = np.arange(9) / 8
    expected = np.diff(3 * edges**2 - 2 * edges**3)
    assert t.min() == 5 and t.max() == 12
    share = np.bincount(t - 5, minlength=8) / len(t)
    assert (np.abs(share - expected) < 5 * np.sqrt(expected / len(t))).all()


@pytest.mark.parametrize(
    ("num_steps", "t_range", "expected"),
    [
        (1000, (0.0, 1.0), (0, 1000)),
        (1000, (0.02, 0.98), (20, 980)),
        (100, (0.07, 0.29), (7, 29)),  # 0.07 * 100 is a little over 7
        (10, (0.5, 0.51), (5, 6)),
        (10, (0.99, 1.0), (9, 10)),
        (1, (0.0, 1.0), (0, 1)),
    ],
)
def test_from_fractions(num_steps, t_range, expected):
    schedule = linear(num_steps)
    assert tuple(map(int, from_fractions(schedule, t_range))) == expected
    traced = jax.jit(lambda r: from_fractions(schedule, r))(jnp.float32(t_range))
    assert tuple(map(int, traced)) == expected


def test_stratified_draws_one_in_each_part_and_covers_the_range_evenly():
    keys = jax.random.split(jax.random.key(1), 8000)
    t = np.asarray(jax.jit(jax.vmap(lambda key: stratified(key, 3, 4, 16)))(keys))
    assert ((t - 4) // 4 == [0, 1, 2]).all()
    counts = np.bincount(t.ravel() - 4, minlength=12)
    assert (np.abs(counts - 2000) < 5 * np.sqrt(24000 * (1 / 12) * (11 / 12))).all()
