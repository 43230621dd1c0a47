"""View-dependent text: what a view is called goes into its prompt (DreamFusion section 3.2).

Azimuth and elevation are a camera's [V] in degrees, azimuth 0 the front; texts have one row for
each of `VIEW_WORDS`.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from dreamjax.errors import UserError
from dreamjax.priors.base import Prior, Text
from dreamjax.scene.camera import OVERHEAD_ELEVATION, VIEW_WORDS

FRONT, SIDE = VIEW_WORDS.index("front"), VIEW_WORDS.index("side")


def view_prompts(prompt: str) -> list[str]:
    """One text a view word, "<prompt>, front view" and so on, in `VIEW_WORDS` order.

    Raises UserError for an empty prompt.
    """
    prompt = prompt.strip()
    if not prompt:
        raise UserError("the prompt is empty; it should say what to make")
    return [f"{prompt}, {word} view" for word in VIEW_WORDS]


def embed_views(
    prior: Prior, params: PyTree, prompt: str, negative_prompt: str = ""
) -> tuple[Text, Text]:
    """The view texts [4, L, D] in `VIEW_WORDS` order and the text guided away from [1, L, D].

    Runs on the host. Raises UserError for an empty prompt and for text the prior cannot read.
    """
    text = prior.embed(params, [*view_prompts(prompt), negative_prompt.strip()])
    return jax.tree.map(lambda x: x[:-1], text), jax.tree.map(lambda x: x[-1:], text)


def nearest_text(text: Text, word: Int[Array, " v"]) -> Text:
    """The text [V, L, D] of each view's word, the paper's choice."""
    return jax.tree.map(lambda x: x[word], text)


def interpolated_text(
    text: Text, azimuth: Float[Array, " v"], elevation: Float[Array, " v"]
) -> Text:
    """The texts mixed by `view_shares` [V, L, D]; a token counts where one mixed in has it."""
    shares = view_shares(azimuth, elevation)
    tokens = jnp.einsum("vn,nld->vld", shares, text.tokens, precision=jax.lax.Precision.HIGHEST)
    return Text(tokens, jnp.any((shares[:, :, None] > 0) & text.mask, axis=1))


def view_shares(azimuth: Float[Array, " v"], elevation: Float[Array, " v"]) -> Float[Array, "v 4"]:
    """Shares of front, side, back and overhead, which sum to 1.

    Linear in azimuth from front over side (at 90 degrees) to back, as in stable-dreamfusion; above
    60 degrees of elevation overhead alone.
    """
    quarters = _off_front(azimuth) / 90.0
    around = jnp.stack([1.0 - quarters, 1.0 - jnp.abs(quarters - 1.0), quarters - 1.0], axis=-1)
    over = (elevation > OVERHEAD_ELEVATION)[:, None]
    return jnp.concatenate([jnp.where(over, 0.0, jnp.maximum(around, 0.0)), over], axis=-1)


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
    quarters = _off_front(azimuth) / 90.0

    def falling(share):
        return jnp.exp(-share / 2.0) - jnp.exp(-0.5)

    ahead = quarters < 1.0
    r = jnp.where(ahead, 1.0 - quarters, 2.0 - quarters)
    front = jnp.where(ahead, 4.0 * falling(r), 4.0 * falling(0.0) + falling(r))
    side = jnp.where(ahead, 4.0 * falling(1.0 - r), falling(r))
    return jnp.where(elevation > OVERHEAD_ELEVATION, 0.0, jnp.stack([front, side]))


def _off_front(azimuth: Float[Array, " v"]) -> Float[Array, " v"]:
    """Degrees from azimuth 0 on either side, 0 to 180."""
    return jnp.abs(jnp.mod(azimuth + 180.0, 360.0) - 180.0)
