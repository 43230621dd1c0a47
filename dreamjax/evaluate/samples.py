"""The probe's scores of pictures that a prior draws of the toybox's captions.

Pictures are drawn for each of the fixed prompts with each view word, and for random held-out
captions. Their ceiling is the probe's score of ground-truth renders of the same objects and views.
"""

import sys
from collections.abc import Callable
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Key

from dreamjax.errors import UserError
from dreamjax.evaluate import probe as probes
from dreamjax.evaluate import tables, truth
from dreamjax.evaluate.probe import Labels
from dreamjax.evaluate.prompts import PROMPTS, Meaning, parse
from dreamjax.evaluate.scores import Count
from dreamjax.evaluate.tables import Score
from dreamjax.export.sheet import grid
from dreamjax.scene.views import VIEW_WORDS, all_names
from dreamjax.settings import Range, settings
from dreamjax.toybox.captions import BOTH, VIEW_NAMES, draw_caption, text_of
from dreamjax.toybox.draw import AS_USUAL, HELD_OUT, combination_weights

# (texts, key) -> one picture in [0, 1] a text.
DrawFn = Callable[[list[str], Key[Array, ""]], Float[np.ndarray, "n h w 3"]]


@settings
class Samples:
    """What the prior draws to be scored by."""

    per_view: Annotated[int, Range(0, 250)] = 4  # pictures for each of 20 prompts and 4 view words
    random: Annotated[int, Range(0, 20_000)] = 256  # random held-out captions, with a picture each
    guidance_scale: Annotated[float, Range(-1e4, 1e4)] = 4.0  # s in uncond + s (cond - uncond)
    steps: Annotated[int, Range(1, 1000)] = 30  # of DDIM

    @property
    def any(self) -> bool:
        """Whether anything is drawn."""
        return self.per_view > 0 or self.random > 0


class Texts(NamedTuple):
    """What is drawn, and what the probe should read from it.

    The pictures of each prompt come first, `views` of them each, those of random captions last.
    """

    texts: list[str]
    labels: Labels
    prompts: tuple[str, ...]
    views: int

    def rows_of(self, number: int) -> slice:
        """Where the pictures of one prompt are."""
        return slice(number * self.views, (number + 1) * self.views)

    @property
    def random(self) -> slice:
        """Where the pictures of random captions are."""
        return slice(len(self.prompts) * self.views, len(self.texts))


class Scores(NamedTuple):
    """Totals of the trained, held-out and random prompts, a score a prompt, and a sheet of all."""

    totals: list[Score]
    rows: list[Score]
    sheet: np.ndarray | None


def texts_of(how: Samples, key: Key[Array, ""]) -> Texts:
    """The texts of the 20 prompts with every view word, and random captions drawn by `key`."""
    prompts = PROMPTS if how.per_view else ()
    views = np.tile(np.arange(len(VIEW_WORDS)), how.per_view)
    texts = [f"{prompt}, {VIEW_WORDS[view]} view" for prompt in prompts for view in views]
    parts = [probes.labels_of([_meaning(prompt)] * len(views), views) for prompt in prompts]
    if how.random:
        more, labels = random_captions(key, how.random)
        texts, parts = texts + more, [*parts, labels]
    labels = Labels(*(np.concatenate(column) for column in zip(*parts, strict=True)))
    return Texts(texts, labels, prompts, len(views))


def _meaning(prompt: str) -> Meaning:
    """What one of the prompts asks for; raises UserError for no caption of the toybox."""
    meaning = parse(prompt)
    if meaning is None:
        raise UserError(f"{prompt!r} is no caption of the toybox with a colour")
    return meaning


def score(how: Samples, seed: int, draw: DrawFn, probe: probes.Shipped) -> Scores:
    """Scores of what `draw` makes of the texts, beside ground truth's; `how.any` must hold."""
    keys = jax.random.split(jax.random.key(seed), 4)
    asked = texts_of(how, keys[0])
    labels, count = asked.labels, len(asked.texts)
    print(f"drawing {count} samples of the prior", file=sys.stderr, flush=True)
    rgb = draw(asked.texts, keys[1])
    print("drawing as many ground-truth renders", file=sys.stderr, flush=True)
    real = truth.pictures(
        jax.random.split(keys[2], count),
        truth.Subject(labels.kind, np.stack([labels.first, labels.second], -1)),
        truth.takings_of_views(keys[3], labels.view, AS_USUAL),
    )
    found = [probes.read(pictures, probe).labels for pictures in (rgb, real.rgb)]

    def counts(part: slice, tells: Bool[np.ndarray, " n"] | None = None) -> list[dict[str, Count]]:
        return [probes.score(_cut(one, part), _cut(labels, part), tells=tells) for one in found]

    rows = []
    for number, prompt in enumerate(asked.prompts):
        meaning = _meaning(prompt)
        can_tell = probes.tellable(probe, meaning.kind)
        rows.append(Score(prompt, meaning.held_out, can_tell, *counts(asked.rows_of(number))))
    splits = tables.SPLITS if rows else ()
    totals = [tables.sum_split(f"{name} prompts", rows, held) for name, held in splits]
    if how.random:
        tells = [probes.tellable(probe, kind) for kind in labels.kind[asked.random]]
        random = counts(asked.random, np.array(tells))
        totals.append(Score("random held-out captions", True, True, *random))
    return Scores(totals, rows, _sheet(rgb, asked) if rows else None)


def _cut(labels: Labels, part: slice) -> Labels:
    return Labels(*(leaf[part] for leaf in labels))


def _sheet(rgb: Float[np.ndarray, "n h w 3"], asked: Texts) -> np.ndarray:
    """One picture of each prompt and view word, with their texts."""
    firsts = [asked.rows_of(number).start for number in range(len(asked.prompts))]
    shown = [first + view for first in firsts for view in range(len(VIEW_WORDS))]
    return grid(rgb[shown], 2 * len(VIEW_WORDS), [asked.texts[i] for i in shown])


def names_of_views() -> list[list[int]]:
    """For each of `VIEW_WORDS` the numbers of the toybox's view names that mean no other view.

    "front and side view" lies across two and is in none; whatever is overhead is that alone.
    """
    found: list[list[int]] = [[] for _ in VIEW_WORDS]
    for number, name in enumerate(all_names(VIEW_NAMES)):
        meant = [view for view, word in enumerate(VIEW_WORDS) if word in name.split()]
        if len(meant) == 1 or VIEW_WORDS[meant[-1]] == "overhead":
            found[meant[-1]].append(number)
    return found


def random_captions(key: Key[Array, ""], count: int) -> tuple[list[str], Labels]:
    """Captions that name both colours and a view, of held-out combinations as often as drawn."""
    weights = combination_weights(HELD_OUT)
    keys = jax.random.split(key, 4)
    cells = jax.random.categorical(keys[0], jnp.log(weights.ravel() + 1e-30), shape=(count,))
    kind, first, second = np.unravel_index(np.asarray(cells), weights.shape)
    view = np.asarray(jax.random.randint(keys[1], (count,), 0, len(VIEW_WORDS)))
    colors = jnp.stack([first, second], -1)
    names, which = names_of_views(), np.asarray(jax.random.uniform(keys[3], (count,)))
    name = [names[v][int(u * len(names[v]))] for v, u in zip(view, which, strict=True)]

    def draw(key, kind, colors, name):
        return draw_caption(key, kind, colors, jnp.asarray(BOTH), name, view_words=1.0)

    given = (jax.random.split(keys[2], count), jnp.asarray(kind), colors, jnp.asarray(name))
    tokens = jax.jit(jax.vmap(draw))(*given)
    texts = [text_of(row) for row in np.asarray(tokens)]
    return texts, Labels(kind, first, second, view)


def page(how: Samples, scores: Scores) -> str:
    """The samples' tables as Markdown."""
    intro = f"""
        Guidance {how.guidance_scale:g}, {how.steps} DDIM steps; {how.per_view} samples for each of
        the {len(PROMPTS)} prompts and {len(VIEW_WORDS)} view words, and one for each of
        {how.random} random captions. The ceiling is the probe's score on ground-truth renders of
        the same objects and views. The totals of views are over kinds whose sides differ."""
    totals = tables.totals(scores.totals, tables.HEADS, "samples")
    parts = ["### Samples of the prior", tables.filled(intro), totals]
    if scores.rows:
        parts.append(tables.details(scores.rows, tables.HEADS, "samples"))
    return "\n\n".join(parts)
