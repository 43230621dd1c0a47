import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamjax.evaluate.prompts import PROMPTS, Meaning, has_second, parse
from dreamjax.priors.toybox import tokenise
from dreamjax.toybox.captions import BOTH, MAX_WORDS, ONE, VIEWS, VOCABULARY, draw_caption, text_of
from dreamjax.toybox.draw import COLOR_NAMES, usual_second
from dreamjax.toybox.kinds import KINDS

NAMES = [kind.name for kind in KINDS]
GALLERY = {
    "a red mushroom with a white stem": ("mushroom", "red", "white"),
    "a blue car with a white top": ("car", "blue", "white"),
    "a yellow house with a red roof": ("house", "yellow", "red"),
    "a snowman with a green hat": ("snowman", "green", "green"),
    "an orange ball on a blue cube": ("ball on cube", "orange", "blue"),
    "a purple chair": ("chair", "purple", "purple"),
    "a white rocket with a red tip": ("rocket", "white", "red"),
    "a blue chair with a brown seat": ("chair", "blue", "brown"),
}


def test_the_prompts_are_twenty_and_ten_are_held_out():
    assert len(set(PROMPTS)) == 20
    assert [parse(prompt).held_out for prompt in PROMPTS] == [False] * 10 + [True] * 10
    assert {parse(prompt).kind for prompt in PROMPTS} == set(range(len(KINDS)))
    for prompt in PROMPTS:
        tokenise(f"{prompt}, overhead view", VOCABULARY, MAX_WORDS)


@pytest.mark.parametrize("prompt", GALLERY)
def test_a_prompt_means_what_a_reader_would_say(prompt):
    kind, first, second = GALLERY[prompt]
    assert prompt in PROMPTS
    expected = (NAMES.index(kind), COLOR_NAMES.index(first), COLOR_NAMES.index(second))
    assert parse(prompt) == expected


@pytest.mark.parametrize("form", [BOTH, ONE])
def test_every_wording_of_the_grammar_is_understood(form):
    count = 600
    keys = jax.random.split(jax.random.key(form), count)
    rng = np.random.default_rng(form)
    kind, view = np.arange(count) % len(KINDS), rng.integers(0, len(VIEWS), count)
    colors = rng.integers(0, len(COLOR_NAMES), (count, 2))
    draw = jax.jit(jax.vmap(draw_caption, (0, 0, 0, None, 0)))
    tokens = draw(keys, jnp.asarray(kind), jnp.asarray(colors), form, jnp.asarray(view))
    for row, k, (first, second) in zip(np.asarray(tokens), kind, colors, strict=True):
        if form == ONE or not has_second(k):
            second = usual_second(k, first)
        assert parse(text_of(row)) == Meaning(k, first, second), text_of(row)


@pytest.mark.parametrize(
    "text", ["", "front view", "a chair", "a clay chair", "a red spaceship", "a red red chair"]
)
def test_what_is_no_coloured_object_has_no_meaning(text):
    assert parse(text) is None


def test_one_part_kinds_have_no_second_colour():
    assert not has_second(NAMES.index("ball")) and not has_second(NAMES.index("snowman"))
    assert has_second(NAMES.index("car")) and has_second(NAMES.index("ball on cube"))
