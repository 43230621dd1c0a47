"""The prior that ships with the package: a v-prediction pixel UNet over a word vocabulary.

One safetensors file holds everything: float16 tensors under dotted names, and in its metadata the
network's sizes, the vocabulary and the schedule.
"""

import dataclasses
import difflib
import json
from collections.abc import Sequence
from functools import cached_property
from importlib import resources
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, PyTree

from dreamjax import weights
from dreamjax.diffusion.process import eps_from_v
from dreamjax.diffusion.reverse import Parameterisation
from dreamjax.diffusion.schedule import Schedule, cosine
from dreamjax.errors import UserError
from dreamjax.nets.text import Text, TextConfig, TextEncoder
from dreamjax.nets.unet import UNet, UNetConfig
from dreamjax.priors.base import PAPER_VIEWS, decode_pixels, encode_pixels
from dreamjax.weights import tuples

FORMAT = "dreamjax-toybox-1"


@dataclasses.dataclass(frozen=True)
class ToyboxPrior:
    """A text-to-image diffusion model of toybox pictures (the interface of `priors.base.Prior`).

    `view_names` are what captions called views in its training.
    """

    unet: UNetConfig
    text: TextConfig
    vocabulary: tuple[str, ...]
    image_size: int = 32
    schedule_steps: int = 1000
    view_names: tuple[tuple[float, tuple[str, ...]], ...] = PAPER_VIEWS

    def __post_init__(self):
        words, rows = len(self.vocabulary), self.text.vocabulary_size
        if words != rows:
            raise UserError(f"{words} words (padding among them) but vocabulary_size is {rows}")
        if self.unet.text_dim != self.text.dim:
            raise UserError(f"unet.text_dim is {self.unet.text_dim}, text.dim {self.text.dim}")

    @property
    def prediction(self) -> str:
        """What the network predicts."""
        return "v"

    @property
    def parameterisation(self) -> Parameterisation:
        """What the network's output stands for."""
        return Parameterisation(self.prediction, "fixed_small")

    @property
    def shape(self) -> tuple[int, int, int]:
        """H, W, C of an image."""
        return (self.image_size, self.image_size, 3)

    @property
    def levels(self) -> int:
        """How many values a pixel of the training pictures may have."""
        return 256

    @cached_property
    def schedule(self) -> Schedule:
        """The cosine schedule of `schedule_steps` steps."""
        return cosine(self.schedule_steps)

    def init(self, key: Key[Array, ""]) -> PyTree:
        """Fresh parameters {"unet", "text"}."""
        key_unet, key_text = jax.random.split(key)
        ids = jnp.zeros((1, self.text.length), jnp.int32)
        text_params = TextEncoder(self.text).init(key_text, ids)
        text = TextEncoder(self.text).apply(text_params, ids)
        x = jnp.zeros((1, self.image_size, self.image_size, 3))
        unet_params = UNet(self.unet).init(key_unet, x, jnp.zeros(1), text)
        return {"unet": unet_params["params"], "text": text_params["params"]}

    def embed(self, params: PyTree, prompts: Sequence[str]) -> Text:
        """Token embeddings of prompts; raises UserError for words outside the vocabulary."""
        ids = np.stack([tokenise(prompt, self.vocabulary, self.text.length) for prompt in prompts])
        return self.embed_ids(params, jnp.asarray(ids))

    def embed_ids(self, params: PyTree, ids: Int[Array, "n l"]) -> Text:
        """Token embeddings of word numbers."""
        return TextEncoder(self.text).apply({"params": params["text"]}, ids)

    def encode(
        self, params: PyTree, rgb: Float[Array, "b h w 3"], key: Key[Array, ""]
    ) -> Float[Array, "b s s 3"]:
        """Pixels brought to `image_size` and to [-1, 1]; `params` and `key` are not used."""
        return encode_pixels(rgb, self.image_size)

    def decode(self, params: PyTree, z_0: Float[Array, "b h w 3"]) -> Float[Array, "b h w 3"]:
        """Pictures in [0, 1]; `params` are not used."""
        return decode_pixels(z_0)

    def output(
        self, params: PyTree, z_t: Float[Array, "b h w 3"], t: Int[Array, " b"], text: Text
    ) -> Float[Array, "b h w 3"]:
        """The network's own output, v."""
        return UNet(self.unet).apply({"params": params["unet"]}, z_t, t, text)

    def predict_eps(
        self, params: PyTree, z_t: Float[Array, "b h w 3"], t: Int[Array, " b"], text: Text
    ) -> Float[Array, "b h w 3"]:
        """eps_hat from the network's v."""
        return eps_from_v(self.schedule, z_t, t, self.output(params, z_t, t, text))


def tokenise(text: str, vocabulary: Sequence[str], length: int) -> Int[np.ndarray, " l"]:
    """Word numbers of a text, 0-padded: lower case, no punctuation, "an" read as "a".

    Raises UserError for an unknown word, with the nearest known ones, and for too many words.
    """
    kept = "".join(c if c.isalnum() else " " for c in text.lower()).split()
    words = ["a" if word == "an" else word for word in kept]
    number = {word: i for i, word in enumerate(vocabulary) if word}
    for word in words:
        if word not in number:
            near = difflib.get_close_matches(word, number, n=3, cutoff=0.5)
            hint = (
                f"the nearest it knows: {', '.join(near)}" if near else "nothing it knows is near"
            )
            raise UserError(
                f"the shipped prior does not know the word {word!r}; {hint}. docs/toybox.md lists "
                "its words; configs/sd15.py understands free text"
            )
    if len(words) > length:
        raise UserError(f"the prompt has {len(words)} words; the shipped prior reads {length}")
    return np.array([number[w] for w in words] + [0] * (length - len(words)), np.int32)


def save(path: str | Path, prior: ToyboxPrior, params: PyTree) -> None:
    """Write prior and parameters (float16) as one safetensors file, beside and then renamed.

    Raises UserError for parameters that float16 cannot hold, and where nothing can be written.
    """
    metadata = {"format": FORMAT, "prior": json.dumps(dataclasses.asdict(prior))}
    weights.save(path, metadata, params)


def load(path: str | Path | None = None) -> tuple[ToyboxPrior, PyTree]:
    """Read a prior with its float32 parameters; without a path, the one that ships.

    Raises UserError for a file that is missing, damaged, or not of this kind.
    """
    if path is None:
        path = resources.files("dreamjax.priors") / "weights" / "toybox.safetensors"
    metadata, tensors = weights.read(path, FORMAT)
    prior = _parse(path, metadata.get("prior", ""))
    return prior, weights.fit(path, tensors, jax.eval_shape(prior.init, jax.random.key(0)))


def _parse(path: str | Path, description: str) -> ToyboxPrior:
    """The prior that a file's metadata describe in JSON."""
    try:
        fields = tuples(json.loads(description))
        fields["unet"] = UNetConfig(**tuples(fields["unet"]))
        fields["text"] = TextConfig(**tuples(fields["text"]))
        return ToyboxPrior(**fields)
    except (UserError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path}: cannot make sense of its description: {error}") from error
