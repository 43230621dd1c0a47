"""Dream Fields (arXiv 2112.01455): what a network of images and texts, CLIP, thinks of renderings.

Symbols: features are vectors [P] of length 1, so that their product is the cosine of the angle
between them. The loss of pictures rgb, V renderings `crops` times before other backdrops, is

    -(mean over pictures of  feature of a random crop . text feature),

a mean over views as that of `sds`. What keeps the scene sparse in the paper, its transmittance
loss, is a regulariser on opacity (`scene.regularizers.transmittance_loss`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, PyTree

from dreamjax.distill.sds import Objective
from dreamjax.errors import UserError


class ImageText(Protocol):
    """A frozen network of images and texts: a dataclass without arrays, its parameters apart."""

    @property
    def image_size(self) -> int:
        """H = W in pixels of the images that it sees."""
        ...

    def embed(self, params: PyTree, prompts: Sequence[str]) -> Float[Array, "n p"]:
        """Features, of length 1, of N texts; on the host."""
        ...

    def image_features(self, params: PyTree, rgb: Float[Array, "b h w 3"]) -> Float[Array, "b p"]:
        """Features, of length 1, of square images in [0, 1]; differentiable in rgb."""
        ...


@dataclass(frozen=True)
class DreamFieldsConfig:
    """How renderings are shown to CLIP: `crops` of each, of a side drawn from `crop`.

    Every crop is of another picture, the rendering before a backdrop of its own (`distill.step`).
    `crop` is a range of shares of the rendering's side (the paper: always 154 of 168 pixels).
    Raises UserError for no crops, and for a range that is not 0 < low <= high <= 1.
    """

    crops: int = 8
    crop: tuple[float, float] = (154 / 168, 154 / 168)

    def __post_init__(self):
        if self.crops < 1:
            raise UserError(f"crops must be at least 1; got {self.crops}")
        if len(self.crop) != 2 or not 0.0 < self.crop[0] <= self.crop[1] <= 1.0:
            raise UserError(f"crop must be (low, high), 0 < low <= high <= 1; got {self.crop}")


class DreamFieldsParams(NamedTuple):
    """The objective's parameters: CLIP's, and the prompt's feature."""

    clip: PyTree
    text: Float[Array, " p"]


def dream_fields_params(clip: ImageText, params: PyTree, prompt: str) -> DreamFieldsParams:
    """Parameters for the objective; runs on the host. Raises UserError for an empty prompt."""
    prompt = prompt.strip()
    if not prompt:
        raise UserError("the prompt is empty; it should say what to make")
    return DreamFieldsParams(params, clip.embed(params, [prompt])[0])


def random_crop(
    key: Key[Array, ""], rgb: Float[Array, "h h 3"], config: DreamFieldsConfig, size: int
) -> Float[Array, "size size 3"]:
    """A random square of a picture, brought to `size` pixels (bilinear, smoothed when shrunk).

    Its side and, anywhere inside the picture, its place are uniform.
    """
    key_share, key_place = jax.random.split(key)
    low, high = config.crop
    side = rgb.shape[0] * jax.random.uniform(key_share, (), minval=low, maxval=high)
    corner = (rgb.shape[0] - side) * jax.random.uniform(key_place, (2,))
    scale = jnp.broadcast_to(size / side, (2,))
    return jax.image.scale_and_translate(
        rgb, (size, size, 3), (0, 1), scale, -corner * scale, "linear"
    )


def make_dream_fields(clip: ImageText, config: DreamFieldsConfig) -> Objective:
    """The objective (params: DreamFieldsParams, rgb [P, H, H, 3], views, key, step) -> (loss, ...).

    key belongs to this step and this objective; picture i draws its crop from
    fold_in(key, views.index[i]) alone, so it does not depend on how views are spread over devices.
    params get no gradient; step is not used. Metrics: "loss".
    """

    def objective(params, rgb, views, key, step):
        params = jax.lax.stop_gradient(params)

        def crop(index, image):
            return random_crop(jax.random.fold_in(key, index), image, config, clip.image_size)

        features = clip.image_features(params.clip, jax.vmap(crop)(views.index, rgb))
        cosine = jnp.matmul(
            features.astype(jnp.float32), params.text, precision=jax.lax.Precision.HIGHEST
        )
        loss = -jnp.mean(cosine)
        return loss, {"loss": jax.lax.stop_gradient(loss)}

    return objective
