"""CLIP from a folder or repository: how well do pictures and texts go together?

No diffusion model and so no `Prior`: what Dream Fields climbs, and what R-Precision asks.
"""

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from dreamjax.errors import UserError
from dreamjax.nets.stable_diffusion.clip import CLIP, CLIPConfig, unit
from dreamjax.priors import published
from dreamjax.priors.base import Prompt
from dreamjax.priors.words import read_prompt
from dreamjax.settings import Dtype, Positive, Real, convert, settings, short

# Of the pictures that CLIP was trained on; OpenCLIP kept them.
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
Mean = tuple[Real, Real, Real]
Std = tuple[Positive, Positive, Positive]
TOKENIZER_FILES = {
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.json", "merges.txt"),
}


@settings
class Clip:
    """CLIP of vision transformers: features, all of length 1, of pictures and texts."""

    weights: str = ""  # a folder or a repository id, fetched once, as openai/clip-vit-base-patch16
    dtype: Dtype = "float32"  # of the networks' activations
    remat: bool = False  # gradients recompute activations: less memory, more time

    @functools.cached_property
    def folder(self) -> Path:
        """The folder of the model; raises UserError for one that cannot be had."""
        if not self.weights:
            raise UserError(
                "Clip needs weights: name a folder or a repository id, as "
                "--config.prior.weights=openai/clip-vit-base-patch16"
            )
        return published.find(self.weights, [""])

    @functools.cached_property
    def config(self) -> CLIPConfig:
        """The networks' sizes; raises UserError for a folder of another model."""
        path = self.folder / "config.json"
        try:
            config = CLIPConfig.from_json(published.read_json(path))
        except UserError as error:
            raise UserError(f"{path}: {error}") from error
        ours = {"dtype": self.dtype, "remat": self.remat}
        return dataclasses.replace(
            config,
            text=dataclasses.replace(config.text, **ours),
            vision=dataclasses.replace(config.vision, **ours),
        )

    @functools.cached_property
    def normalisation(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation of rgb that pictures are normalised with."""
        return _normalisation(self.folder)

    @property
    def image_size(self) -> int:
        """H = W in pixels that `image_features` brings any rgb to."""
        return self.config.vision.image_size

    def load(self) -> PyTree:
        """Float32 parameters.

        Raises UserError for what cannot be had, is damaged, or is no CLIP of vision transformers.
        """
        _ = self.normalisation  # what is wrong with it is told before the tensors are read
        return published.load(self.folder, _shapes_of(self.config))

    def embed(self, params: PyTree, prompt: Prompt) -> Float[Array, " p"]:
        """The feature of the prompt's text; runs on the host.

        Raises UserError as `embed_texts` does, for a prompt without a word in it, and for a
        negative prompt, which there is nothing to guide away from with.
        """
        if prompt.negative.strip():
            raise UserError("negative_prompt is set, but CLIP has no guidance to use it in")
        return self.embed_texts(params, [read_prompt(prompt.text)])[0]

    def embed_texts(self, params: PyTree, texts: Sequence[str]) -> Float[Array, "n p"]:
        """Features of N texts, cut off where they are too long; runs on the host.

        Raises UserError for a folder without a tokenizer, or with another network's.
        """
        text = self.config.text
        ids = token_ids(self.folder, texts, text.max_position_embeddings, text.vocab_size)
        return _text_features(self.config, params, jnp.asarray(ids))

    def image_features(self, params: PyTree, rgb: Float[Array, "b h w 3"]) -> Float[Array, "b p"]:
        """Features of square pictures, rgb in [0, 1], of any size; differentiable in rgb.

        Resized as CLIP's preprocessing does (bicubic, smoothed when shrunk), but without its
        rounding to 8 bits. Raises ValueError for pictures that are not square.
        """
        batch, height, width, _ = rgb.shape
        if height != width:
            raise ValueError(f"pictures are {height} x {width}: expected square ones")
        size = self.image_size
        if width != size:
            rgb = jax.image.resize(rgb, (batch, size, size, 3), "cubic")
        mean, std = self.normalisation
        images = (rgb - jnp.array(mean)) / jnp.array(std)
        found = CLIP(self.config).apply({"params": params}, images, method="image_features")
        return unit(cast(Array, found))


@functools.lru_cache(maxsize=4)
def _shapes_of(config: CLIPConfig) -> PyTree:
    size = config.vision.image_size
    images = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    ids = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    return jax.eval_shape(CLIP(config).init, jax.random.key(0), images, ids)["params"]


@functools.partial(jax.jit, static_argnums=0)
def _text_features(
    config: CLIPConfig, params: PyTree, ids: Int[Array, "n l"]
) -> Float[Array, "n p"]:
    """Features of texts; compiled once for as many of them."""
    found = CLIP(config).apply({"params": params}, ids, method="text_features")
    return unit(cast(Array, found))


def _normalisation(folder: Path) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of rgb, from the folder where it says them."""
    path = folder / "preprocessor_config.json"
    settings = published.read_json(path) if path.exists() else {}
    found = []
    for name, default in (("image_mean", MEAN), ("image_std", STD)):
        values = settings.get(name, default)
        try:
            found.append(convert(Mean if name == "image_mean" else Std, values, name))
        except UserError as error:
            shown = f"{name} is {short(values)}: expected three numbers"
            raise UserError(f"{path}: {shown} ({error})") from error
    return tuple(found)


def token_ids(
    folder: Path, prompts: Sequence[str], length: int, vocabulary: int | None = None
) -> Int[np.ndarray, "n l"]:
    """Token ids of prompts by the CLIP tokenizer in `folder`, padded and cut off to `length`.

    The first is the start token; the end token is kept where a text is cut off. With what is padded
    is in the tokenizer's files: the end token in Stable Diffusion 1.x, id 0 in 2.x. Raises
    UserError where there is no tokenizer, it cannot tokenize, or knows more than `vocabulary` ids.
    """
    tokenizer = _tokenizer(folder)
    start, end = tokenizer.bos_token_id, tokenizer.eos_token_id
    try:
        found = tokenizer(list(prompts), padding="max_length", max_length=length, truncation=True)
        ids = np.asarray(found["input_ids"], np.int32)
        whole = ids.shape == (len(prompts), length) and ids.min() >= 0
    except Exception as error:  # the tokenizers library raises bare ones
        raise UserError(f"{folder}: the tokenizer cannot tokenize: {_line(error)}") from error
    if not whole or (ids[:, 0] != start).any() or not (ids == end).any(1).all():
        raise UserError(
            f"{folder}: the tokenizer does not put a start and an end token around a text, as "
            "CLIP's does"
        )
    if vocabulary is not None and ids.max() >= vocabulary:
        raise UserError(
            f"{folder}: the tokenizer knows more than vocab_size tokens: {ids.max()} is one, "
            f"vocab_size {vocabulary}"
        )
    return ids


@functools.cache
def _tokenizer(folder: Path) -> Any:
    present = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    # transformers would make one of three tokens, and say nothing.
    if "tokenizer.json" not in present and not {"vocab.json", "merges.txt"} <= present:
        raise UserError(f"{folder} holds no tokenizer.json, nor vocab.json with merges.txt")
    # Without them transformers pads with the end token, which is wrong for Stable Diffusion 2.x.
    if not {"tokenizer_config.json", "special_tokens_map.json"} & present:
        raise UserError(
            f"{folder} holds no tokenizer_config.json, nor special_tokens_map.json, one of which "
            "says what texts are padded with: copy it from where the model is published"
        )
    for name in TOKENIZER_FILES & present:
        if name.endswith(".json"):
            published.read_json(folder / name)
        elif not (folder / name).is_file():
            raise UserError(f"cannot read {folder / name}: it is no file")
    from transformers import CLIPTokenizer

    try:
        return CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # the tokenizers library raises bare ones
        raise UserError(f"{folder}: cannot read the tokenizer: {_line(error)}") from error


def _line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
