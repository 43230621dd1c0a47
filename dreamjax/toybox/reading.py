"""Teaches a text encoder to read.

A text encoder that starts from noise spends much of a short training run finding out which word
belongs to which. Imagen (arXiv 2205.11487) starts from an encoder trained on text alone; here that
text is the toybox's own captions, and the encoder is right when kind, colours and view are linear
in the mean of its tokens, which is what the UNet's conditioning vector is made of. The same loss
stays beside the pictures' later on: pictures alone need not keep apart what the UNet does not yet
answer to (a mug's front and back), and it cannot learn to answer to what reads the same. The linear
maps are thrown away at last.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

from dreamjax.toybox.captions import CLAY, ONE, PLAIN, VIEW_SHARE, VIEWS, draw_caption
from dreamjax.toybox.draw import AS_USUAL, COLOR_NAMES, LOG_WEIGHTS, TRAIN, USUAL_SECOND, draw_form
from dreamjax.toybox.kinds import KINDS

COLORS = len(COLOR_NAMES)
UNSAID, OF_CLAY = COLORS, COLORS + 1
CLASSES = (len(KINDS), COLORS + 2, COLORS + 2, len(VIEWS) + 1)

# (params, word numbers [n, 24]) -> (tokens [n, 24, d], mask [n, 24]); any text encoder.
Encode = Callable[[PyTree, Int[Array, "n 24"]], tuple[Float[Array, "n 24 d"], Bool[Array, "n 24"]]]


class Reading(NamedTuple):
    """A caption's words, and what they say: kind, first and second colour, view."""

    tokens: Int[Array, "*b 24"]
    labels: Int[Array, "*b 4"]


def draw_reading(key: Key[Array, ""], split: int | Int[Array, ""] = TRAIN) -> Reading:
    """A caption as `draw_example` words it; what it leaves open is a class of its own.

    The second colour of "a snowman" is the usual one: the words decide it as well as if they named
    it, in all but a few pictures.
    """
    keys = jax.random.split(key, 6)
    cell = jax.random.categorical(keys[0], jnp.asarray(LOG_WEIGHTS)[split])
    kind, first, second = cell // COLORS**2, cell // COLORS % COLORS, cell % COLORS
    view = jax.random.randint(keys[1], (), 0, len(VIEWS))
    said = jax.random.bernoulli(keys[2], VIEW_SHARE)
    usual = second == jnp.asarray(USUAL_SECOND)[kind, first]
    textureless = jax.random.bernoulli(keys[3], AS_USUAL.light.textureless)
    form = draw_form(keys[4], usual, textureless, AS_USUAL.plain)
    tokens = draw_caption(keys[5], kind, jnp.stack([first, second]), form, view, said.astype(float))

    def color(named):
        return jnp.where(form == CLAY, OF_CLAY, jnp.where(form == PLAIN, UNSAID, named))

    second = jnp.where((form == ONE) & ~usual, jnp.asarray(USUAL_SECOND)[kind, first], second)
    labels = (kind, color(first), color(second), jnp.where(said, view, len(VIEWS)))
    return Reading(tokens, jnp.stack(labels).astype(jnp.int32))


def read(encode: Encode, params: PyTree, tokens: Int[Array, "n 24"]) -> list[Float[Array, "n c"]]:
    """Logits of `CLASSES` from params {"text", "heads"}."""
    embedded, mask = encode(params["text"], tokens)
    pooled = embedded.sum(1) / jnp.maximum(mask.sum(1, keepdims=True), 1)
    return [pooled @ head for head in params["heads"]]


def init_heads(dim: int) -> list[Float[Array, "d c"]]:
    """The linear maps from the mean token, of `dim` values, to `CLASSES`; all zero."""
    return [jnp.zeros((dim, classes)) for classes in CLASSES]


def reading_loss(encode: Encode, params: PyTree, batch: Reading) -> Float[Array, ""]:
    """Mean over captions of the cross-entropy, in nats, summed over `CLASSES`."""
    logits = read(encode, params, batch.tokens)
    cross_entropy = optax.softmax_cross_entropy_with_integer_labels
    losses = [cross_entropy(head, batch.labels[:, i]) for i, head in enumerate(logits)]
    return sum(losses, jnp.zeros(())).mean()


def _silent(done: int, losses: dict[str, Array]) -> None:
    """Say nothing."""


def learn_to_read(
    encode: Encode,
    params: PyTree,
    key: Key[Array, ""],
    steps: int,
    anchor: float = 0.0,
    batch_size: int = 128,
    progress: Callable[[int, dict[str, Array]], None] = _silent,
) -> PyTree:
    """Train {"text", "heads"} for `steps` steps of Adam on fresh captions.

    `anchor` weighs the squared distance, a word, from what the encoder said at first: with it, one
    that a UNet already listens to learns what it could not tell and goes on saying the rest.
    `progress` is told the finished steps and their losses.
    """
    tx = optax.adam(optax.cosine_decay_schedule(2e-3, steps), b2=0.99)
    first = params["text"]

    @jax.jit
    def step(params, opt_state, number):
        keys = jax.random.split(jax.random.fold_in(key, number), batch_size)
        batch = jax.vmap(draw_reading)(keys)

        def loss_fn(params):
            reading = reading_loss(encode, params, batch)
            now, mask = encode(params["text"], batch.tokens)
            before, _ = encode(first, batch.tokens)
            moved = jnp.sum((now - before) ** 2) / jnp.sum(mask)
            return reading + anchor * moved, {"loss": reading, "moved": moved}

        (_, losses), grads = jax.value_and_grad(loss_fn, has_aux=True)(params)
        updates, opt_state = tx.update(grads, opt_state)
        return optax.apply_updates(params, updates), opt_state, losses

    opt_state = tx.init(params)
    for number in range(steps):
        params, opt_state, losses = step(params, opt_state, number)
        progress(number + 1, losses)
    return params
