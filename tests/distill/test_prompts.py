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
from dreamjax.priors.base import Text
from dreamjax.scene.camera import VIEW_WORDS, view_index


def test_view_prompts():
    assert view_prompts(" a red ball ") == [
        "a red ball, front view",
        "a red ball, side view",
        "a red ball, back view",
        "a red ball, overhead view",
    ]
    assert len(VIEW_WORDS) == 4
    for empty in ("", "  "):
        with pytest.raises(UserError, match="empty"):
            view_prompts(empty)


def test_embed_views():
    prompts = ("", "ugly", *view_prompts("a red ball"))
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
    shares = np.float64(view_shares(jnp.float32(azimuth), jnp.zeros(len(azimuth))))
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
    word = view_index(azimuth, elevation)
    np.testing.assert_array_equal(word, [0, 0, 1, 1, 1, 2, 2, 3])
    np.testing.assert_array_equal(view_shares(azimuth, elevation), np.eye(4)[word])
    rng = np.random.default_rng(0)
    text = Text(jnp.float32(rng.normal(size=(4, 5, 6))), jnp.asarray(rng.random((4, 5)) < 0.5))
    mixed = interpolated_text(text, azimuth, elevation)
    jax.tree.map(np.testing.assert_array_equal, mixed, nearest_text(text, word))


def test_interpolated_text_is_between_its_neighbours():
    rng = np.random.default_rng(1)
    tokens, mask = rng.normal(size=(4, 5, 6)), np.tri(4, 5, dtype=bool)
    text = Text(jnp.float32(tokens), jnp.asarray(mask))
    azimuth, elevation = jnp.array([-30.0, 153.0, 153.0]), jnp.array([0.0, 9.0, 75.0])
    mixed = jax.jit(interpolated_text)(text, azimuth, elevation)
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
