"""Teaching a text encoder to read captions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamjax.nets.text import TextConfig, TextEncoder
from dreamjax.tasks import reading
from dreamjax.toybox.captions import MAX_WORDS, VIEWS, VOCABULARY, text_of
from dreamjax.toybox.draw import COLOR_NAMES, HELD_OUT
from dreamjax.toybox.kinds import KINDS


@pytest.fixture(scope="module")
def held_out():
    keys = jax.random.split(jax.random.key(4), 512)
    return jax.jit(jax.vmap(lambda key: reading.draw_reading(key, HELD_OUT)))(keys)


def test_labels_say_what_the_words_say(held_out):
    labels = np.asarray(held_out.labels)
    for words, (kind, first, second, view) in zip(
        map(text_of, np.asarray(held_out.tokens)), labels, strict=True
    ):
        assert all(word in words for word in KINDS[kind].name.split() if word != "on")
        assert ("clay" in words) == (first == reading.OF_CLAY) == (second == reading.OF_CLAY)
        said = {color for color in COLOR_NAMES if color in words.split()}
        if first >= reading.UNSAID:
            assert not said
        elif said:
            assert said <= {COLOR_NAMES[first], COLOR_NAMES[second]}
        endings = [any(words.endswith(ending) for ending in row) for row in VIEWS]
        assert endings == [view == number for number in range(len(VIEWS))]
    assert [len(np.unique(c)) for c in labels.T[1:]] == list(reading.CLASSES[1:])


@pytest.mark.slow
def test_it_learns_to_read_combinations_it_never_saw(held_out):
    config = TextConfig(len(VOCABULARY), MAX_WORDS)  # the shipped one, and its steps
    ids = jnp.zeros((1, MAX_WORDS), jnp.int32)
    start = TextEncoder(config).init(jax.random.key(0), ids)["params"]
    text, heads = reading.learn_to_read(config, start, jax.random.key(1), steps=600)

    def right(params):
        logits = reading.read(config, {"text": params, "heads": heads}, held_out.tokens)
        return [
            float((head.argmax(-1) == held_out.labels[:, i]).mean())
            for i, head in enumerate(logits)
        ]

    kind, first, second, view = right(text)
    assert kind > 0.99 and view > 0.99
    # To tell the first colour from the second takes more than counting words.
    assert first > 0.9 and second > 0.9
    assert right(start)[0] < 0.5
