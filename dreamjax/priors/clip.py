"""CLIP from a folder or repository: how well do pictures and texts go together?

No diffusion model and so no `Prior`: what Dream Fields climbs, and what R-Precision asks.
"""

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from dreamjax.errors import UserError
from dreamjax.nets.stable_diffusion.clip import CLIP, CLIPConfig, unit
from dreamjax.priors import published

# Of the pictures that CLIP was trained on; OpenCLIP kept them.
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)


@dataclasses.dataclass(frozen=True)
class Clip:
    """Features of pictures and texts, all of length 1; `folder` holds the tokenizer's files.

    `mean` and `std` are those of rgb that pictures are normalised with.
    """

    config: CLIPConfig
    folder: Path
    mean: tuple[float, ...] = MEAN
    std: tuple[float, ...] = STD

    @property
    def image_size(self) -> int:
        """H = W in pixels that `image_features` brings any rgb to."""
        return self.config.vision.image_size

    def embed(self, params: PyTree, prompts: Sequence[str]) -> Float[Array, "n p"]:
        """Features of N texts, cut off where they are too long; runs on the host.

        Raises UserError for a folder without a tokenizer, or with another network's.
        """
        text = self.config.text
        ids = token_ids(self.folder, prompts, text.max_position_embeddings)
        if ids.max() >= text.vocab_size:
            raise UserError(f"{self.folder}: the tokenizer knows more than vocab_size tokens")
        clip = CLIP(self.config)
        read = jax.jit(lambda p, ids: unit(clip.apply({"params": p}, ids, method="text_features")))
        return read(params, jnp.asarray(ids))

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
        images = (rgb - jnp.array(self.mean)) / jnp.array(self.std)
        return unit(CLIP(self.config).apply({"params": params}, images, method="image_features"))


def load(model: str, dtype: str = "float32", remat: bool = False) -> tuple[Clip, PyTree]:
    """CLIP and its float32 parameters, from a folder or a repository id.

    `dtype` is that of the networks' activations; with `remat` gradients recompute them. Raises
    UserError for what cannot be had, is damaged, or is no CLIP of vision transformers.
    """
    folder = published.find(model, [""])
    path = folder / "config.json"
    try:
        config = CLIPConfig.from_json(published.read_json(path))
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    config = dataclasses.replace(
        config,
        text=dataclasses.replace(config.text, dtype=dtype, remat=remat),
        vision=dataclasses.replace(config.vision, dtype=dtype, remat=remat),
    )
    size = config.vision.image_size
    shapes = jax.eval_shape(
        CLIP(config).init,
        jax.random.key(0),
        jnp.zeros((1, size, size, 3)),
        jnp.zeros((1, 1), jnp.int32),
    )
    params = published.load(folder, shapes["params"])
    return Clip(config, folder, *_normalisation(folder)), params


def _normalisation(folder: Path) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of rgb, from the folder where it says them."""
    path = folder / "preprocessor_config.json"
    settings = published.read_json(path) if path.exists() else {}
    found = []
    for name, default in (("image_mean", MEAN), ("image_std", STD)):
        values = settings.get(name, default)
        numbers = isinstance(values, Sequence) and all(isinstance(v, int | float) for v in values)
        if not numbers or len(values) != 3 or (name == "image_std" and min(values) <= 0.0):
            raise UserError(f"{path}: {name} is {values!r}: expected three numbers")
        found.append(tuple(map(float, values)))
    return tuple(found)


def token_ids(folder: Path, prompts: Sequence[str], length: int) -> Int[np.ndarray, "n l"]:
    """Token ids of prompts by the CLIP tokenizer in `folder`, padded and cut off to `length`.

    The first is the start token; the end token is kept where a text is cut off. With what is padded
    is in the tokenizer's files: the end token in Stable Diffusion 1.x, id 0 in 2.x. Raises
    UserError where there is no tokenizer.
    """
    ids = _tokenizer(folder)(
        list(prompts), padding="max_length", max_length=length, truncation=True
    )["input_ids"]
    return np.asarray(ids, np.int32)


@functools.cache
def _tokenizer(folder: Path):
    there = lambda *names: all((folder / name).exists() for name in names)  # noqa: E731
    # transformers would make one of three tokens, and say nothing.
    if not (there("tokenizer.json") or there("vocab.json", "merges.txt")):
        raise UserError(f"{folder} holds no tokenizer.json, nor vocab.json with merges.txt")
    from transformers import CLIPTokenizer

    try:
        return CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # the tokenizers library raises bare ones
        reason = str(error).splitlines()[0]
        raise UserError(f"{folder}: cannot read the tokenizer: {reason}") from error
