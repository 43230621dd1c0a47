"""A prior of many real things that is told the camera: a v-prediction pixel UNet with its text.

Three kinds of tokens go, mixed by a transformer, into the UNet's cross-attention: the words of the
prompt, the camera (azimuth, elevation, how large a unit of length is seen), and which kind of
picture it is. The mean picture that they stand for goes in beside the noisy one (`nets.view`). One
safetensors file holds float16 tensors and, in its metadata, the network's sizes, the vocabulary and
the schedule.
"""

import dataclasses
import difflib
import functools
import json
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Annotated, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

from dreamjax import weights
from dreamjax.diffusion.reverse import Parameterisation
from dreamjax.diffusion.schedule import Schedule, cosine
from dreamjax.errors import UserError
from dreamjax.nets.text import Text, TextConfig, TextEncoder
from dreamjax.nets.unet import UNet, UNetConfig
from dreamjax.nets.view import MeanPicture, ToldView, ViewEncoder
from dreamjax.priors.base import Conditions, NetPrior, Pixels, Prompt
from dreamjax.priors.words import read_prompt
from dreamjax.scene.camera import Camera
from dreamjax.scene.views import Views
from dreamjax.settings import Dtype, Range, settings, short

FORMAT = "dreamjax-objects-1"
PLURAL = "##s"  # the piece after a word that stands in the plural
SHORTEST_PART = 3  # letters of either part of a compound
LOOKS = ("albedo", "lit", "textureless")  # kinds of picture, as `ObjectsNet.looks` orders them
ALBEDO, LIT, TEXTURELESS = range(3)


@functools.cache
def _cosine(steps: int) -> Schedule:
    return cosine(steps)


def tell(camera: Camera, look: Int[Array, " n"], told: Bool[Array, " n"]) -> ToldView:
    """Views by N cameras that show the kinds of picture `look`; cameras are told where `told`."""
    size = camera.focal / jnp.linalg.norm(camera.position, axis=-1)
    return ToldView(camera.azimuth, camera.elevation, size, look, told)


@settings
class ObjectsNet(Pixels):
    """The network of a diffusion model of things seen from a known side, as its file describes it.

    `vocabulary` begins with padding ("") and `PLURAL`; then come the words it was trained on.
    """

    unet: UNetConfig
    text: TextConfig
    vocabulary: tuple[str, ...]
    image_size: Annotated[int, Range(1, 4096)] = 64
    schedule_steps: Annotated[int, Range(1, 100_000)] = 1000
    looks: tuple[str, ...] = LOOKS
    view_layers: Annotated[int, Range(0, 64)] = 2  # transformer blocks over words and view

    def __post_init__(self):
        """Refuse sizes that do not fit one another; raises UserError."""
        pieces, rows = len(self.vocabulary), self.text.vocabulary_size
        if pieces != rows:
            raise UserError(f"{pieces} pieces (padding among them) but vocabulary_size is {rows}")
        if self.vocabulary[:2] != ("", PLURAL):
            raise UserError(f"the vocabulary must begin with padding and {PLURAL!r}")
        if self.unet.text_dim != self.text.dim:
            raise UserError(f"unet.text_dim is {self.unet.text_dim}, text.dim {self.text.dim}")
        if len(self.looks) != len(LOOKS):
            raise UserError(f"looks is {short(self.looks)}: expected {len(LOOKS)} names")
        if self.image_size % self.unet.multiple:
            raise UserError(
                f"image_size is {self.image_size}: it must divide by {self.unet.multiple}"
            )
        if self.unet.out_channels != 3:
            raise UserError(f"unet.out_channels is {self.unet.out_channels}: expected 3")

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

    @property
    def view(self) -> ViewEncoder:
        """The network that puts words, cameras and kinds of picture together."""
        return ViewEncoder(self.text.dim, len(self.looks), self.view_layers, self.text.heads)

    def init(self, key: Key[Array, ""]) -> PyTree:
        """Fresh parameters {"unet", "text", "view", "mean"}."""
        key_unet, key_text, key_view, key_mean = jax.random.split(key, 4)
        ids = jnp.zeros((1, self.text.length), jnp.int32)
        words = {"text": TextEncoder(self.text).init(key_text, ids)["params"]}
        view = untold(jnp.zeros(1, jnp.int32))
        found = self.view.init(key_view, self.embed_ids(words, ids), view)
        params = words | {"view": found["params"]}
        text = self.condition(params, ids, view)
        params["mean"] = MeanPicture().init(key_mean, text)["params"]
        x = self._beside_mean(params, jnp.zeros((1, *self.shape)), text)
        return params | {"unet": UNet(self.unet).init(key_unet, x, view.azimuth, text)["params"]}

    def tokenise(self, text: str) -> Int[np.ndarray, " l"]:
        """Piece numbers of a text, 0-padded to `text.length`.

        Raises UserError for words that training did not see, and for too many of them.
        """
        return tokenise(text, self.vocabulary, self.text.length)

    def ids(self, texts: Sequence[str]) -> Int[Array, "n l"]:
        """Piece numbers of texts; raises UserError for what it cannot read."""
        return jnp.asarray(np.stack([self.tokenise(text) for text in texts]))

    def embed_texts(self, params: PyTree, texts: Sequence[str]) -> Text:
        """The condition of N texts of lit pictures from wherever it likes; runs on the host.

        Raises UserError for words that training did not see.
        """
        return self.condition(params, self.ids(texts), untold(jnp.full(len(texts), LIT)))

    def embed_ids(self, params: PyTree, ids: Int[Array, "n l"]) -> Text:
        """Token embeddings of piece numbers."""
        return cast(Text, TextEncoder(self.text).apply({"params": params["text"]}, ids))

    def condition(self, params: PyTree, ids: Int[Array, "n l"], view: ToldView) -> Text:
        """All that the network is told of each picture; works in jit.

        Ids of 0 alone are no text; neither text nor camera is what guidance calls unconditional.
        `view.look` indexes `looks`.
        """
        return self.with_view(params["view"], self.embed_ids(params, ids), view)

    def with_view(self, view_params: PyTree, words: Text, view: ToldView) -> Text:
        """`condition` with the words embedded already; `view_params` are params["view"]."""
        return cast(Text, self.view.apply({"params": view_params}, words, view))

    def predict(
        self, params: PyTree, z_t: Float[Array, "b h w 3"], t: Int[Array, " b"], condition: Text
    ) -> Float[Array, "b h w 3"]:
        """The network's output, v."""
        x = self._beside_mean(params, z_t, condition)
        return cast(Array, UNet(self.unet).apply({"params": params["unet"]}, x, t, condition))

    def mean_picture(self, params: PyTree, condition: Text) -> Float[Array, "n m m 4"]:
        """The mean of the pictures that conditions stand for: rgb times the mask, and the mask."""
        return cast(Array, MeanPicture().apply({"params": params["mean"]}, condition))

    def _beside_mean(
        self, params: PyTree, z_t: Float[Array, "b h w 3"], condition: Text
    ) -> Float[Array, "b h w 7"]:
        """What the UNet is shown; its loss does not reach the mean picture."""
        mean = jax.lax.stop_gradient(self.mean_picture(params, condition))
        mean = jax.image.resize(mean, (*z_t.shape[:3], mean.shape[-1]), "bilinear")
        return jnp.concatenate([z_t, 2.0 * mean - 1.0], axis=-1)


def untold(look: Int[Array, " n"]) -> ToldView:
    """Views of these kinds of picture from wherever the network likes."""
    nothing = jnp.zeros(len(look))
    return ToldView(nothing, nothing, nothing, look, nothing > 0.0)


class EmbeddedPrompt(NamedTuple):
    """The words of a prompt and of its negative [1, L, D], and what tells the network a view."""

    words: Text
    negative: Text
    view: PyTree


@settings
class Objects(NetPrior):
    """A prior of named things that is told the camera, as task train_objects writes it."""

    weights: str = ""  # a safetensors file of task train_objects; empty: the one that ships
    image_size: Annotated[int, Range(8, 512)] = 32  # pixels of the pictures that it is shown
    dtype: Dtype = "float32"  # of the network's activations

    @functools.cached_property
    def net(self) -> ObjectsNet:
        """The network that the file describes; raises UserError for a file that cannot be read."""
        net = read_net(self.weights)
        unet = dataclasses.replace(net.unet, dtype=self.dtype)
        return dataclasses.replace(net, unet=unet, image_size=self.image_size)

    def load(self) -> PyTree:
        """Float32 parameters; raises UserError for a file that is damaged or does not fit."""
        return load(self.weights)[1]

    def embed(self, params: PyTree, prompt: Prompt) -> EmbeddedPrompt:
        """The words alone: views are told by number. Raises UserError for unknown words."""
        net, texts = self.net, (read_prompt(prompt.text), prompt.negative)
        words, negative = (net.embed_ids(params, net.ids([text])) for text in texts)
        return EmbeddedPrompt(words, negative, params["view"])

    def condition(self, embedded: EmbeddedPrompt, views: Views) -> Conditions:
        """The prompt, the camera and the kind of picture; against the latter alone."""
        camera, count = views.camera, len(views.lit)
        look = jnp.where(views.lit > 0.5, LIT, ALBEDO)
        look = jnp.where(views.textureless > 0.5, TEXTURELESS, look)

        def told(words: Text, camera_too: bool) -> Text:
            rows = jax.tree.map(lambda x: jnp.broadcast_to(x, (count, *x.shape[1:])), words)
            view = tell(camera, look, jnp.full(count, camera_too))
            return self.net.with_view(embedded.view, rows, view)

        return Conditions(told(embedded.words, True), told(embedded.negative, False))


def pieces_of(word: str, known: frozenset[str]) -> tuple[str, ...] | None:
    """A word as pieces that training saw, None where it has none.

    These are the word itself; its singular and `PLURAL`, or the plural of which it is the
    singular; or two known words of which it is the compound ("firetruck").
    """
    if word in known:
        return (word,)
    for ending, instead in (("ies", "y"), ("es", ""), ("s", "")):
        stem = word[: -len(ending)] + instead
        if word.endswith(ending) and stem in known:
            return (stem, PLURAL)
    for many in (f"{word}s", f"{word}es", f"{word[:-1]}ies"):
        if many in known:
            return (many,)
    for cut in range(SHORTEST_PART, len(word) - SHORTEST_PART + 1):
        if word[:cut] in known and (rest := _simple(word[cut:], known)):
            return (word[:cut], *rest)
    return None


def _simple(word: str, known: frozenset[str]) -> tuple[str, ...] | None:
    if word in known:
        return (word,)
    return (word[:-1], PLURAL) if word.endswith("s") and word[:-1] in known else None


def split_text(text: str) -> list[str]:
    """Lower-case words without punctuation, hyphens apart; "an" is read as "a"."""
    kept = "".join(c if c.isalnum() else " " for c in text.lower()).split()
    return ["a" if word == "an" else word for word in kept]


def tokenise(text: str, vocabulary: tuple[str, ...], length: int) -> Int[np.ndarray, " l"]:
    """Piece numbers of a text, 0-padded to `length`.

    Raises UserError for an unknown word, with the nearest known ones, and for too many pieces.
    """
    number, known = _numbers(vocabulary)
    ids = []
    for word in split_text(text):
        pieces = pieces_of(word, known)
        if pieces is None:
            near = difflib.get_close_matches(word, sorted(known), n=3, cutoff=0.5)
            hint = f"the nearest it knows: {', '.join(near)}" if near else "and none that is near"
            raise UserError(f"the prior was not trained on the word {word!r}; {hint}")
        ids += [number[piece] for piece in pieces]
    if len(ids) > length:
        raise UserError(f"the prompt has {len(ids)} words; the prior reads {length}")
    return np.array(ids + [0] * (length - len(ids)), np.int32)


@functools.cache
def _numbers(vocabulary: tuple[str, ...]) -> tuple[dict[str, int], frozenset[str]]:
    return {piece: i for i, piece in enumerate(vocabulary)}, frozenset(vocabulary[2:])


def save(path: str | Path, net: ObjectsNet, params: PyTree) -> None:
    """Write network and parameters (float16) as one safetensors file, beside and then renamed.

    Raises UserError for parameters that float16 cannot hold, and where nothing can be written.
    """
    metadata = {"format": FORMAT, "prior": json.dumps(dataclasses.asdict(net))}
    weights.save(path, metadata, params)


def read_net(path: str | Path = "") -> ObjectsNet:
    """The network that a file describes; without a path, the one that ships.

    Raises UserError for a file that is missing, damaged, or not of this kind.
    """
    path = path or shipped()
    return weights.build(path, ObjectsNet, weights.description(path, FORMAT, "prior"))


def load(path: str | Path = "") -> tuple[ObjectsNet, PyTree]:
    """Read a network with its float32 parameters; without a path, the one that ships.

    Raises UserError for a file that is missing, damaged, or not of this kind.
    """
    net = read_net(path)
    return net, weights.fit(path or shipped(), weights.shapes_of(net))


def shipped() -> Path:
    """The weights file in the package."""
    return Path(str(resources.files("dreamjax.priors") / "weights" / "objects.safetensors"))
