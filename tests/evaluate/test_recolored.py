"""Which things are asked for in which colours, and what colour a picture is read as."""

import numpy as np
import pytest

from dreamjax.data.captions import is_held_out
from dreamjax.data.mixture import COLOR_NAMES, COLOR_RGB
from dreamjax.evaluate.recolored import pairs, read_color
from dreamjax.main import load_config

PHRASES = load_config("hundred_prior").data.phrases


def test_half_of_the_pairs_are_never_trained_on():
    found = pairs(PHRASES, 20)
    assert len(found) == 20 == len({pair.caption for pair in found})
    assert [pair.held_out for pair in found] == [False, True] * 10
    for pair in found:
        assert COLOR_NAMES[pair.color] in pair.caption.split()
        phrase = pair.caption.replace(f"{COLOR_NAMES[pair.color]} ", "")
        named = [p for p in PHRASES if p.split()[1:] == phrase.split()[1:]]
        assert [is_held_out(p, COLOR_NAMES[pair.color]) for p in named] == [pair.held_out]
    assert len({pair.color for pair in found}) >= 7


def test_what_has_a_colour_by_name_is_left_out():
    found = pairs(PHRASES, 1000)
    assert 40 < len(found) < len(PHRASES)
    assert not {"couch", "crown", "earth"} & {word for p in found for word in p.caption.split()}
    assert pairs(("a red couch", "the planet earth"), 5) == []


def test_a_colour_is_read_where_the_object_is():
    mask = np.zeros((len(COLOR_RGB), 6, 6))
    mask[:, 1:4, 2:5] = 1.0
    rgb = np.full((*mask.shape, 3), 0.5)
    rgb[:, 1:4, 2:5] = 0.95 * COLOR_RGB[:, None, None] + 0.01
    rgb[:, 3, 2:5] = COLOR_RGB[::-1, None]  # three of nine pixels have another
    np.testing.assert_array_equal(read_color(rgb, mask), np.arange(len(COLOR_RGB)))
    assert (read_color(rgb, 0.5 * mask) == -1).all()


@pytest.mark.parametrize("color", COLOR_NAMES)
def test_a_shade_is_read_as_its_colour(color):
    number = COLOR_NAMES.index(color)
    shades = np.clip(COLOR_RGB[number] * np.array([0.88, 1.0, 1.08])[:, None, None, None], 0, 1)
    assert (read_color(shades, np.ones((3, 1, 1))) == number).all()
