"""Draws of t: their range, evenness and ends."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamjax.diffusion.schedule import linear
from dreamjax.diffusion.timesteps import (
    by_importance,
    from_fractions,
    late,
    probabilities,
    remember,
    second_moment,
    stratified,
    uniform,
)
from dreamjax.errors import UserError


@pytest.mark.parametrize("jit", [False, True])
def test_uniform_is_even_over_the_half_open_range(jit):
    draw = jax.jit(uniform, static_argnums=1) if jit else uniform
    t = draw(jax.random.key(0), (20000,), 3, 7)
    assert jnp.issubdtype(t.dtype, jnp.integer)
    counts = np.bincount(np.asarray(t), minlength=8)
    assert counts[:3].sum() == counts[7:].sum() == 0
    assert (np.abs(counts[3:7] - 5000) < 5 * np.sqrt(20000 * 0.25 * 0.75)).all()


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0, 3.0])
@pytest.mark.parametrize("jit", [False, True])
def test_late_draws_have_their_density(jit, power):
    draw = jax.jit(late, static_argnums=1) if jit else late
    t = np.asarray(draw(jax.random.key(3), (40000,), 5, 13, power))
    edges = np.arange(9) / 8
    expected = np.diff(edges ** (1.0 + power))  # the integral of (1 + power) u^power
    assert t.min() >= 5 and t.max() == 12
    share = np.bincount(t - 5, minlength=8) / len(t)
    assert (np.abs(share - expected) < 5 * np.sqrt(expected / len(t))).all()


def test_late_draws_of_power_0_are_even_draws_one_by_one():
    t = np.asarray(late(jax.random.key(4), (1000,), 0, 1000, 0.0))
    u = np.float64(jax.random.uniform(jax.random.key(4), (1000,)))
    np.testing.assert_array_equal(t, np.floor(1000 * u))


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


@pytest.mark.parametrize("jit", [False, True])
def test_stratified_against_float64(jit):
    draw = jax.jit(stratified, static_argnums=1) if jit else stratified
    u = np.float64(jax.random.uniform(jax.random.key(8), (500,)))
    expected = np.floor(3 + (np.arange(500) + u) / 500 * 996)
    found = draw(jax.random.key(8), 500, 3, 999)
    np.testing.assert_array_equal(found, expected)
    one = draw(jax.random.key(8), 1, 3, 999)
    np.testing.assert_array_equal(one, np.floor(3 + 996 * jax.random.uniform(jax.random.key(8))))


@pytest.mark.parametrize("jit", [False, True])
def test_second_moment_against_lists(jit):
    """The memory and its probabilities, against Python lists of the last losses."""
    rng = np.random.default_rng(5)
    memory, lists = second_moment(6, history=3), [[] for _ in range(6)]
    update = jax.jit(remember) if jit else remember
    for _ in range(12):
        t, losses = rng.integers(0, 6, 5), np.float32(rng.uniform(0.1, 2.0, 5))
        memory = update(memory, jnp.asarray(t), jnp.asarray(losses))
        for index, loss in zip(t, losses, strict=True):
            lists[index] = [*lists[index], loss][-3:]
        p = np.asarray(jax.jit(probabilities)(memory))
        np.testing.assert_allclose(probabilities(memory), p, rtol=1e-6)
        np.testing.assert_allclose(p.sum(), 1.0, rtol=1e-5)
        if min(map(len, lists)) < 3:
            np.testing.assert_allclose(p, 1 / 6, rtol=1e-6)
        else:
            root = np.sqrt([np.mean(np.square(row)) for row in lists])
            np.testing.assert_allclose(p, 0.999 * root / root.sum() + 0.001 / 6, rtol=1e-5)
    assert min(map(len, lists)) == 3  # the second branch was reached


@pytest.mark.usefixtures("unchecked")
def test_losses_of_another_number_than_t():
    with pytest.raises(UserError, match=r"losses \[1\], t \[2\]"):
        remember(second_moment(6), jnp.array([0, 1]), jnp.ones(1))


@pytest.mark.parametrize("jit", [False, True])
def test_importance_keeps_the_mean_and_lowers_the_variance(jit):
    p = jnp.array([0.7, 0.2, 0.05, 0.05])
    losses = jnp.array([7.0, 2.0, 0.5, 0.6])
    draw = jax.jit(by_importance, static_argnums=1) if jit else by_importance
    t, weights = draw(jax.random.key(2), (50000,), p)
    np.testing.assert_allclose(weights, 1 / (4 * np.float64(p)[t]), rtol=1e-6)
    share = np.bincount(np.asarray(t), minlength=4) / 50000
    np.testing.assert_allclose(share, p, atol=5 * np.sqrt(0.25 / 50000))
    np.testing.assert_allclose(np.mean(weights * losses[t]), losses.mean(), rtol=0.02)
    even = losses[uniform(jax.random.key(3), (50000,), 0, 4)]
    assert np.var(weights * losses[t]) < 0.02 * np.var(even)
