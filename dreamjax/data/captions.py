"""What pictures of meshes are called: phrases, with an article or none, and with another colour.

A phrase is what the mesh is named by, article included: "a fire truck", "half an apple",
"cherries". Other names for the same thing are data, in `synonyms.csv`.
"""

import csv
import re
import zlib
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from pathlib import Path

import numpy as np

from dreamjax.errors import UserError
from dreamjax.toybox.captions import phrases as toybox_phrases
from dreamjax.toybox.captions import words
from dreamjax.toybox.kinds import COLORS, KINDS

PREFIXES = (
    "",
    "",
    "",
    "",
    "a photo of",
    "a 3d render of",
    "a picture of",
    "a 3d model of",
    "an image of",
)
SYNONYM_SHARE, PLURAL_SHARE, BARE_SHARE = 0.1, 0.03, 0.22
HELD_OUT_ONE_IN = 10
# A phrase that says one of these has it replaced by the new colour.
COLOR_WORDS = (*COLORS, "golden", "gold", "grey", "gray", "turquoise")
# Colours that are part of a name, and things that would not be themselves in another.
FIXED = frozenset(
    "an orange|an orange tree|a blue tang|a yellow tang|a red snapper|gold bars|a gold coin|"
    "a gold mine|a pile of coins|the planet earth".split("|")
)
_DETERMINER = re.compile(r"(half an? |an? |the |three |)(.*)")
_HEAD_ENDS = (" of ", " with ", " in ", " and ", " o ")
_NO_PLURAL = ("f", "fe", "fish", "bread", "bacon", "sushi", "corn", "s")


def is_held_out(phrase: str, color: str) -> bool:
    """Whether a phrase in a colour is kept from training: one pair in ten, by a checksum."""
    return zlib.crc32(f"{phrase}|{color}".encode()) % HELD_OUT_ONE_IN == 0


def names_color(phrase: str) -> bool:
    """Whether the phrase says a colour already."""
    return any(word in COLOR_WORDS for word in phrase.split())


def with_article(text: str) -> str:
    """The text with "a" or "an" before it, as its first letter asks."""
    return f"{'an' if text[0] in 'aeiou' else 'a'} {text}"


def in_color(phrase: str, color: str) -> str:
    """The phrase of the same thing in a colour: "half an apple" in blue is "half a blue apple".

    Raises UserError for a phrase whose colour is part of its name, and for one of several lines.
    """
    if phrase in FIXED:
        raise UserError(f"{phrase!r} is of one colour by name")
    parts = _DETERMINER.fullmatch(phrase)
    if parts is None:
        raise UserError(f"{phrase!r} is not one line")
    determiner, rest = parts.groups()
    named = [word for word in rest.split() if word in COLOR_WORDS]
    if named:
        rest = " ".join(color if word == named[0] else word for word in rest.split())
    else:
        rest = f"{color} {rest}"
    if determiner in ("a ", "an "):
        return with_article(rest)
    if determiner.startswith("half"):
        return f"half {with_article(rest)}"
    return determiner + rest


def bare(phrase: str) -> str:
    """The phrase without its article."""
    return re.sub(r"^(an?|the) ", "", phrase)


def plural(phrase: str) -> str | None:
    """The phrase in the plural, None where it has no regular one."""
    if not phrase.startswith(("a ", "an ")):
        return None
    text = bare(phrase)
    end = min([text.find(mark) for mark in _HEAD_ENDS if mark in text], default=len(text))
    head, rest = text[:end], text[end:]
    if head.endswith(_NO_PLURAL):
        return None
    if re.search(r"(x|ch|sh)$", head):
        return f"{head}es{rest}"
    if re.search(r"[^aeiou]y$", head):
        return f"{head[:-1]}ies{rest}"
    return f"{head}s{rest}"


def draw_caption(
    rng: np.random.Generator, phrase: str, color: str | None, others: Sequence[str] = ()
) -> str:
    """A random wording of a phrase, in a colour if one is given; `others` are its synonyms."""
    u = rng.random(3)
    if others and u[0] < SYNONYM_SHARE:
        phrase = others[int(rng.integers(len(others)))]
    if color is not None:
        phrase = in_color(phrase, color)
    if u[1] < PLURAL_SHARE:
        phrase = plural(phrase) or phrase
    elif u[1] < PLURAL_SHARE + BARE_SHARE:
        phrase = bare(phrase)
    prefix = PREFIXES[int(u[2] * len(PREFIXES))]
    return f"{prefix} {phrase}".strip()


def synonyms() -> Mapping[str, tuple[str, ...]]:
    """Other names of phrases, by phrase."""
    file = Path(str(resources.files("dreamjax.data") / "synonyms.csv"))
    with file.open(newline="") as lines:
        return {row["phrase"]: tuple(row["others"].split("|")) for row in csv.DictReader(lines)}


def vocabulary(phrases: Iterable[str]) -> tuple[str, ...]:
    """The words of all captions in order of the alphabet: of phrases, synonyms, and the toybox."""
    others = synonyms()
    phrases = list(phrases)
    texts = [*PREFIXES, *COLORS, *phrases, *(o for p in phrases for o in others.get(p, ()))]
    for kind in KINDS:
        texts += [text for group in toybox_phrases(kind) for text in group]
    found = {word for text in texts for word in words(re.sub(r"<\d>", "", text))}
    return tuple(sorted(found))
