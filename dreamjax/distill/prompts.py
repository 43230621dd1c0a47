"""View-dependent text: what a view is called goes into its prompt (DreamFusion section 3.2).

Azimuth and elevation are a camera's [V] in degrees, azimuth 0 the front; texts have one row for
each of `all_names` of a prior's `view_names`, N in all.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from dreamjax.errors import UserError
from dreamjax.priors.base import Prior, Text
from dreamjax.scene.camera import (
    OVERHEAD_ELEVATION,
    ViewNames,
    all_names,
    name_place,
    off_front,
)


def view_prompts(prompt: str, names: ViewNames) -> list[str]:
    """One text a name, "<prompt>, front view" and so on, in the order of `all_names`.

    Raises UserError for an empty prompt.
    """
    prompt = prompt.strip()
    if not prompt:
        raise UserError("the prompt is empty; it should say what to make")
    return [f"{prompt}, {name}" for name in all_names(names)]


def embed_views(
    prior: Prior, params: PyTree, prompt: str, negative_prompt: str = ""
) -> tuple[Text, Text]:
    """The view texts [N, L, D] and the text guided away from [1, L, D].

    Runs on the host. Raises UserError for an empty prompt and for text the prior cannot read.
    """
    text = prior.embed(params, [*view_prompts(prompt, prior.view_names), negative_prompt.strip()])
    return jax.tree.map(lambda x: x[:-1], text), jax.tree.map(lambda x: x[-1:], text)


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
