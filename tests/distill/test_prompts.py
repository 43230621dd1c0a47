"""View-dependent text."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamjax.diffusion.schedule import linear
from dreamjax.distill.prompts import (
    embed_views,
    interpolated_text,
    nearest_text,
    negative_weights,
    view_prompts,
    view_shares,
)
from dreamjax.errors import UserError
from dreamjax.priors.analytic import AnalyticParams, AnalyticPrior
from dreamjax.priors.base import PAPER_VIEWS, Text
from dreamjax.scene.camera import VIEW_WORDS, name_index, view_index


def test_view_prompts():
    assert view_prompts(" a red ball ", PAPER_VIEWS) == [
        "a red ball, front view",
        "a red ball, side view",
        "a red ball, back view",
        "a red ball, overhead view",
    ]
    rows = ((10.0, ("front view", "back view")), (90.0, ("top",)))
    assert view_prompts("a ball", rows) == [
        "a ball, front view",
        "a ball, back view",
        "a ball, top",
    ]
    for empty in ("", "  "):
        with pytest.raises(UserError, match="empty"):
            view_prompts(empty, PAPER_VIEWS)


def test_embed_views():
    prompts = ("", "ugly", *view_prompts("a red ball", PAPER_VIEWS))
    mu = jnp.arange(6.0)[:, None, None, None] * jnp.ones((1, 2, 2, 3))
    prior = AnalyticPrior(linear(), 2, prompts)
    params = AnalyticParams(mu, jnp.ones((2, 2, 3)))
    for negative, row in (("", 0.0), (" ugly ", 1.0)):
        text, null = embed_views(prior, params, "a red ball", negative)
        assert text.tokens.shape == (4, 1, 12) and text.mask.shape == (4, 1)
        assert null.tokens.shape == (1, 1, 12) and null.mask.shape == (1, 1)
        np.testing.assert_array_equal(text.tokens[:, 0, 0], [2.0, 3.0, 4.0, 5.0])
        np.testing.assert_array_equal(null.tokens[0, 0], row)
    with pytest.raises(UserError, match="a tree, front view"):
        embed_views(prior, params, "a tree")


def test_shares_are_linear_between_the_words():
    azimuth = np.linspace(-540.0, 540.0, 4321)
    zeros = jnp.zeros(len(azimuth))
    shares = np.float64(view_shares(jnp.float32(azimuth), zeros, PAPER_VIEWS))
    off = np.abs((azimuth + 180.0) % 360.0 - 180.0)
    for word, corners in (("front", [1, 0, 0]), ("side", [0, 1, 0]), ("back", [0, 0, 1])):
        expected = np.interp(off, [0.0, 90.0, 180.0], corners)
        np.testing.assert_allclose(shares[:, VIEW_WORDS.index(word)], expected, atol=1e-6)
    np.testing.assert_array_equal(shares[:, 3], 0.0)
    np.testing.assert_allclose(shares.sum(1), 1.0, rtol=1e-6)
    assert np.abs(np.diff(shares, axis=0)).max() < 0.25 / 90 + 1e-6  # continuous all the way round


def test_the_middle_of_a_view_has_its_word_alone():
    azimuth = jnp.array([0.0, 360.0, 90.0, -90.0, 270.0, 180.0, -180.0, 30.0])
    elevation = jnp.array([0.0, 60.0, -10.0, 0.0, 0.0, 0.0, 0.0, 60.5])
    word = name_index(PAPER_VIEWS, azimuth, elevation)
    np.testing.assert_array_equal(word, [0, 0, 1, 1, 1, 2, 2, 3])
    np.testing.assert_array_equal(view_shares(azimuth, elevation, PAPER_VIEWS), np.eye(4)[word])
    rng = np.random.default_rng(0)
    text = Text(jnp.float32(rng.normal(size=(4, 5, 6))), jnp.asarray(rng.random((4, 5)) < 0.5))
    mixed = interpolated_text(text, azimuth, elevation, PAPER_VIEWS)
    jax.tree.map(np.testing.assert_array_equal, mixed, nearest_text(text, word))


def test_the_papers_names_say_what_its_words_do():
    azimuth, elevation = np.meshgrid(np.arange(-720.0, 720.5, 0.5), np.arange(-90.0, 90.5, 2.5))
    found = name_index(PAPER_VIEWS, jnp.float32(azimuth), jnp.float32(elevation))
    np.testing.assert_array_equal(found, view_index(azimuth, elevation))


def test_finer_names_against_loops():
    """Rows of five, four and one name: the nearest of its row, shares of its neighbours there."""
    names = (
        (15.0, ("front", "front and side", "side", "back and side", "back")),
        (60.0, ("a", "b", "c", "d")),
        (90.0, ("top",)),
    )
    rng = np.random.default_rng(3)
    azimuth, elevation = rng.uniform(-540, 540, 200), rng.uniform(-30, 90, 200)
    azimuth, elevation = np.float32(azimuth), np.float32(elevation)
    found = np.asarray(name_index(names, azimuth, elevation))
    shares = np.asarray(view_shares(jnp.asarray(azimuth), jnp.asarray(elevation), names))
    for i, (a, e) in enumerate(zip(azimuth, elevation, strict=True)):
        off = min(a % 360.0, -a % 360.0)
        row = 0 if e <= 15.0 else 1 if e <= 60.0 else 2
        first, count = ((0, 5), (5, 4), (9, 1))[row]
        angles = np.linspace(0.0, 180.0, count) if count > 1 else np.array([off])
        expected = np.zeros(10)
        gap = 180.0 / max(count - 1, 1)
        expected[first : first + count] = np.maximum(0.0, 1.0 - np.abs(off - angles) / gap)
        np.testing.assert_allclose(shares[i], expected, atol=1e-5)
        assert found[i] == first + np.argmin(np.abs(off - angles))


def test_interpolated_text_is_between_its_neighbours():
    rng = np.random.default_rng(1)
    tokens, mask = rng.normal(size=(4, 5, 6)), np.tri(4, 5, dtype=bool)
    text = Text(jnp.float32(tokens), jnp.asarray(mask))
    azimuth, elevation = jnp.array([-30.0, 153.0, 153.0]), jnp.array([0.0, 9.0, 75.0])
    mixed = jax.jit(interpolated_text, static_argnums=3)(text, azimuth, elevation, PAPER_VIEWS)
    np.testing.assert_allclose(mixed.tokens[0], (2 * tokens[0] + tokens[1]) / 3, rtol=0, atol=1e-5)
    np.testing.assert_allclose(
        mixed.tokens[1], 0.3 * tokens[1] + 0.7 * tokens[2], rtol=0, atol=1e-5
    )
    np.testing.assert_array_equal(mixed.tokens[2], text.tokens[3])
    np.testing.assert_array_equal(mixed.mask, [mask[0] | mask[1], mask[1] | mask[2], mask[3]])


def test_negative_weights_are_the_published_ones():
    """a exp(-b r) + c with threestudio's a, b, c, which are rounded to three digits."""
    azimuth = np.linspace(-360.0, 360.0, 1441)
    off = np.abs((azimuth + 180.0) % 360.0 - 180.0)
    r = np.where(off < 90, 1 - off / 90, 2 - off / 90)
    front = np.where(off < 90, 4 * np.exp(-r / 2) - 2.426, np.exp(-r / 2) + 0.967)
    side = np.where(off < 90, 4 * np.exp(-(1 - r) / 2) - 2.426, np.exp(-r / 2) - 0.606)
    found = np.float64(jax.jit(negative_weights)(jnp.float32(azimuth), jnp.zeros(len(azimuth))))
    np.testing.assert_allclose(found, [front, side], rtol=0, atol=1e-3)
    assert found.min() >= -1e-6
    # Continuous, 0 where a text says what is seen, and the front's grows all the way to the back.
    assert np.abs(np.diff(found, axis=1)).max() < 0.5 * 2.0 / 90 + 1e-6
    at = {angle: found[:, np.searchsorted(azimuth, angle)] for angle in (0.0, 90.0, 180.0)}
    np.testing.assert_allclose([at[0.0][0], at[90.0][1]], 0.0, atol=1e-6)
    assert (np.diff(found[0, (azimuth >= 0) & (azimuth <= 180)]) > 0).all()
    above = negative_weights(jnp.float32(azimuth), jnp.full(len(azimuth), 61.0))
    np.testing.assert_array_equal(above, 0.0)
