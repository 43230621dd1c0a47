"""Draw captioned pictures: each is a pure function of a key, and `vmap`s."""

import dataclasses
import zlib
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from dreamjax.errors import UserError
from dreamjax.scene.backgrounds.backdrops import sample_backdrop
from dreamjax.scene.camera import Camera, Cameras, sample_camera
from dreamjax.scene.shading import Light, sample_shading
from dreamjax.scene.views import name_index, view_index
from dreamjax.settings import Positive, Range, Share, settings
from dreamjax.toybox.captions import BOTH, CLAY, ONE, PLAIN, VIEW_NAMES, draw_caption
from dreamjax.toybox.kinds import COLORS, FIXED, KINDS
from dreamjax.toybox.primitives import Shape, pack
from dreamjax.toybox.render import Picture, render

COLOR_NAMES = tuple(COLORS)
TRAIN, HELD_OUT, ALL = range(3)
LOOKS = ("albedo", "shaded", "textureless")
TEXTURELESS = LOOKS.index("textureless")
_USUAL_SHARE = 0.35


Emphasis = tuple[tuple[str, Positive], ...]  # kinds to draw more often, each with its factor


@settings
class Draws:
    """How toybox pictures are taken, and how their captions are worded."""

    cameras: Cameras = Cameras()  # where pictures are taken from
    light: Light = Light(shaded=0.55, textureless=0.25)  # their light and looks
    plain: Share = 0.03  # of the captions of coloured pictures that name no colour
    supersample: Annotated[int, Range(1, 16)] = 2  # rays along each side of a pixel
    emphasis: Emphasis = ()  # kinds to draw more often, as (("house", 4.0), ("car", 3.0))

    def __post_init__(self):
        kind_factors(self.emphasis)


class Example(NamedTuple):
    """One captioned picture with its ground truth.

    `kind` indexes `KINDS`; `colors` are the first and second part's, as indices of `COLORS`, equal
    where the kind has but one; `view` indexes `VIEW_WORDS` (what the caption calls it is finer),
    `look` indexes `LOOKS`.
    """

    picture: Picture
    tokens: Int[Array, "*b 24"]
    kind: Int[Array, "*b"]
    colors: Int[Array, "*b 2"]
    view: Int[Array, "*b"]
    look: Int[Array, "*b"]
    camera: Camera


def usual_second(kind: int, first: int) -> int:
    """The second part's colour where a caption does not name it."""
    usual = KINDS[kind].usual
    return first if usual in (None, "same") else COLOR_NAMES.index(usual)


def is_held_out(kind: int, first: int, second: int) -> bool:
    """Whether a combination is kept from training: one in ten, by a checksum of its names."""
    name = f"{KINDS[kind].name}|{COLOR_NAMES[first]}|{COLOR_NAMES[second]}"
    return zlib.crc32(name.encode()) % 10 == 0


def combination_weights(split: int) -> np.ndarray:
    """How often each `[kind, first, second]` is drawn in a split; sums to 1.

    Training draws every kind alike: pairs, rarer elsewhere, are the hardest to learn.
    """
    count = len(COLOR_NAMES)
    weights = np.zeros((len(KINDS), count, count))
    for k, kind in enumerate(KINDS):
        for first in range(count):
            usual = usual_second(k, first)
            if kind.usual:
                others = [c for c in range(count) if c != usual]
                weights[k, first, others] = (1 - _USUAL_SHARE) / len(others)
                weights[k, first, usual] = _USUAL_SHARE
            else:
                weights[k, first, first] = 1.0
            for second in range(count):
                held_out = is_held_out(k, first, second)
                if split != ALL and held_out != (split == HELD_OUT):
                    weights[k, first, second] = 0.0
        share = 1.0 if split == TRAIN else kind.weight
        weights[k] *= share / max(weights[k].sum(), 1e-12)
    return weights / weights.sum()


def kind_factors(emphasis: Emphasis) -> np.ndarray:
    """The factor of each kind, 1 where `emphasis` does not name it; float32 [kinds].

    Raises UserError for a kind that does not exist.
    """
    names = [kind.name for kind in KINDS]
    factors = np.ones(len(names), np.float32)
    for name, factor in emphasis:
        if name not in names:
            raise UserError(f"emphasis: no kind is {name!r}; there are {', '.join(names)}")
        factors[names.index(name)] = factor
    return factors


def more_textureless(light: Light, factor: float) -> Light:
    """The same looks with textureless ones `factor` times as often beside the others."""
    textured = light.shaded * (1.0 - light.textureless)
    textureless = light.shaded * light.textureless * factor
    lit = textured + textureless
    shaded = lit / (1.0 - light.shaded + lit)
    return dataclasses.replace(light, shaded=shaded, textureless=textureless / lit)


AS_USUAL = Draws()
LOG_WEIGHTS = np.log(
    np.maximum([combination_weights(split).ravel() for split in (TRAIN, HELD_OUT, ALL)], 1e-30)
).astype(np.float32)
USUAL_SECOND = np.array(
    [[usual_second(k, c) for c in range(len(COLORS))] for k in range(len(KINDS))], np.int32
)


def draw_palette(key: Key[Array, ""], colors: Int[Array, "2"]) -> Float[Array, "parts 3"]:
    """The rgb of every part: the named colours with a little variation, then the fixed ones."""
    base = jnp.asarray(list(COLORS.values()))
    parts = jnp.concatenate([base[colors], jnp.asarray([FIXED[i] for i in sorted(FIXED)])])
    key_tint, key_bright, key_same = jax.random.split(key, 3)
    tint = 0.03 * jax.random.normal(key_tint, parts.shape)
    bright = jax.random.uniform(key_bright, (parts.shape[0], 1), minval=0.88, maxval=1.08)
    varied = jnp.clip(parts * bright + tint, 0.0, 1.0)
    return varied.at[1].set(jnp.where(colors[0] == colors[1], varied[0], varied[1]))


def build_shape(key: Key[Array, ""], kind: Int[Array, ""]) -> Shape:
    """An object of a kind with random proportions."""
    return jax.lax.switch(kind, [lambda k, b=entry.build: pack(b(k)) for entry in KINDS], key)


def draw_form(key: Key[Array, ""], usual: Array, textureless: Array, plain: float) -> Array:
    """Which caption form fits: textureless pictures are never described by colours."""
    key_one, key_plain, key_clay = jax.random.split(key, 3)
    share_one = jnp.where(usual, 0.85, 0.05)
    form = jnp.where(jax.random.bernoulli(key_one, share_one), ONE, BOTH)
    form = jnp.where(jax.random.bernoulli(key_plain, plain), PLAIN, form)
    return jnp.where(textureless, jnp.where(jax.random.bernoulli(key_clay), CLAY, PLAIN), form)


def draw_example(
    key: Key[Array, ""], size: int, split: int | Int[Array, ""] = TRAIN, draws: Draws = AS_USUAL
) -> Example:
    """Draw object, colours, camera, light, backdrop and caption, and take the picture.

    Args:
        key: the only source of randomness.
        size: height and width in pixels (static).
        split: TRAIN, HELD_OUT or ALL combinations of kind and colours.
        draws: the distributions (static).
    """
    keys = jax.random.split(key, 8)
    count = len(COLORS)
    factors = np.repeat(np.log(kind_factors(draws.emphasis)), count**2)
    cell = jax.random.categorical(keys[0], jnp.asarray(LOG_WEIGHTS)[split] + factors)
    kind, colors = cell // count**2, jnp.stack([cell // count % count, cell % count])
    camera = sample_camera(keys[1], draws.cameras)
    shading = sample_shading(keys[2], camera.position, draws.light)
    view = view_index(camera.azimuth, camera.elevation)
    name = name_index(VIEW_NAMES, camera.azimuth, camera.elevation)
    usual = colors[1] == jnp.asarray(USUAL_SECOND)[kind, colors[0]]
    form = draw_form(keys[3], usual, shading.textureless > 0.5, draws.plain)
    picture = render(
        build_shape(keys[4], kind),
        draw_palette(keys[5], colors),
        camera,
        shading,
        sample_backdrop(keys[6]),
        size,
        draws.supersample,
    )
    return Example(
        picture=picture,
        tokens=draw_caption(keys[7], kind, colors, form, name),
        kind=kind,
        colors=colors,
        view=view,
        look=jnp.where(shading.diffuse > 0, 1, 0) + shading.textureless.astype(jnp.int32),
        camera=camera,
    )
