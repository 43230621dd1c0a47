"""The 20 fixed prompts, and what a prompt of the toybox's grammar means."""

from typing import NamedTuple

from dreamjax.toybox.captions import PREFIXES, VIEWS, phrases, words
from dreamjax.toybox.draw import COLOR_NAMES, is_held_out, usual_second
from dreamjax.toybox.kinds import KINDS

# Between them all kinds. The first ten combinations of kind and colours are among those the shipped
# prior is trained on, the others are held out from its training (`is_held_out`).
PROMPTS = (
    "a red mushroom with a white stem",
    "a blue car with a white top",
    "a yellow house with a red roof",
    "a snowman with a green hat",
    "an orange ball on a blue cube",
    "a purple chair",
    "a white rocket with a red tip",
    "a green tree with a brown trunk",
    "a red ball",
    "a green cube",
    "a black cylinder",
    "an orange donut with white icing",
    "a red mug",
    "a pink teapot with a white lid",
    "a blue duck with an orange beak",
    "a blue chair with a brown seat",
    "a white duck on a green cylinder",
    "a pink cube on a green cylinder",
    "a blue donut on a purple cube",
    "a green mushroom on a black cube",
)


class Meaning(NamedTuple):
    """What a prompt asks for: an index into `KINDS` and two into `COLORS`."""

    kind: int
    first: int
    second: int

    @property
    def held_out(self) -> bool:
        """Whether the toybox keeps this combination from training."""
        return is_held_out(*self)


def has_second(kind: int) -> bool:
    """Whether a kind has a second coloured part."""
    return KINDS[kind].usual is not None


def _wordings() -> list[tuple[int, tuple[str, ...]]]:
    """(kind, words) of every wording that names a colour; `<1>` and `<2>` stand for the colours."""
    found = []
    for kind, entry in enumerate(KINDS):
        both, one, _, _ = phrases(entry)
        for text in dict.fromkeys([*both, *one]):
            marked = text.replace("<1>", "firstcolor").replace("<2>", "secondcolor")
            names = {"firstcolor": "<1>", "secondcolor": "<2>"}
            found.append((kind, tuple(names.get(word, word) for word in words(marked))))
    return found


_WORDINGS = _wordings()
_VIEWS = sorted({view for row in VIEWS for view in row}, key=len, reverse=True)


def parse(text: str) -> Meaning | None:
    """What `text` asks for, None where it is no caption of the grammar or names no colour.

    A prefix ("a photo of") and a view ("front view") are read over. Colours are in the order of the
    parts, not of the words; a second colour that is not named is the kind's usual one.
    """
    said = words(text)
    for prefix in sorted(PREFIXES, key=len, reverse=True):
        start = words(prefix)
        if said[: len(start)] == start:
            said = said[len(start) :]
            break
    for view in _VIEWS:
        end = words(view)
        if said[-len(end) :] == end:
            said = said[: -len(end)]
            break
    for kind, wording in _WORDINGS:
        if len(wording) != len(said):
            continue
        colors = {}
        for slot, word in zip(wording, said, strict=True):
            if slot in ("<1>", "<2>"):
                if word not in COLOR_NAMES:
                    break
                colors[slot] = COLOR_NAMES.index(word)
            elif slot != word:
                break
        else:
            first = colors["<1>"]
            return Meaning(kind, first, colors.get("<2>", usual_second(kind, first)))
    return None
