"""What a prior is: a frozen text-to-image diffusion model that score distillation can ask.

Symbols: rgb [B, H, W, 3] in [0, 1]; z_0 [B, ...] the prior's own space (pixels in [-1, 1] or
latents); z_t its diffusion; t an integer index [B] in 0..T-1; eps_hat as `schedule` defines eps.
"""

from collections.abc import Sequence
from typing import Protocol

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, PyTree

from dreamjax.diffusion.schedule import Schedule
from dreamjax.nets.text import Text

__all__ = ["PAPER_VIEWS", "Prior", "Text", "decode_pixels", "encode_pixels"]

# DreamFusion's words for views, section 3.2, as `Prior.view_names`.
PAPER_VIEWS = ((60.0, ("front view", "side view", "back view")), (90.0, ("overhead view",)))


class Prior(Protocol):
    """A frozen dataclass without arrays; its parameters are a pytree passed to each call."""

    @property
    def schedule(self) -> Schedule:
        """The noise schedule the network was trained on."""
        ...

    @property
    def prediction(self) -> str:
        """What the network predicts: "eps", "x0" or "v" (`predict_eps` is eps in any case)."""
        ...

    @property
    def image_size(self) -> int:
        """H = W in pixels that `encode` brings any rgb to."""
        ...

    @property
    def view_names(self) -> tuple[tuple[float, tuple[str, ...]], ...]:
        """What it calls views, as `scene.camera.ViewNames`: rows of (greatest elevation, names)."""
        ...

    def embed(self, params: PyTree, prompts: Sequence[str]) -> Text:
        """Token embeddings [N, L, D] and mask [N, L] of N prompts; "" gives the null text.

        Runs on the host, once a run; not for use inside `jit`. Raises UserError for a prompt that
        the prior cannot read.
        """
        ...

    def encode(
        self, params: PyTree, rgb: Float[Array, "b h w 3"], key: Key[Array, ""]
    ) -> Float[Array, "b ..."]:
        """z_0 of images of any size, differentiable in rgb; key is for priors that draw."""
        ...

    def predict_eps(
        self, params: PyTree, z_t: Float[Array, "b ..."], t: Int[Array, " b"], text: Text
    ) -> Float[Array, "b ..."]:
        """eps_hat of z_t at t given one text a row, whatever the network itself predicts."""
        ...


def encode_pixels(rgb: Float[Array, "b h w 3"], image_size: int) -> Float[Array, "b s s 3"]:
    """`Prior.encode` of a pixel prior: resized bilinearly (smoothed when shrunk), then [-1, 1]."""
    batch, height, width, channels = rgb.shape
    if (height, width) != (image_size, image_size):
        rgb = jax.image.resize(rgb, (batch, image_size, image_size, channels), "bilinear")
    return 2.0 * rgb - 1.0


def decode_pixels(z_0: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
    """Pictures in [0, 1] of a pixel prior's z_0."""
    return 0.5 * (jnp.clip(z_0, -1.0, 1.0) + 1.0)
