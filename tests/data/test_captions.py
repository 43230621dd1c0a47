"""Captions: colours, articles, plurals, and the rule that keeps pairs from training."""

import zlib

import numpy as np
import pytest

from dreamjax.data import captions
from dreamjax.errors import UserError
from dreamjax.toybox.kinds import COLORS


def test_one_pair_in_ten_is_held_out_by_a_checksum():
    assert captions.is_held_out("a cow", "red") == (zlib.crc32(b"a cow|red") % 10 == 0)
    phrases = [f"a thing {i}" for i in range(300)]
    share = np.mean([captions.is_held_out(p, c) for p in phrases for c in COLORS])
    assert 0.08 < share < 0.12


@pytest.mark.parametrize(
    "phrase, color, expected",
    [
        ("a fire truck", "blue", "a blue fire truck"),
        ("a cow", "orange", "an orange cow"),
        ("an apple", "blue", "a blue apple"),
        ("half an apple", "blue", "half a blue apple"),
        ("half a lemon", "orange", "half an orange lemon"),
        ("cherries", "pink", "pink cherries"),
        ("a red couch", "green", "a green couch"),
        ("a golden sword", "orange", "an orange sword"),
        ("the number two", "red", "the red number two"),
        ("three candles", "black", "three black candles"),
        ("a small green alien", "blue", "a small blue alien"),
    ],
)
def test_a_phrase_in_a_colour(phrase, color, expected):
    assert captions.in_color(phrase, color) == expected


def test_a_colour_that_is_a_name_is_not_replaced():
    with pytest.raises(UserError, match="an orange"):
        captions.in_color("an orange", "blue")


@pytest.mark.parametrize(
    "phrase, expected",
    [
        ("a fire truck", "fire trucks"),
        ("a slice of bread", "slices of bread"),
        ("a box of matches", "boxes of matches"),
        ("a bunny", "bunnies"),
        ("a goldfish", None),
        ("headphones", None),
        ("half an apple", None),
    ],
)
def test_plurals(phrase, expected):
    assert captions.plural(phrase) == expected


def test_wordings_are_many_and_all_say_the_colour_and_the_thing():
    rng = np.random.default_rng(0)
    found = {captions.draw_caption(rng, "a fire truck", "blue") for _ in range(400)}
    assert {"a blue fire truck", "blue fire truck", "a photo of a blue fire truck"} <= found
    assert all("blue fire truck" in text for text in found)


def test_synonyms_take_a_phrases_place_now_and_then():
    others = captions.synonyms()["a fire truck"]
    rng = np.random.default_rng(0)
    found = [captions.draw_caption(rng, "a fire truck", None, others) for _ in range(2000)]
    share = np.mean(["engine" in text for text in found])
    assert 0.07 < share < 0.13


def test_the_vocabulary_has_phrases_synonyms_colours_and_the_toyboxs_words():
    words = captions.vocabulary(["a fire truck", "half a lemon"])
    assert {"fire", "truck", "engine", "half", "lemon", "purple", "photo", "snowman"} <= set(words)
    assert "" not in words and "an" not in words and list(words) == sorted(set(words))
