"""Things in colours that they do not have: which are asked for, and what colour a picture shows.

Colour is read from the pixels of the object alone, in albedo: the named colour that most of them
are nearest to.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from dreamjax.data.captions import FIXED, in_color, is_held_out, names_color
from dreamjax.data.meshes import cielab
from dreamjax.data.mixture import COLOR_NAMES, COLOR_RGB


class Pair(NamedTuple):
    """A caption that names a thing in a colour; `color` indexes `COLOR_NAMES`."""

    caption: str
    color: int
    held_out: bool


def pairs(phrases: Sequence[str], count: int) -> list[Pair]:
    """`count` things in a colour, spread over the phrases, every second one a held-out pair.

    Fewer where phrases run out: left out are those that name a colour, are of one by name, or have
    no colour that is held out.
    """
    usable = []
    for phrase in phrases:
        split = {True: [], False: []}
        for color, name in enumerate(COLOR_NAMES):
            split[is_held_out(phrase, name)].append(color)
        if phrase not in FIXED and not names_color(phrase) and all(split.values()):
            usable.append((phrase, split))
    count = min(count, len(usable))
    found = []
    for number in range(count):
        phrase, split = usable[number * len(usable) // count]
        held_out = number % 2 == 1
        color = split[held_out][number // 2 % len(split[held_out])]
        found.append(Pair(in_color(phrase, COLOR_NAMES[color]), color, held_out))
    return found


def read_color(
    rgb: Float[np.ndarray, "n h w 3"], mask: Float[np.ndarray, "n h w"]
) -> Int[np.ndarray, " n"]:
    """The colour of each picture in [0, 1] where `mask` is above a half; -1 where it is nowhere.

    Distances are in CIELAB with half the lightness, as dominant colours are found.
    """
    away = np.linalg.norm(cielab(rgb)[..., None, :] - cielab(COLOR_RGB), axis=-1)
    nearest = away.argmin(-1)
    votes = np.stack([((nearest == c) & (mask > 0.5)).sum((1, 2)) for c in range(len(COLOR_RGB))])
    return np.where(votes.any(0), votes.argmax(0), -1)
