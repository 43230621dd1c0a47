"""Dream Fields (arXiv 2112.01455): what a network of images and texts, CLIP, thinks of renderings.

Symbols: features are vectors [P] of length 1, so that their product is the cosine of the angle
between them. The loss of V pictures rgb (each rendering before several backgrounds) is

    -(mean over pictures of  feature of a random crop . text feature),

a mean over views as that of `sds`. What keeps the scene sparse in the paper, its transmittance
loss, is a penalty (`scene.penalties.Transmittance`).
"""

from typing import Annotated, Protocol

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, PyTree

from dreamjax.clock import Clock
from dreamjax.distill.objective import Frozen, Losses, load_frozen
from dreamjax.priors.base import Prompt
from dreamjax.scene.views import Views
from dreamjax.settings import Range, Rising, settings

Side = Annotated[float, Range(0.0, 1.0, above=True)]


class ImageText(Protocol):
    """A frozen network of images and texts: a dataclass without arrays, its parameters apart."""

    @property
    def image_size(self) -> int:
        """H = W in pixels of the images that it sees."""
        ...

    def load(self) -> PyTree:
        """The parameters; on the host, once."""
        ...

    def embed(self, params: PyTree, prompt: Prompt) -> Float[Array, " p"]:
        """The feature, of length 1, of the prompt's text; on the host."""
        ...

    def image_features(self, params: PyTree, rgb: Float[Array, "b h w 3"]) -> Float[Array, "b p"]:
        """Features, of length 1, of square images in [0, 1]; differentiable in rgb."""
        ...


@settings
class DreamFields:
    """CLIP's cosine between the prompt and random crops of renderings; needs a CLIP as the prior.

    The paper shows eight crops of each rendering, each before a background of its own:
    `background=Textures(each=8)`.
    """

    crop: Annotated[tuple[Side, Side], Rising()] = (154 / 168, 154 / 168)  # of a picture's side

    def load(self, prior: ImageText, prompt: Prompt, params: PyTree = None) -> Frozen:
        """CLIP's parameters and the prompt's feature."""
        return load_frozen(prior, prompt, params)

    def init(self, key: Key[Array, ""], prior: ImageText, frozen: Frozen) -> PyTree:
        """Nothing is trained beside the scene."""
        return {}

    def loss(
        self,
        prior: ImageText,
        frozen: Frozen,
        trained: PyTree,
        rgb: Float[Array, "v h h 3"],
        views: Views,
        key: Key[Array, ""],
        clock: Clock,
        cheap: bool,
    ) -> Losses:
        """Minus the mean cosine; picture i draws its crop from fold_in(key, views.index[i])."""
        frozen = jax.lax.stop_gradient(frozen)

        def crop(index, image):
            return random_crop(jax.random.fold_in(key, index), image, self.crop, prior.image_size)

        features = prior.image_features(frozen.params, jax.vmap(crop)(views.index, rgb))
        cosine = jnp.matmul(
            features.astype(jnp.float32), frozen.embedded, precision=jax.lax.Precision.HIGHEST
        )
        loss = -jnp.mean(cosine)
        return Losses(loss, jnp.zeros(()), {"loss": jax.lax.stop_gradient(loss)})


def random_crop(
    key: Key[Array, ""], rgb: Float[Array, "h h 3"], sides: tuple[float, float], size: int
) -> Float[Array, "size size 3"]:
    """A random square of a picture, brought to `size` pixels (bilinear, smoothed when shrunk).

    Its side, as a share of the picture's, is uniform in `sides`; its place, anywhere inside the
    picture, is uniform too.
    """
    key_share, key_place = jax.random.split(key)
    low, high = sides
    side = rgb.shape[0] * jax.random.uniform(key_share, (), minval=low, maxval=high)
    corner = (rgb.shape[0] - side) * jax.random.uniform(key_place, (2,))
    scale = jnp.broadcast_to(size / side, (2,))
    return jax.image.scale_and_translate(
        rgb, (size, size, 3), (0, 1), scale, -corner * scale, "linear"
    )
