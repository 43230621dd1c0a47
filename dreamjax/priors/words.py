"""View-dependent text: what a view is called goes into its prompt (DreamFusion section 3.2).

What the text priors share. Texts have one row for each of `all_names` of a prior's view names, N in
all; V views are called by their camera's azimuth, 0 being the object's front, and elevation, in
degrees.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from dreamjax.errors import UserError
from dreamjax.nets.text import Text
from dreamjax.priors.base import Conditions, Prompt
from dreamjax.scene.camera import off_front
from dreamjax.scene.views import (
    OVERHEAD_ELEVATION,
    ViewNames,
    Views,
    all_names,
    name_index,
    name_place,
)

# DreamFusion's words for views, section 3.2.
PAPER_VIEWS: ViewNames = (
    (60.0, ("front view", "side view", "back view")),
    (90.0, ("overhead view",)),
)


class ViewTexts(NamedTuple):
    """An embedded prompt: its view texts [N, L, D], and the text guided away from [1, L, D].

    `textureless` are the view texts of views that show shape alone; None where those are no others.
    """

    texts: Text
    null: Text
    textureless: Text | None = None


def read_prompt(text: str) -> str:
    """The prompt's text on one line; raises UserError where there is no word in it."""
    if not any(map(str.isalnum, text)):
        shown = text if len(text) <= 40 else text[:40] + "..."
        raise UserError(f"the prompt {shown!r} has no word in it: say what to make")
    return " ".join(text.split())


def view_texts(prompt: str, names: ViewNames) -> list[str]:
    """One text a name, "<prompt>, front view" and so on, in the order of `all_names`.

    Raises UserError for a prompt without a word in it.
    """
    prompt = read_prompt(prompt)
    return [f"{prompt}, {name}" for name in all_names(names)]


def embed_views(
    embed_texts: Callable[[Sequence[str]], Text],
    prompt: Prompt,
    names: ViewNames,
    textureless: str = "",
) -> ViewTexts:
    """The texts of all views, embedded; runs on the host.

    `textureless` is the prompt's text for views that show shape alone, "" where that is the same.
    Raises UserError for a prompt without a word in it, and what `embed_texts` does.
    """
    texts = view_texts(prompt.text, names)
    more = view_texts(textureless, names) if textureless else []
    rows = embed_texts([*texts, prompt.negative.strip(), *more])
    count = len(texts)

    def part(first: int, last: int) -> Text:
        return jax.tree.map(lambda x: x[first:last], rows)

    shape_alone = part(count + 1, 2 * count + 1) if textureless else None
    return ViewTexts(part(0, count), part(count, count + 1), shape_alone)


def condition(
    embedded: ViewTexts, views: Views, names: ViewNames, interpolate: bool = False
) -> Conditions:
    """Each view's text, the null text, and the front's and the side's with Perp-Neg's weights.

    A view's text is that of the nearest name or, with `interpolate`, a mixture of its neighbours.
    There are no negatives where no name lies half-way between front and back.
    """
    azimuth, elevation = views.camera.azimuth, views.camera.elevation
    name = name_index(names, azimuth, elevation)

    def shown(read: Callable[[Text], Text]) -> Text:
        """What `read` makes of the view texts, of their own for textureless views."""
        texts = read(embedded.texts)
        if embedded.textureless is None:
            return texts
        return jax.tree.map(
            lambda a, b: jnp.where(views.textureless.reshape(-1, *[1] * (a.ndim - 1)) > 0.5, b, a),
            texts,
            read(embedded.textureless),
        )

    def called(number: int) -> Text:
        return shown(lambda texts: nearest_text(texts, jnp.full_like(name, number)))

    if interpolate:
        cond = shown(lambda texts: interpolated_text(texts, azimuth, elevation, names))
    else:
        cond = shown(lambda texts: nearest_text(texts, name))
    uncond = jax.tree.map(lambda x, c: jnp.broadcast_to(x, c.shape), embedded.null, cond)
    around = len(names[0][1])
    if around < 3 or around % 2 == 0:
        return Conditions(cond, uncond)
    weights = negative_weights(azimuth, elevation)
    front_and_side = zip((0, around // 2), weights, strict=True)
    return Conditions(cond, uncond, tuple((called(number), w) for number, w in front_and_side))


def nearest_text(text: Text, name: Int[Array, " v"]) -> Text:
    """The text [V, L, D] of each view's name, the paper's choice."""
    return jax.tree.map(lambda x: x[name], text)


def interpolated_text(
    text: Text, azimuth: Float[Array, " v"], elevation: Float[Array, " v"], names: ViewNames
) -> Text:
    """The texts mixed by `view_shares` [V, L, D]; a token counts where one mixed in has it."""
    shares = view_shares(azimuth, elevation, names)
    tokens = jnp.einsum("vn,nld->vld", shares, text.tokens, precision=jax.lax.Precision.HIGHEST)
    return Text(tokens, jnp.any((shares[:, :, None] > 0) & text.mask, axis=1))


def view_shares(
    azimuth: Float[Array, " v"], elevation: Float[Array, " v"], names: ViewNames
) -> Float[Array, "v n"]:
    """Shares of all names, which sum to 1: those of a view's two neighbours in its row.

    With `PAPER_VIEWS` linear in azimuth from front over side (at 90 degrees) to back, as in
    stable-dreamfusion; above 60 degrees of elevation overhead alone.
    """
    row, place = name_place(names, azimuth, elevation)
    shares = [
        jnp.where((row == number)[:, None], 1.0 - jnp.abs(place[:, None] - jnp.arange(len(own))), 0)
        for number, (_, own) in enumerate(names)
    ]
    return jnp.maximum(jnp.concatenate(shares, axis=1), 0.0)


def negative_weights(
    azimuth: Float[Array, " v"], elevation: Float[Array, " v"]
) -> Float[Array, "2 v"]:
    """How far Perp-Neg guides each view away from the front's and from the side's text, 0 or more.

    arXiv 2304.04968's weights for 3D with threestudio's constants, made continuous. With r the
    share of the view nearer to the front and f(r) = exp(-r / 2) - exp(-1 / 2), which falls to
    f(1) = 0: between front and side 4 f(r) and 4 f(1 - r), between side and back 4 f(0) + f(r) and
    f(r). So the front's text is pushed away from wherever the front is not seen, the more the
    farther it is. Nothing is from overhead.
    """
    quarters = off_front(azimuth) / 90.0

    def falling(share):
        return jnp.exp(-share / 2.0) - jnp.exp(-0.5)

    ahead = quarters < 1.0
    r = jnp.where(ahead, 1.0 - quarters, 2.0 - quarters)
    front = jnp.where(ahead, 4.0 * falling(r), 4.0 * falling(0.0) + falling(r))
    side = jnp.where(ahead, 4.0 * falling(1.0 - r), falling(r))
    return jnp.where(elevation > OVERHEAD_ELEVATION, 0.0, jnp.stack([front, side]))
