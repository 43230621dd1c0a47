"""What toybox pictures are called: a word grammar as tables of word numbers.

A caption is prefix + phrase + view, each drawn from a table, with the colours filled in; being
gathers from constant tables, it is drawn on the device inside a jitted function. Word 0 is padding,
so a row of zeros is the empty caption.
"""

import re

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from dreamjax.scene.views import OVERHEAD_ELEVATION
from dreamjax.toybox.kinds import COLORS, KINDS, Kind

MAX_WORDS = 24
FIRST_COLOR, SECOND_COLOR = -1, -2
BOTH, ONE, PLAIN, CLAY = range(4)
VIEW_SHARE = 0.75  # of captions say the view

PREFIXES = ("", "", "a photo of", "a 3d render of", "a picture of")
AROUND = ("front", "front and side", "side", "back and side", "back")
# What a view is called, as `scene.views.ViewNames`: eighths of a turn, alike on both sides.
VIEW_NAMES = tuple(
    (top, tuple(name.format(side) for side in AROUND))
    for top, name in (
        (15.0, "{} view"),
        (37.5, "{} view from above"),
        (OVERHEAD_ELEVATION, "{} top view"),
        (90.0, "{} overhead view"),
    )
)
_FROM = {"front": "from the front", "side": "from the side", "back": "from behind"}


def _wordings(row: int, side: str, name: str) -> tuple[str, str, str, str]:
    """Four wordings of a view: half of them its name, where others are at hand."""
    if row == 0:
        return name, name, f"seen from the {side}", _FROM.get(side, name)
    if row == len(VIEW_NAMES) - 1:
        odd = AROUND.index(side) % 2 == 1  # the row before this has an odd number of names
        return name, name, "overhead view", "seen from above" if odd else "from above"
    return name, name, name, name


VIEWS = tuple(
    _wordings(row, side, name)
    for row, (_, names) in enumerate(VIEW_NAMES)
    for side, name in zip(AROUND, names, strict=True)
)
ARTICLES = {"an": "a"}


def words(text: str) -> list[str]:
    """Lower-case words without punctuation; "an" is read as "a"."""
    kept = "".join(c if c.isalnum() else " " for c in text.lower())
    return [ARTICLES.get(word, word) for word in kept.split()]


def colorless(text: str) -> str:
    """The text without the names of the toybox's colours."""
    return " ".join(re.sub(rf"\b({'|'.join(COLORS)})\b", "", text, flags=re.IGNORECASE).split())


def phrases(kind: Kind) -> tuple[list[str], ...]:
    """The wordings of a kind that state both colours, the first alone, none, and its clay form.

    `<1>` and `<2>` stand for the colours.
    """
    plain, clay = [f"a {kind.name}"], [f"a clay {kind.name}", f"a {kind.name} made of clay"]
    if kind.stated:
        one = [kind.stated.format("<1>")]
        return one, one, plain, clay
    if not kind.usual:
        one = [f"a <1> {kind.name}"]
        return one, one, plain, clay
    first, second = kind.main.format("<1>"), kind.second.format("<2>")
    if " on " in kind.name:
        upper, _ = kind.name.split(" on ")
        one = [f"a <1> {kind.name}", f"{first} on {kind.second.replace('{} ', '')}"]
        both = [f"{first} on {second}", f"{first} on top of {second}", f"{second} under {first}"]
        return both, one[1:], plain, clay
    both = [
        f"a <1> {kind.name} with {second}",
        f"a <1> {kind.name} with {second}",
        f"a <1> {kind.name} that has {second}",
        f"a {kind.name} with {first} and {second}",
    ]
    return both, [f"a <1> {kind.name}"], plain, clay


def _all_words() -> tuple[str, ...]:
    texts = [*PREFIXES, *(v for row in VIEWS for v in row), *COLORS]
    texts += [p for kind in KINDS for group in phrases(kind) for p in group]
    found = {w for text in texts for w in words(text.replace("<1>", "").replace("<2>", ""))}
    return ("", *sorted(found))


VOCABULARY = _all_words()
_NUMBER = {word: number for number, word in enumerate(VOCABULARY)}
_COLOR_WORDS = np.array([_NUMBER[color] for color in COLORS], np.int32)


def _table(texts, length: int) -> np.ndarray:
    """Nested lists of texts as word numbers `[..., length]`, right-padded with 0."""
    if isinstance(texts, str):
        marked = texts.replace("<1>", "firstcolor").replace("<2>", "secondcolor")
        special = {"firstcolor": FIRST_COLOR, "secondcolor": SECOND_COLOR}
        numbers = [special[w] if w in special else _NUMBER[w] for w in words(marked)]
        return np.array(numbers + [0] * (length - len(numbers)), np.int32)
    return np.stack([_table(text, length) for text in texts])


def _repeat(texts: list[str], count: int = 12) -> list[str]:
    return [texts[i * len(texts) // count] for i in range(count)]


_PREFIX_TABLE = _table(PREFIXES, 4)
_VIEW_TABLE = _table(VIEWS, 6)
_PHRASE_TABLE = _table([[_repeat(group) for group in phrases(kind)] for kind in KINDS], 14)


def text_of(tokens: np.ndarray) -> str:
    """The words behind the numbers."""
    return " ".join(VOCABULARY[int(number)] for number in tokens if number)


def draw_caption(
    key: Key[Array, ""],
    kind: Int[Array, ""],
    colors: Int[Array, "2"],
    form: Int[Array, ""],
    view: Int[Array, ""],
    view_words: Float[Array, ""] | float = VIEW_SHARE,
) -> Int[Array, "24"]:
    """A random wording of `form` BOTH, ONE, PLAIN or CLAY; `view_words` of them say the view."""
    keys = jax.random.split(key, 4)
    prefix = jnp.asarray(_PREFIX_TABLE)[jax.random.randint(keys[0], (), 0, len(PREFIXES))]
    phrase = jnp.asarray(_PHRASE_TABLE)[kind, form, jax.random.randint(keys[1], (), 0, 12)]
    suffix = jnp.asarray(_VIEW_TABLE)[view, jax.random.randint(keys[2], (), 0, 4)]
    suffix = jnp.where(jax.random.bernoulli(keys[3], view_words), suffix, 0)
    color_words = jnp.asarray(_COLOR_WORDS)
    phrase = jnp.where(phrase == FIRST_COLOR, color_words[colors[0]], phrase)
    phrase = jnp.where(phrase == SECOND_COLOR, color_words[colors[1]], phrase)
    tokens = jnp.concatenate([prefix, phrase, suffix])
    tokens = tokens[jnp.argsort(tokens == 0, stable=True)]
    return jnp.pad(tokens, (0, max(0, MAX_WORDS - tokens.shape[0])))[:MAX_WORDS]
