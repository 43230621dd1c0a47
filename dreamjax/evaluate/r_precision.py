"""CLIP R-Precision: how often does a rendering find its caption among all captions?

Dream Fields (arXiv 2112.01455) and DreamFusion (2209.14988, table 1) report it. Of every finished
run, renderings from `AZIMUTHS` at `ELEVATION`, in colour and textureless (geometry), are put before
CLIP; one is right if of all captions in the list its own is the nearest. Colour alone rewards
objects with many faces, so it never stands without geometry.

Symbols: P runs of V renderings, Q captions, features [D] of any length. Several runs (seeds) of a
prompt are not independent, nor are the azimuths of one run: each prompt counts once, with the mean
over its runs and azimuths, and the standard error is that of the mean over prompts.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Array, Float, Int

from dreamjax.errors import UserError

ELEVATION = 30.0
AZIMUTHS = tuple(45.0 * i for i in range(8))


class RPrecision(NamedTuple):
    """A share in [0, 1] with its standard error (NaN for one prompt), and what it is over."""

    share: float
    error: float
    prompts: int
    runs: int
    renderings: int
    captions: int


class Row(NamedTuple):
    """What one CLIP says of the same runs."""

    clip: str
    color: RPrecision
    geometry: RPrecision


def read_captions(text: str) -> list[str]:
    """The captions in a prompts file, one a line; lines that begin with # are comments.

    Raises UserError where there are fewer than two, and for one that is there twice: it could not
    be told from itself.
    """
    lines = [line.strip() for line in text.splitlines()]
    captions = [line for line in lines if line and not line.startswith("#")]
    if len(captions) < 2:
        raise UserError(f"the list holds {len(captions)} captions; retrieval needs two or more")
    seen = set()
    for caption in captions:
        if canonical(caption) in seen:
            raise UserError(f"the list holds {caption!r} twice")
        seen.add(canonical(caption))
    return captions


def canonical(caption: str) -> str:
    """A caption in lower case, without what it ends in; captions of one such form are the same."""
    return " ".join(caption.lower().split()).strip(" .,")


def find_captions(captions: Sequence[str], prompts: Sequence[str]) -> Int[np.ndarray, " p"]:
    """The number in the list of each prompt; raises UserError naming one that is not in it."""
    number = {canonical(caption): i for i, caption in enumerate(captions)}
    for prompt in prompts:
        if canonical(prompt) not in number:
            raise UserError(f"the prompt {prompt!r} is not in the list of captions")
    return np.array([number[canonical(prompt)] for prompt in prompts], np.int64)


def embed_renderings(
    image_features: Callable[[Float[np.ndarray, "b h w 3"]], Float[Array, "b d"]],
    rgb: Float[np.ndarray, "p v h w 3"],
) -> Float[np.ndarray, "p v d"]:
    """Features of all renderings, those of a run at a time."""
    return np.stack([np.asarray(image_features(run), np.float64) for run in rgb])


def retrieved(
    images: Float[np.ndarray, "*batch d"], texts: Float[np.ndarray, "q d"]
) -> Int[np.ndarray, "*batch"]:
    """The number of the caption that each image's cosine is largest with."""
    texts = np.asarray(texts, np.float64)
    texts = texts / np.linalg.norm(texts, axis=-1, keepdims=True)
    return np.argmax(np.asarray(images, np.float64) @ texts.T, axis=-1)


def r_precision(
    images: Float[np.ndarray, "p v d"],
    texts: Float[np.ndarray, "q d"],
    truth: Int[np.ndarray, " p"],
) -> RPrecision:
    """R-Precision of P runs from features of their renderings; `truth` are the captions' numbers.

    Raises UserError where there are no runs, and for features that are not finite.
    """
    if not len(images):
        raise UserError("there are no finished runs to score")
    if not np.isfinite(images).all() or not np.isfinite(texts).all():
        raise UserError("features of a rendering or a caption are not finite")
    truth = np.asarray(truth)
    right = retrieved(images, texts) == truth[:, None]
    prompts, prompt = np.unique(truth, return_inverse=True)
    by_prompt = np.array([right[prompt == i].mean() for i in range(len(prompts))])
    spread = by_prompt.std(ddof=1) if len(prompts) > 1 else np.nan
    return RPrecision(
        share=float(by_prompt.mean()),
        error=float(spread / np.sqrt(len(prompts))),
        prompts=len(prompts),
        runs=len(truth),
        renderings=right.size,
        captions=len(texts),
    )


def table(rows: Sequence[Row]) -> str:
    """The rows as Markdown: percentages with standard errors, and the counts once below."""
    lines = ["| CLIP | R-Precision, colour | R-Precision, geometry |", "|---|---|---|"]
    lines += [f"| {row.clip} | {_cell(row.color)} | {_cell(row.geometry)} |" for row in rows]
    if rows:
        of = rows[0].color
        lines += [
            "",
            f"{of.prompts} prompts among {of.captions} captions, {of.runs} runs (seeds a prompt: "
            f"{of.runs / of.prompts:.3g}) of {of.renderings // of.runs} azimuths; chance is "
            f"{100 / of.captions:.2g} %. "
            "± one standard error over prompts.",
        ]
    return "\n".join(lines)


def _cell(score: RPrecision) -> str:
    error = "" if np.isnan(score.error) else f" ± {100 * score.error:.1f}"
    return f"{100 * score.share:.1f}{error} %"
