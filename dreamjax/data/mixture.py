"""Which pictures a training step sees, and what they are called: drawn on the host, from a seed.

A batch is a pure function of (seed, step), so that a resumed run repeats the uninterrupted one.
Meshes of a phrase with many are each seen less often, and some pictures have their dominant colour
turned into a named one, with the caption saying so.
"""

import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Annotated, NamedTuple

import numpy as np
from jaxtyping import Int, UInt8

from dreamjax.data.captions import (
    FIXED,
    draw_caption,
    in_color,
    is_held_out,
    names_color,
    synonyms,
)
from dreamjax.data.meshes import PictureSet
from dreamjax.data.pictures import TEXTURELESS, Recolor, looks_of
from dreamjax.data.toybox import ToyboxSet
from dreamjax.errors import UserError
from dreamjax.scene.camera import Camera
from dreamjax.scene.shading import Light
from dreamjax.settings import Range, Share, settings
from dreamjax.toybox.kinds import COLORS

COLOR_NAMES = tuple(COLORS)
COLOR_RGB = np.array(list(COLORS.values()), np.float32)
ENOUGH = 0.3  # the least share of what is seen that makes a colour the mesh's own
MANY, MODEL_ONE_IN = 4, 12  # of phrases with so many meshes, one mesh in so many is held out


class Pictures(NamedTuple):
    """Pictures to be lit, and what is told of them; every leaf leads with the axis of pictures."""

    stored: UInt8[np.ndarray, "b s s 11"]
    camera: Camera
    recolor: Recolor
    look: Int[np.ndarray, " b"]  # index into `pictures.LOOKS`
    ids: Int[np.ndarray, "b l"]  # piece numbers of the captions


class Choice(NamedTuple):
    """One picture: a view of a mesh, or a picture of the toybox (`mesh` is -1)."""

    mesh: int
    view: int
    color: int  # index of `COLOR_NAMES`, -1 where it is not recoloured
    look: int
    caption: str


@settings
class Mixing:
    """Which pictures are trained on, and how often."""

    toybox: Share = 0.25  # share of pictures that are the toybox's
    recolored: Share = 0.3  # share of the others that have another colour
    evenness: Share = 0.6  # a mesh's weight is (meshes of its phrase)^-evenness
    held_out_views: Annotated[int, Range(0, 100_000)] = 2  # of each mesh, for validation


class Mixture:
    """Draws batches from pictures of meshes and of the toybox."""

    def __init__(
        self,
        meshes: PictureSet,
        toybox: ToyboxSet | None,
        tokenise: Callable[[str], np.ndarray],
        mixing: Mixing,
        light: Light,
        left_out: frozenset[str] = frozenset(),
    ):
        """Prepare; raises UserError where nothing is left to train on."""
        self.meshes, self.toybox = meshes, toybox
        self.mixing, self._tokenise = mixing, tokenise
        usable = np.array([name not in left_out for name in meshes.names])
        count = Counter(p for p, good in zip(meshes.phrases, usable, strict=True) if good)
        held_out = np.array(
            [held_out_model(n, count[p]) for n, p in zip(meshes.names, meshes.phrases, strict=True)]
        )
        weight = np.array([max(count[p], 1) ** -mixing.evenness for p in meshes.phrases])
        self.held_out_models = np.flatnonzero(usable & held_out)
        weight = weight * (usable & ~held_out)
        self.train_views = meshes.stored.shape[1] - mixing.held_out_views
        if not weight.sum() > 0 or self.train_views < 1:
            raise UserError("no picture of a mesh is left to train on")
        self._models = np.cumsum(weight)
        self._usable = np.flatnonzero(weight > 0)
        self._looks = np.cumsum(looks_of(light))
        self._others = synonyms()

    def colors_of(self, mesh: int, held_out: bool) -> list[int]:
        """The colours that a mesh may be turned into, in training or for the held-out pairs."""
        phrase = self.meshes.phrases[mesh]
        if self.meshes.share[mesh] < ENOUGH or phrase in FIXED:
            return []
        if held_out and names_color(phrase):
            return []  # another phrase may say the very words
        pairs = [c for c, name in enumerate(COLOR_NAMES) if is_held_out(phrase, name) == held_out]
        said = {c: in_color(phrase, COLOR_NAMES[c]) for c in pairs}
        return [c for c in pairs if said[c] != phrase and said[c] not in FIXED]

    def choose(self, rng: np.random.Generator) -> Choice:
        """One picture of the training mixture."""
        u = rng.random(5)
        look = min(int(np.searchsorted(self._looks, u[0], side="right")), len(self._looks) - 1)
        if self.toybox is not None and u[1] < self.mixing.toybox:
            row = int(u[2] * len(self.toybox.captions))
            bare = look == TEXTURELESS and rng.random() < 0.5
            texts = self.toybox.textureless_captions if bare else self.toybox.captions
            return Choice(-1, row, -1, look, texts[row])
        mesh = int(np.searchsorted(self._models, u[2] * self._models[-1], side="right"))
        view = int(u[3] * self.train_views)
        colors = self.colors_of(mesh, False) if u[4] < self.mixing.recolored else []
        color = colors[rng.integers(len(colors))] if colors else -1
        return Choice(mesh, view, color, look, self._caption(rng, mesh, color))

    def _caption(self, rng: np.random.Generator, mesh: int, color: int) -> str:
        phrase = self.meshes.phrases[mesh]
        name = COLOR_NAMES[color] if color >= 0 else None
        return draw_caption(rng, phrase, name, self._others.get(phrase, ()))

    def batch(self, seed: Sequence[int], size: int) -> Pictures:
        """`size` pictures, the same for the same numbers in `seed`."""
        rng = np.random.default_rng(list(seed))
        return self.gather([self.choose(rng) for _ in range(size)], rng)

    def gather(self, choices: Sequence[Choice], rng: np.random.Generator) -> Pictures:
        """The pictures behind choices; `rng` varies the new colours a little."""
        count = len(choices)
        stored, cameras, old = [], [], np.zeros((count, 3), np.float32)
        for i, choice in enumerate(choices):
            if choice.mesh < 0:
                if self.toybox is None:
                    raise UserError("there are no pictures of the toybox to choose from")
                stored.append(self.toybox.stored[choice.view])
                cameras.append(Camera(*(v[choice.view] for v in self.toybox.cameras)))
                continue
            at = (choice.mesh, choice.view)
            stored.append(self.meshes.stored[at])
            cameras.append(Camera(*(values[at] for values in self.meshes.cameras)))
            old[i] = self.meshes.rgb[choice.mesh]
        color = np.array([choice.color for choice in choices])
        bright = rng.uniform(0.88, 1.08, (count, 1))
        new = np.clip(COLOR_RGB[color] * bright + rng.normal(0.0, 0.03, (count, 3)), 0.0, 1.0)
        return Pictures(
            np.stack(stored),
            Camera._make(np.stack(v).astype(np.float32) for v in zip(*cameras, strict=True)),
            Recolor._make((old, new.astype(np.float32), (color >= 0).astype(np.float32))),
            np.array([choice.look for choice in choices], np.int32),
            np.stack([self._tokenise(choice.caption) for choice in choices]),
        )

    def held_out(self, count: int) -> dict[str, list[Choice]]:
        """`count` fixed pictures of each kind, none of which is trained on.

        `views` are held-out views of meshes that are trained on, `models` are meshes of phrases
        that are, and `pairs` are phrases in colours that they are never trained in.
        """
        kinds = {"views": self._usable, "pairs": self._pairs()}
        if len(self.held_out_models):
            kinds["models"] = self.held_out_models
        found = {}
        for number, (kind, meshes) in enumerate(kinds.items()):
            if not len(meshes) or (kind == "views" and not self.mixing.held_out_views):
                continue
            rng = np.random.default_rng([7, number])
            found[kind] = [self._validation_choice(rng, kind, meshes) for _ in range(count)]
        return found

    def validation(self, count: int) -> dict[str, Pictures]:
        """The pictures of `held_out`."""
        return {
            kind: self.gather(choices, np.random.default_rng([8, number]))
            for number, (kind, choices) in enumerate(self.held_out(count).items())
        }

    def _pairs(self) -> np.ndarray:
        return np.array([m for m in self._usable if self.colors_of(int(m), True)], np.int64)

    def _validation_choice(self, rng, kind: str, meshes: np.ndarray) -> Choice:
        mesh = int(rng.choice(meshes))
        views = self.meshes.stored.shape[1]
        first = self.train_views if self.mixing.held_out_views else 0
        view = int(rng.integers(first, views))
        color = int(rng.choice(self.colors_of(mesh, True))) if kind == "pairs" else -1
        look = int(np.searchsorted(self._looks, rng.random(), side="right"))
        look = min(look, 1) if kind == "pairs" else min(look, len(self._looks) - 1)
        return Choice(mesh, view, color, look, self._caption(rng, mesh, color))


def held_out_model(name: str, meshes: int) -> bool:
    """Whether a mesh of a phrase with so many is kept from training, by a checksum of its name."""
    return meshes >= MANY and zlib.crc32(name.encode()) % MODEL_ONE_IN == 0
