"""Teaching a text encoder to read captions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamjax.nets.text import TextConfig, TextEncoder
from dreamjax.toybox import reading
from dreamjax.toybox.captions import MAX_WORDS, VIEWS, VOCABULARY, text_of
from dreamjax.toybox.draw import COLOR_NAMES, HELD_OUT
from dreamjax.toybox.kinds import KINDS


def encoder(config):
    """The text encoder as a function of its parameters and of word numbers."""

    def encode(params, tokens):
        return TextEncoder(config).apply({"params": params}, tokens)

    return encode


@pytest.fixture(scope="module")
def held_out():
    keys = jax.random.split(jax.random.key(4), 512)
    return jax.jit(jax.vmap(lambda key: reading.draw_reading(key, HELD_OUT)))(keys)


def views_meant(words):
    """Numbers of the views that its last words can mean: "seen from above" means several."""
    ends = [end for row in VIEWS for end in row if words.endswith(f" {end}")]
    if not ends:
        return [len(VIEWS)]
    return [number for number, row in enumerate(VIEWS) if max(ends, key=len) in row]


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
        assert view in views_meant(words), (words, view)
    assert [len(np.unique(c)) for c in labels.T[1:]] == list(reading.CLASSES[1:])


@pytest.mark.slow
def test_the_loss_is_the_cross_entropy_of_what_the_mean_token_tells(held_out, quick_compilation):
    config = TextConfig(len(VOCABULARY), MAX_WORDS, dim=16, layers=1, heads=2)
    batch = jax.tree.map(lambda x: x[:6], held_out)
    text = TextEncoder(config).init(jax.random.key(0), batch.tokens)["params"]
    rng = np.random.default_rng(1)
    heads = [rng.normal(size=(16, classes)) for classes in reading.CLASSES]
    params = {"text": text, "heads": [jnp.float32(head) for head in heads]}
    embedded = TextEncoder(config).apply({"params": text}, batch.tokens)
    total = 0.0
    for tokens, words, labels in zip(*embedded, np.asarray(batch.labels), strict=True):
        mean = np.float64(tokens)[np.asarray(words)].mean(0)
        for head, label in zip(heads, labels, strict=True):
            logits = mean @ head
            total += np.log(np.exp(logits).sum()) - logits[label]
    loss = jax.jit(reading.reading_loss, static_argnums=0)(encoder(config), params, batch)
    np.testing.assert_allclose(loss, total / 6, rtol=1e-5)
    # Zero maps know nothing: every class is as likely.
    blank = {"text": text, "heads": reading.init_heads(config.dim)}
    guess = np.log(reading.CLASSES).sum()
    np.testing.assert_allclose(
        reading.reading_loss(encoder(config), blank, batch), guess, rtol=1e-6
    )


@pytest.mark.slow
def test_an_anchor_holds_what_the_encoder_said(held_out, quick_compilation):
    config = TextConfig(len(VOCABULARY), MAX_WORDS, dim=16, layers=1, heads=2)
    tokens = held_out.tokens[:64]
    text = TextEncoder(config).init(jax.random.key(0), tokens)["params"]
    start = {"text": text, "heads": reading.init_heads(config.dim)}
    said = TextEncoder(config).apply({"params": text}, tokens)
    moved = []
    for anchor in (0.0, 10.0):
        learnt = reading.learn_to_read(encoder(config), start, jax.random.key(1), 20, anchor, 16)
        says = TextEncoder(config).apply({"params": learnt["text"]}, tokens)
        moved.append(float(jnp.sum((says.tokens - said.tokens) ** 2) / said.mask.sum()))
        assert all(np.abs(head).max() > 1e-3 for head in learnt["heads"])
    assert 0 < moved[1] < moved[0] / 10


@pytest.mark.slow
@pytest.mark.large
def test_it_learns_to_read_combinations_it_never_saw(held_out):
    config = TextConfig(len(VOCABULARY), MAX_WORDS)  # the shipped one, and its steps
    ids = jnp.zeros((1, MAX_WORDS), jnp.int32)
    start = TextEncoder(config).init(jax.random.key(0), ids)["params"]
    fresh = {"text": start, "heads": reading.init_heads(config.dim)}
    learnt = reading.learn_to_read(encoder(config), fresh, jax.random.key(1), steps=600)

    meant = [views_meant(text_of(tokens)) for tokens in np.asarray(held_out.tokens)]

    def right(text):
        logits = reading.read(encoder(config), learnt | {"text": text}, held_out.tokens)
        *read, views = (np.asarray(head.argmax(-1)) for head in logits)
        shares = [(read[i] == held_out.labels[:, i]).mean() for i in range(3)]
        return *shares, np.mean([v in numbers for v, numbers in zip(views, meant, strict=True)])

    kind, first, second, view = right(learnt["text"])
    assert kind > 0.99 and view > 0.99
    # To tell the first colour from the second takes more than counting words.
    assert first > 0.9 and second > 0.9
    assert right(start)[0] < 0.5
