"""What a prior is: a frozen diffusion model of images that score distillation can ask.

Symbols: rgb [B, H, W, 3] in [0, 1]; z_0 [B, h, w, c] the prior's own space (pixels in [-1, 1] or
latents); z_t its diffusion; t an integer index [B] in 0..T-1; V views. A condition is a pytree of
what the network is given beside z_t and t (an embedded text, a label, ...), one row an example.
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, PyTree

from dreamjax.diffusion.reverse import Parameterisation
from dreamjax.diffusion.schedule import Schedule
from dreamjax.scene.camera import Camera
from dreamjax.scene.views import Views


class Picture(NamedTuple):
    """A picture of an object from its front, S pixels a side, and the camera that took it.

    `rgb` in [0, 1] is over white; `mask` is 1 where the object is, 0 where nothing is; `depth`, in
    no unit, grows away from the camera and counts on the object alone.
    """

    rgb: Float[Array, "s s 3"]
    mask: Float[Array, "s s"]
    camera: Camera
    depth: Float[Array, "s s"] | None = None


class Prompt(NamedTuple):
    """What to make, and what to guide away from ("": from the null text).

    `image` is a picture of it, for priors that are given one.
    """

    text: str
    negative: str = ""
    image: Picture | None = None


class Conditions(NamedTuple):
    """What a prior is asked with for V views; every leaf of a condition has the leading axis V.

    `cond` and `uncond` are the two sides of guidance. `negatives` are conditions to guide away
    from, each with its weight [V], 0 or more, for Perp-Neg; a prior that knows none has none.
    """

    cond: PyTree
    uncond: PyTree
    negatives: tuple[tuple[PyTree, Float[Array, " v"]], ...] = ()


class Model(Protocol):
    """A diffusion network, its parameters apart: hashable and without arrays."""

    @property
    def schedule(self) -> Schedule:
        """The noise schedule that the network was trained on."""
        ...

    @property
    def parameterisation(self) -> Parameterisation:
        """What the network's output stands for."""
        ...

    @property
    def image_size(self) -> int:
        """H = W in pixels that `encode` brings any rgb to."""
        ...

    @property
    def shape(self) -> tuple[int, int, int]:
        """h, w, c of z_0."""
        ...

    def encode(
        self,
        params: PyTree,
        rgb: Float[Array, "b h w channels"],
        keys: Key[Array, " b"],
        cheap: bool = False,
    ) -> Float[Array, "b h2 w2 c"]:
        """z_0 of images of any size, differentiable in rgb.

        `keys`, one a picture, are for priors that draw.

        `cheap` asks for a rough z_0 at a fraction of the work, where the prior has such a way.
        """
        ...

    def decode(
        self, params: PyTree, z_0: Float[Array, "b h w c"]
    ) -> Float[Array, "b h2 w2 channels"]:
        """Pictures in [0, 1]."""
        ...

    def predict(
        self, params: PyTree, z_t: Float[Array, "b h w c"], t: Int[Array, " b"], condition: PyTree
    ) -> Float[Array, "b h w d"]:
        """The network's output in its own parameterisation, given one condition a row."""
        ...


class Sampled(Model, Protocol):
    """A model that pictures can be drawn from, by texts or names of classes."""

    @property
    def levels(self) -> int:
        """How many values a pixel of a picture has."""
        ...

    def embed_texts(self, params: PyTree, texts: Sequence[str]) -> PyTree:
        """The condition of N texts, a row each; "" is the null text.

        Runs on the host. Raises UserError for a text that the model cannot read.
        """
        ...


class SampledPrior(Sampled, Protocol):
    """A model that pictures can be drawn from, with its parameters."""

    def load(self) -> PyTree:
        """The parameters; on the host, once. Raises UserError for weights that cannot be had."""
        ...


class Prior(Model, Protocol):
    """A model that can be told a prompt and views; its fields are its settings.

    It is frozen and holds no arrays. What must be read from its files is read once, on the host.
    """

    def load(self) -> PyTree:
        """The parameters; on the host, once. Raises UserError for weights that cannot be had."""
        ...

    def embed(self, params: PyTree, prompt: Prompt) -> PyTree:
        """What `condition` needs of a prompt; on the host, once.

        Raises UserError for a prompt that the prior cannot read, or without a word in it.
        """
        ...

    def condition(self, embedded: PyTree, views: Views) -> Conditions:
        """What the network is asked with for these views; inside `jit`."""
        ...


class NetPrior:
    """The part of a prior that its network's description, `net`, answers."""

    @property
    def net(self) -> Sampled:
        """The network that the weights are of; a subclass reads it once."""
        raise NotImplementedError

    @property
    def schedule(self) -> Schedule:
        """The noise schedule that the network was trained on."""
        return self.net.schedule

    @property
    def parameterisation(self) -> Parameterisation:
        """What the network's output stands for."""
        return self.net.parameterisation

    @property
    def image_size(self) -> int:
        """H = W in pixels that `encode` brings any rgb to."""
        return self.net.image_size

    @property
    def shape(self) -> tuple[int, int, int]:
        """h, w, c of z_0."""
        return self.net.shape

    @property
    def levels(self) -> int:
        """How many values a pixel of a picture has."""
        return self.net.levels

    def embed_texts(self, params: PyTree, texts: Sequence[str]) -> PyTree:
        """The condition of N texts, a row each; see `Sampled.embed_texts`."""
        return self.net.embed_texts(params, texts)

    def encode(
        self,
        params: PyTree,
        rgb: Float[Array, "b h w channels"],
        keys: Key[Array, " b"],
        cheap: bool = False,
    ) -> Float[Array, "b h2 w2 c"]:
        """z_0 of images of any size; see `Model.encode`."""
        return self.net.encode(params, rgb, keys, cheap)

    def decode(
        self, params: PyTree, z_0: Float[Array, "b h w c"]
    ) -> Float[Array, "b h2 w2 channels"]:
        """Pictures in [0, 1]."""
        return self.net.decode(params, z_0)

    def predict(
        self, params: PyTree, z_t: Float[Array, "b h w c"], t: Int[Array, " b"], condition: PyTree
    ) -> Float[Array, "b h w d"]:
        """The network's output in its own parameterisation, given one condition a row."""
        return self.net.predict(params, z_t, t, condition)


class Pixels:
    """What a network whose z_0 are pixels in [-1, 1] answers of encoding, beside `Model`."""

    image_size: int  # H = W in pixels; a subclass says it

    def encode(
        self,
        params: PyTree,
        rgb: Float[Array, "b h w channels"],
        keys: Key[Array, " b"],
        cheap: bool = False,
    ) -> Float[Array, "b s s channels"]:
        """Pixels brought to `image_size` and to [-1, 1]; nothing is drawn, and nothing cheaper."""
        return encode_pixels(rgb, self.image_size)

    def decode(self, params: PyTree, z_0: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        """Pictures in [0, 1]; `params` are not used."""
        return decode_pixels(z_0)


def encode_pixels(
    rgb: Float[Array, "b h w channels"], image_size: int
) -> Float[Array, "b s s channels"]:
    """`Model.encode` of a pixel prior: resized bilinearly (smoothed when shrunk), then [-1, 1]."""
    batch, height, width, channels = rgb.shape
    if (height, width) != (image_size, image_size):
        rgb = jax.image.resize(rgb, (batch, image_size, image_size, channels), "bilinear")
    return 2.0 * rgb - 1.0


def decode_pixels(z_0: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
    """Pictures in [0, 1] of a pixel prior's z_0."""
    return 0.5 * (jnp.clip(z_0, -1.0, 1.0) + 1.0)
