"""The prior that ships with the package: a v-prediction pixel UNet over a word vocabulary.

One safetensors file holds everything: float16 tensors under dotted names, and in its metadata the
network's sizes, the vocabulary and the schedule.
"""

import dataclasses
import difflib
import functools
import json
import re
from collections.abc import Callable, Sequence
from importlib import resources
from pathlib import Path
from typing import Annotated, cast

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, PyTree

from dreamjax import weights
from dreamjax.diffusion.reverse import Parameterisation
from dreamjax.diffusion.schedule import Schedule, cosine
from dreamjax.errors import UserError
from dreamjax.nets import lora
from dreamjax.nets.text import Text, TextConfig, TextEncoder
from dreamjax.nets.unet import UNet, UNetConfig
from dreamjax.priors import words
from dreamjax.priors.base import Conditions, NetPrior, Pixels, Prompt
from dreamjax.scene.views import Views
from dreamjax.settings import Dtype, Range, Real, settings, short

FORMAT = "dreamjax-toybox-1"
COLORS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "white", "black")
FREE_TEXT = "stable-diffusion-v1-5/stable-diffusion-v1-5"  # understands what this does not


ImageSize = Annotated[int, Range(1, 4096)]
ScheduleSteps = Annotated[int, Range(1, 100_000)]


@functools.cache
def _cosine(steps: int) -> Schedule:
    return cosine(steps)


@settings
class ToyboxNet(Pixels):
    """The network of a text-to-image diffusion model of toybox pictures, as its file describes it.

    `view_names` are what captions called views in its training. Raises UserError for sizes that do
    not fit together.
    """

    unet: UNetConfig
    text: TextConfig
    vocabulary: tuple[str, ...]
    image_size: ImageSize = 32
    schedule_steps: ScheduleSteps = 1000
    view_names: tuple[tuple[Real, tuple[str, ...]], ...] = words.PAPER_VIEWS

    def __post_init__(self):
        known, rows = len(self.vocabulary), self.text.vocabulary_size
        if known != rows:
            raise UserError(f"{known} words (padding among them) but vocabulary_size is {rows}")
        if self.unet.text_dim != self.text.dim:
            raise UserError(f"unet.text_dim is {self.unet.text_dim}, text.dim {self.text.dim}")
        check_pixels(self.unet, self.image_size)
        tops = [top for top, _ in self.view_names]
        if not tops or tops != sorted(set(tops)) or not all(row for _, row in self.view_names):
            shown = short(self.view_names)
            raise UserError(f"view_names is {shown}: expected rows of names, elevations rising")

    @property
    def parameterisation(self) -> Parameterisation:
        """What the network's output stands for: v."""
        return Parameterisation("v", "fixed_small")

    @property
    def shape(self) -> tuple[int, int, int]:
        """H, W, C of an image."""
        return (self.image_size, self.image_size, 3)

    @property
    def levels(self) -> int:
        """How many values a pixel of the training pictures may have."""
        return 256

    @property
    def schedule(self) -> Schedule:
        """The cosine schedule of `schedule_steps` steps."""
        return _cosine(self.schedule_steps)

    def init(self, key: Key[Array, ""]) -> PyTree:
        """Fresh parameters {"unet", "text"}."""
        key_unet, key_text = jax.random.split(key)
        ids = jnp.zeros((1, self.text.length), jnp.int32)
        text_params = TextEncoder(self.text).init(key_text, ids)
        text = TextEncoder(self.text).apply(text_params, ids)
        x = jnp.zeros((1, self.image_size, self.image_size, 3))
        unet_params = UNet(self.unet).init(key_unet, x, jnp.zeros(1), text)
        return {"unet": unet_params["params"], "text": text_params["params"]}

    def embed_texts(self, params: PyTree, texts: Sequence[str]) -> Text:
        """Token embeddings of texts; raises UserError for words outside the vocabulary."""
        return self.embed_ids(params, self.ids(texts, _sample_command))

    def ids(self, texts: Sequence[str], command: Callable[[str, str], str]) -> Int[Array, "n l"]:
        """Word numbers of texts; `command` is `tokenise`'s."""
        length = self.text.length
        return jnp.asarray([tokenise(text, self.vocabulary, length, command) for text in texts])

    def embed_ids(self, params: PyTree, ids: Int[Array, "n l"]) -> Text:
        """Token embeddings of word numbers."""
        return cast(Text, TextEncoder(self.text).apply({"params": params["text"]}, ids))

    def predict(
        self, params: PyTree, z_t: Float[Array, "b h w 3"], t: Int[Array, " b"], condition: Text
    ) -> Float[Array, "b h w 3"]:
        """The network's output, v."""
        return cast(Array, UNet(self.unet).apply({"params": params["unet"]}, z_t, t, condition))


@settings
class Toybox(NetPrior):
    """The prior that ships with the package, or one of task train_prior's."""

    weights: str = ""  # a safetensors file of task train_prior; empty: the one that ships
    dtype: Dtype = "float32"  # of the network's activations
    textureless_words: str = "made of clay"
    """take the place of colours in the text of views that show shape alone; empty: no other text"""

    @functools.cached_property
    def net(self) -> ToyboxNet:
        """The network that the file describes; raises UserError for a file that cannot be read."""
        net = read_net(self.weights)
        return dataclasses.replace(net, unet=dataclasses.replace(net.unet, dtype=self.dtype))

    def load(self) -> PyTree:
        """Float32 parameters; raises UserError for a file that is damaged or does not fit."""
        return load(self.weights)[1]

    def embed(self, params: PyTree, prompt: Prompt) -> words.ViewTexts:
        """The texts of all views; raises UserError for words outside the vocabulary."""
        net = self.net
        # Whole, so that an unknown word is told with the prompt as it was typed.
        net.ids([words.read_prompt(prompt.text), prompt.negative], _dream_command)
        textureless = ""
        if self.textureless_words.strip():
            textureless = f"{colorless(prompt.text)} {self.textureless_words}"
        return words.embed_views(
            functools.partial(net.embed_texts, params), prompt, net.view_names, textureless
        )

    def condition(self, embedded: words.ViewTexts, views: Views) -> Conditions:
        """Each view's own text, of the nearest name; without colours where it shows shape alone."""
        return words.condition(embedded, views, self.net.view_names)

    def init_adapter(self, key: Key[Array, ""], params: PyTree, rank: int) -> PyTree:
        """A LoRA on every kernel of the UNet, which changes nothing yet."""
        return lora.init(key, params["unet"], rank, lambda module: True)

    def predict_adapted(
        self,
        params: PyTree,
        adapter: PyTree,
        z_t: Float[Array, "b h w 3"],
        t: Int[Array, " b"],
        condition: Text,
        camera: Float[Array, "b k"],
    ) -> Float[Array, "b h w 3"]:
        """`predict` with the adapter's changes; the words for views are what it has of a camera."""
        unet = lora.merge(params["unet"], adapter)
        return self.net.predict({**params, "unet": unet}, z_t, t, condition)


def colorless(text: str) -> str:
    """The text without the names of the toybox's colours."""
    return " ".join(re.sub(rf"\b({'|'.join(COLORS)})\b", "", text, flags=re.IGNORECASE).split())


def tokenise(
    text: str,
    vocabulary: Sequence[str],
    length: int,
    command: Callable[[str, str], str] | None = None,
) -> Int[np.ndarray, " l"]:
    """Word numbers of a text, 0-padded: lower case, no punctuation, "an" read as "a".

    Raises UserError for an unknown word, with the nearest known ones and `command(text, word)`, a
    command line that understands it; and for too many words.
    """
    kept = "".join(c if c.isalnum() else " " for c in text.lower()).split()
    found = ["a" if word == "an" else word for word in kept]
    number = {word: i for i, word in enumerate(vocabulary) if word}
    for word in found:
        if word not in number:
            near = difflib.get_close_matches(word, number, n=3, cutoff=0.5)
            hint = (
                f"the nearest it knows: {', '.join(near)}" if near else "nothing it knows is near"
            )
            more = (command or _dream_command)(text, word)
            raise UserError(
                f"the shipped prior does not know the word {word[:40]!r}; {hint}. docs/toybox.md "
                "lists its words, docs/objects.md the hundred things that --config=objects knows; "
                f"Stable Diffusion understands free text: {more}"
            )
    if len(found) > length:
        raise UserError(f"the prompt has {len(found)} words; the shipped prior reads {length}")
    return np.array([number[w] for w in found] + [0] * (length - len(found)), np.int32)


def _dream_command(text: str, word: str) -> str:
    """A command line that dreams `text`, named after `word`."""
    return (
        f"python -m dreamjax.main --config=sd15 --config.prior.weights={FREE_TEXT} "
        f"--config.prompt={_quoted(text)} --workdir=runs/{word[:40]}"
    )


def _sample_command(text: str, word: str) -> str:
    """A command line that draws pictures of `text`, named after `word`."""
    return (
        f"python -m dreamjax.main --config=sd_sample --config.prior.weights={FREE_TEXT} "
        f"--config.prompts={_quoted(repr((' '.join(text.split()),)))} --workdir=runs/{word[:40]}"
    )


def _quoted(text: str) -> str:
    """`text` on one line in double quotes, as shells read it."""
    return '"' + re.sub(r'(["\\$`])', r"\\\1", " ".join(text.split())) + '"'


def save(path: str | Path, net: ToyboxNet, params: PyTree) -> None:
    """Write network and parameters (float16) as one safetensors file, at once or not at all.

    Raises UserError for parameters that float16 cannot hold, and where nothing can be written.
    """
    metadata = {"format": FORMAT, "prior": json.dumps(dataclasses.asdict(net))}
    weights.save(path, metadata, params)


def load(path: str | Path = "") -> tuple[ToyboxNet, PyTree]:
    """Read a network with its float32 parameters; without a path, the one that ships.

    Raises UserError for a file that is missing, damaged, or not of this kind.
    """
    net = read_net(path)
    return net, weights.fit(path or shipped(), weights.shapes_of(net))


def read_net(path: str | Path = "") -> ToyboxNet:
    """The network that a file describes; without a path, the one that ships.

    Raises UserError for a file that is missing, damaged, or not of this kind.
    """
    path = path or shipped()
    return weights.build(path, ToyboxNet, weights.description(path, FORMAT, "prior"))


def check_pixels(unet: UNetConfig, image_size: int) -> None:
    """Raise UserError where the UNet cannot see rgb pictures of so many pixels."""
    if image_size % unet.multiple:
        raise UserError(f"image_size is {image_size}: it must divide by {unet.multiple}")
    if unet.out_channels != 3:
        raise UserError(f"unet.out_channels is {unet.out_channels}: expected 3, as pictures have")


def shipped() -> Path:
    """The weights file in the package."""
    return Path(str(resources.files("dreamjax.priors") / "weights" / "toybox.safetensors"))
