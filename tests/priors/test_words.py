"""View-dependent text: what a view is called, and what a prior is asked with for it."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamjax.errors import UserError
from dreamjax.nets.text import Text
from dreamjax.priors.analytic import Analytic, AnalyticParams
from dreamjax.priors.base import Prompt
from dreamjax.priors.words import (
    PAPER_VIEWS,
    embed_views,
    interpolated_text,
    nearest_text,
    negative_weights,
    view_shares,
    view_texts,
)
from dreamjax.scene.camera import orbit
from dreamjax.scene.views import VIEW_WORDS, Views, name_index, view_index


def views_at(azimuth, elevation, textureless=None):
    """Views from these angles in degrees; with texture unless it is said."""
    azimuth, elevation = jnp.float32(azimuth), jnp.float32(elevation)
    camera = jax.vmap(lambda a, e: orbit(a, e, 3.0, 1.2))(azimuth, elevation)
    count = len(azimuth)
    bare = jnp.zeros(count) if textureless is None else jnp.float32(textureless)
    return Views(camera, jnp.arange(count), jnp.ones(count), bare)


def test_view_texts():
    assert view_texts(" a red\n ball ", PAPER_VIEWS) == [
        "a red ball, front view",
        "a red ball, side view",
        "a red ball, back view",
        "a red ball, overhead view",
    ]
    rows = ((10.0, ("front view", "back view")), (90.0, ("top",)))
    assert view_texts("a ball", rows) == [
        "a ball, front view",
        "a ball, back view",
        "a ball, top",
    ]
    assert view_texts("雪だるま", rows)[2] == "雪だるま, top"


@pytest.mark.parametrize("empty", ["", "  ", "!!!", "🦊", "-- . \n?", "!" * 5000])
def test_a_prompt_without_a_word_is_refused_in_one_line(empty):
    with pytest.raises(UserError, match="has no word in it: say what to make") as error:
        view_texts(empty, PAPER_VIEWS)
    assert "\n" not in str(error.value) and len(str(error.value)) < 120


PROMPTS = ("", "ugly", *view_texts("a red ball", PAPER_VIEWS))
BARE = tuple(view_texts("a ball of clay", PAPER_VIEWS))
PRIOR = Analytic(texts=(*PROMPTS, *BARE), image_size=2)
PARAMS = AnalyticParams(
    jnp.arange(10.0)[:, None, None, None] * jnp.ones((1, 2, 2, 3)), jnp.ones((2, 2, 3))
)
read = functools.partial(PRIOR.embed_texts, PARAMS)


def test_embed_views():
    for negative, row in (("", 0.0), (" ugly ", 1.0)):
        found = embed_views(read, Prompt("a red ball", negative), PAPER_VIEWS)
        assert found.texts.tokens.shape == (4, 1, 12) and found.texts.mask.shape == (4, 1)
        assert found.null.tokens.shape == (1, 1, 12) and found.null.mask.shape == (1, 1)
        assert found.textureless is None
        np.testing.assert_array_equal(found.texts.tokens[:, 0, 0], [2.0, 3.0, 4.0, 5.0])
        np.testing.assert_array_equal(found.null.tokens[0, 0], row)
    found = embed_views(read, Prompt("a red ball"), PAPER_VIEWS, "a ball of clay")
    np.testing.assert_array_equal(found.texts.tokens[:, 0, 0], [2.0, 3.0, 4.0, 5.0])
    np.testing.assert_array_equal(found.null.tokens[:, 0, 0], [0.0])
    np.testing.assert_array_equal(found.textureless.tokens[:, 0, 0], [6.0, 7.0, 8.0, 9.0])
    with pytest.raises(UserError, match="a tree, front view"):
        embed_views(read, Prompt("a tree"), PAPER_VIEWS)


def test_each_view_gets_the_text_of_its_side_and_of_what_it_shows():
    """Means number the texts: 0 null, 2 to 5 front, side, back, above; 6 to 9 the same in clay."""
    embedded = embed_views(read, Prompt("a red ball"), PAPER_VIEWS, "a ball of clay")
    views = views_at([0, 100, 180, 0, -90], [0, 10, 0, 75, 0], [0, 0, 1, 0, 1])
    found = jax.jit(PRIOR.condition)(embedded, views)
    np.testing.assert_array_equal(found.cond.tokens[:, 0, 0], [2.0, 3.0, 8.0, 5.0, 7.0])
    np.testing.assert_array_equal(found.uncond.tokens[:, 0, 0], np.zeros(5))
    (front, front_weight), (side, side_weight) = found.negatives
    np.testing.assert_array_equal(front.tokens[:, 0, 0], [2.0, 2.0, 6.0, 2.0, 6.0])
    np.testing.assert_array_equal(side.tokens[:, 0, 0], [3.0, 3.0, 7.0, 3.0, 7.0])
    expected = negative_weights(views.camera.azimuth, views.camera.elevation)
    np.testing.assert_allclose([front_weight, side_weight], expected, rtol=1e-6)
    # Without a text of their own, textureless views have the others'.
    plain = jax.jit(PRIOR.condition)(embedded._replace(textureless=None), views)
    np.testing.assert_array_equal(plain.cond.tokens[:, 0, 0], [2.0, 3.0, 4.0, 5.0, 3.0])
    shapes = {leaf.shape[0] for leaf in jax.tree.leaves((found, plain))}
    assert shapes == {5}


def test_the_texts_of_neighbouring_views_can_be_mixed():
    mixing = dataclasses.replace(PRIOR, interpolate_views=True)
    embedded = embed_views(read, Prompt("a red ball"), PAPER_VIEWS, "a ball of clay")
    views = views_at([45, 45, 0, 30], [0, 0, 0, 80], [0, 1, 0, 0])
    found = jax.jit(mixing.condition)(embedded, views)
    np.testing.assert_allclose(found.cond.tokens[:, 0, 0], [2.5, 6.5, 2.0, 5.0], rtol=1e-6)
    np.testing.assert_array_equal(found.negatives[1][0].tokens[:, 0, 0], [3.0, 7.0, 3.0, 3.0])


@pytest.mark.parametrize("around", [("view",), ("front", "back"), ("a", "b", "c", "d")])
def test_names_without_a_side_have_no_negatives(around):
    names = ((60.0, around), (90.0, ("top",)))
    prior = Analytic(texts=("", *view_texts("dice", names)), image_size=2, view_names=names)
    params = prior.load()
    embedded = prior.embed(params, Prompt("dice"))
    found = prior.condition(embedded, views_at([0, 170, 20], [0, 0, 80]))
    assert found.negatives == () and found.cond.tokens.shape == (3, 1, 12)
    above = params.mu[-1].reshape(-1)
    np.testing.assert_array_equal(found.cond.tokens[2, 0], above)


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
