"""DeepFloyd IF-I (M, L, XL) as a prior: pixels of 64 x 64, text read by T5 XXL.

The nearest public thing to Imagen (arXiv 2205.11487), which DreamFusion asked. Symbols: rgb
[B, H, W, 3] in [0, 1]; z_0 [B, 64, 64, 3] pixels in [-1, 1]. Everything about a model comes from
its folder (`priors.published`). The parameters are the UNet's alone: T5, ten times as large as the
smallest UNet, is read block by block when there is a text to read, and never held.
"""

import dataclasses
import functools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal, cast

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, PyTree

from dreamjax import weights
from dreamjax.diffusion import schedule as schedules
from dreamjax.diffusion.reverse import Parameterisation, clip, dynamic, unclipped
from dreamjax.diffusion.schedule import Schedule
from dreamjax.errors import UserError
from dreamjax.nets.deepfloyd import IFUNet, IFUNetConfig
from dreamjax.nets.t5 import T5Config, T5Encoder, encode_by_blocks
from dreamjax.nets.text import Text
from dreamjax.priors import published, words
from dreamjax.priors.base import Conditions, NetPrior, Pixels, Prompt
from dreamjax.scene.views import Views
from dreamjax.settings import Dtype, Range, settings

PARTS = ("unet", "text_encoder")
LENGTH = 77  # tokens that IF was trained to read; the published pipeline cuts longer texts
REMEMBERED = 128  # embedded texts
PAD, END = 0, 1  # T5's tokens, in every published file
TWIN = "encoder.embed_tokens.weight"  # of shared.weight, in some files
Quantile = Annotated[float, Range(0.0, 1.0, above=True)]


@settings
class Noise:
    """What `scheduler_config.json` says of the noise and of x_0; how diffusers samples is left."""

    num_train_timesteps: Annotated[int, Range(2, 100_000)]
    beta_schedule: Literal["squaredcos_cap_v2"]
    variance_type: Literal["learned_range"]
    prediction_type: Literal["epsilon"] = "epsilon"
    trained_betas: None = None
    thresholding: bool = False
    dynamic_thresholding_ratio: Quantile = 0.995
    sample_max_value: Annotated[float, Range(1.0, 1e3)] = 1.0
    clip_sample: bool = True
    clip_sample_range: Annotated[float, Range(1.0, 1.0)] = 1.0


@dataclasses.dataclass(frozen=True)
class DeepfloydNets(Pixels):
    """A UNet on pixels and the T5 whose texts it reads, as their folder describes them.

    The parameters are the UNet's; `folder` is where T5 and its tokenizer are.
    """

    unet: IFUNetConfig
    text: T5Config
    noise: Noise
    folder: str

    @property
    def schedule(self) -> Schedule:
        """The squared cosine (arXiv 2102.09672)."""
        return schedules.cosine(self.noise.num_train_timesteps)

    @property
    def parameterisation(self) -> Parameterisation:
        """eps with a learned variance; x_0 thresholded as published (Imagen section 2.3)."""
        threshold = clip if self.noise.clip_sample else unclipped
        if self.noise.thresholding:
            ratio, largest = self.noise.dynamic_thresholding_ratio, self.noise.sample_max_value
            threshold = dynamic(ratio, largest)
        return Parameterisation("eps", self.noise.variance_type, threshold)

    @property
    def image_size(self) -> int:
        """H = W in pixels."""
        return self.unet.sample_size

    @property
    def shape(self) -> tuple[int, int, int]:
        """H, W, C of the pictures."""
        return (self.unet.sample_size, self.unet.sample_size, self.unet.in_channels)

    @property
    def levels(self) -> int:
        """How many values a pixel of a picture has."""
        return 256

    def init(self, key: Key[Array, ""]) -> PyTree:
        """Random parameters of the UNet, in the shapes of the published ones."""
        tokens = jnp.zeros((1, 1, self.unet.encoder_hid_dim))
        variables = IFUNet(self.unet).init(key, jnp.zeros((1, *self.shape)), jnp.zeros(1), tokens)
        return variables["params"]

    def embed_texts(self, params: PyTree, texts: Sequence[str]) -> Text:
        """T5's token embeddings [N, 77, D]; longer texts are cut, as in the published code.

        The last texts that this process read are not read again: 1.2 MiB a text are kept. Padding
        counts as text here (the mask is True everywhere): the UNet was trained so.
        """
        known = _known(self.folder, self.text)
        new = [text for text in dict.fromkeys(texts) if text not in known]
        if new:
            known.update(zip(new, read_texts(Path(self.folder), self.text, new), strict=True))
        tokens = jnp.asarray(np.stack([known[text] for text in texts]))
        while len(known) > REMEMBERED:
            known.pop(next(iter(known)))
        return Text(tokens, jnp.ones(tokens.shape[:2], bool))

    def predict(
        self, params: PyTree, z_t: Float[Array, "b s s 3"], t: Int[Array, " b"], condition: Text
    ) -> Float[Array, "b s s 6"]:
        """The UNet's output: eps, and where the variance lies in its range."""
        return cast(Array, IFUNet(self.unet).apply({"params": params}, z_t, t, condition.tokens))


@settings
class Deepfloyd(NetPrior):
    """DeepFloyd IF's first stage, as published for diffusers: IF-I-M, IF-I-L or IF-I-XL."""

    weights: str = ""  # a folder in the layout of diffusers, or a repository id, fetched once
    dtype: Dtype = "float32"  # of activations and matrices; float16 for GPUs, bfloat16 for TPUs
    interpolate_views: bool = False  # mix the texts of front, side and back by azimuth

    @functools.cached_property
    def folder(self) -> Path:
        """The folder of the model; raises UserError for one that cannot be had."""
        if not self.weights:
            raise UserError(
                "Deepfloyd needs weights: name a folder or a repository id, as "
                "--config.prior.weights=DeepFloyd/IF-I-M-v1.0"
            )
        return published.find(self.weights, PARTS)

    @functools.cached_property
    def net(self) -> DeepfloydNets:
        """The networks that the folder describes; raises UserError for another model's."""
        return describe(self.folder, self.dtype)

    def load(self) -> PyTree:
        """The UNet's parameters; raises UserError for what is missing, damaged or does not fit.

        Matrices are kept in `dtype`, as the published half-precision files have them; vectors in
        float32.
        """
        shapes = weights.shapes_of(self.net)
        read = published.reader(self.folder / "unet", shapes)

        def cast_matrix(x: Float[Array, "..."]) -> Float[Array, "..."]:
            return x.astype(self.dtype) if x.ndim > 1 else x

        # One part after the other, so that not all is in memory as float32.
        return {name: jax.tree.map(cast_matrix, read(name)) for name in shapes}

    def embed(self, params: PyTree, prompt: Prompt) -> words.ViewTexts:
        """The texts of all views; raises UserError for a prompt without a word in it."""
        read = functools.partial(self.embed_texts, params)
        return words.embed_views(read, prompt, words.PAPER_VIEWS)

    def condition(self, embedded: words.ViewTexts, views: Views) -> Conditions:
        """Each view's own text, of the nearest name or mixed, whatever it shows."""
        return words.condition(embedded, views, words.PAPER_VIEWS, self.interpolate_views)


def describe(folder: Path, dtype: str) -> DeepfloydNets:
    """The model that a folder's configs describe; raises UserError for one that this is not."""
    published.pipeline_of(folder, "IFPipeline")
    unet = published.read_config(folder / "unet", IFUNetConfig.from_json)
    text = published.read_config(folder / "text_encoder", T5Config.from_json)
    if (unet.in_channels, unet.out_channels) != (3, 6):
        raise UserError(
            f"{folder}: the UNet maps {unet.in_channels} channels to {unet.out_channels}; expected "
            "3 to 6, as the first stage's does"
        )
    if unet.encoder_hid_dim != text.d_model:
        raise UserError(
            f"{folder}: the UNet reads texts of encoder_hid_dim {unet.encoder_hid_dim}; the text "
            f"encoder's d_model is {text.d_model}"
        )
    path = folder / "scheduler" / "scheduler_config.json"
    plain, known = published.read_json(path), {field.name for field in dataclasses.fields(Noise)}
    noise = weights.build(path, Noise, {name: plain[name] for name in plain if name in known})
    return DeepfloydNets(replace(unet, dtype=dtype), text, noise, str(folder))


@functools.lru_cache(maxsize=2)
def _known(folder: str, text: T5Config) -> dict[str, Float[np.ndarray, "l d"]]:
    """The embeddings of the texts that were read with the T5 in a folder."""
    return {}


def read_texts(folder: Path, config: T5Config, texts: Sequence[str]) -> Float[np.ndarray, "n l d"]:
    """T5's embeddings of texts, by the weights and the tokenizer in a model's folder.

    One of T5's blocks is in memory at a time. Raises UserError for files that are missing, damaged
    or do not fit.
    """
    ids = token_ids(folder / "tokenizer", texts, config.vocab_size)
    inputs = jnp.zeros((1, 1), jnp.int32), jnp.ones((1, 1), bool)
    shapes = jax.eval_shape(T5Encoder(config).init, jax.random.key(0), *inputs)["params"]
    read = published.reader(folder / "text_encoder", shapes, drop=(TWIN,))
    return encode_by_blocks(config, read, ids, ids != PAD)


def token_ids(folder: Path, texts: Sequence[str], vocabulary: int) -> Int[np.ndarray, "n 77"]:
    """Token ids of texts in small letters, each cut off, ended and padded to 77.

    Of the published pipeline's cleaning that is all: it takes more from captions of the web. Raises
    UserError where there is no tokenizer, or one that knows more than `vocabulary` ids.
    """
    tokenizer = _tokenizer(folder)
    ids = np.full((len(texts), LENGTH), PAD, np.int32)
    for row, text in zip(ids, texts, strict=True):
        try:
            found = tokenizer.encode(text.lower().strip(), add_special_tokens=False).ids
        except Exception as error:  # the tokenizers library raises bare ones
            raise UserError(f"{folder}: the tokenizer cannot tokenize: {_line(error)}") from error
        row[: len(found) + 1] = [*found[: LENGTH - 1], END]
    if ids.max() >= vocabulary:
        raise UserError(
            f"{folder}: the tokenizer knows more than vocab_size tokens: {ids.max()} is one, "
            f"vocab_size {vocabulary}"
        )
    return ids


@functools.cache
def _tokenizer(folder: Path) -> Any:
    """The tokenizer in a folder: SentencePiece's own file, or what was made of it."""
    import tokenizers

    whole, pieces = folder / "tokenizer.json", folder / "spiece.model"
    path = pieces if pieces.is_file() else whole
    if not path.is_file():
        raise UserError(f"{folder} holds no spiece.model, nor tokenizer.json")
    try:
        if path == pieces:
            return _sentencepiece(path)
        tokenizer = tokenizers.Tokenizer.from_file(str(whole))
        tokenizer.no_padding()
        tokenizer.no_truncation()
        return tokenizer
    except Exception as error:  # the tokenizers library raises bare ones
        raise UserError(f"cannot read the tokenizer {path}: {_line(error)}") from error


def _sentencepiece(path: Path) -> Any:
    """A unigram tokenizer of a SentencePiece file (arXiv 1808.06226)."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
    from transformers.convert_slow_tokenizer import import_protobuf

    protobuf: Any = import_protobuf()  # generated code
    model = protobuf.ModelProto.FromString(path.read_bytes())
    scores = [(piece.piece, piece.score) for piece in model.pieces]
    tokenizer = Tokenizer(models.Unigram(scores, model.trainer_spec.unk_id, byte_fallback=False))
    if characters := model.normalizer_spec.precompiled_charsmap:
        tokenizer.normalizer = normalizers.Precompiled(characters)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(prepend_scheme="always")]
    )
    return tokenizer


def _line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
