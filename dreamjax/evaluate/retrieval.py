"""CLIP R-Precision of finished runs, whatever their prompts.

Each run is rendered as people look at it, with a light at the camera before white, from eight
azimuths at elevation 30; textureless renderings show geometry alone.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from dreamjax.errors import UserError
from dreamjax.evaluate import r_precision, tables
from dreamjax.evaluate.r_precision import AZIMUTHS, ELEVATION
from dreamjax.evaluate.runs import FinishedRun, shots
from dreamjax.export.progress import progress
from dreamjax.settings import Range, settings
from dreamjax.workdir import resolved


@settings
class Retrieval:
    """CLIP R-Precision: how often a rendering finds its caption among all captions."""

    clips: tuple[str, ...] = ()
    """folders or repository ids of CLIPs, or files of task train_judge; empty: not measured"""
    captions: str = ""  # a file of captions to find, one a line; every prompt must be among them
    size: Annotated[int, Range(1, 1024)] = 128  # of renderings, in pixels


class ImageText(Protocol):
    """A network that puts pictures and texts into one space, as CLIP does."""

    def embed_texts(self, params: PyTree, texts: Sequence[str]) -> Float[Array, "n d"]:
        """Features of N texts."""
        ...

    def image_features(self, params: PyTree, rgb: Float[Array, "b h w 3"]) -> Float[Array, "b d"]:
        """Features of pictures in [0, 1], inside `jit`."""
        ...


class Scores(NamedTuple):
    """A row for each CLIP, and lines about runs that have no score."""

    rows: list[r_precision.Row]
    skipped: list[str]


def read_captions(path: str) -> list[str]:
    """The captions in a file; raises UserError for one that cannot be read or is no such list."""
    if not path:
        raise UserError("retrieval.captions is empty: name a file with one caption a line")
    try:
        text = resolved(path).read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read retrieval.captions, {path!r}: {error}") from error
    return r_precision.read_captions(text)


def score(
    how: Retrieval,
    captions: list[str],
    runs: Mapping[Path, str],
    load: Callable[[Path], FinishedRun],
    clips: Mapping[str, tuple[ImageText, PyTree]],
) -> Scores:
    """R-Precision by each of `clips` (a network and its parameters, by name).

    Runs are given as folders with their prompts; `load` raises UserError for one that is not
    finished. Raises UserError where no run can be scored.
    """
    # First, since a network may refuse a caption.
    texts = {name: np.asarray(net.embed_texts(p, captions)) for name, (net, p) in clips.items()}
    prompts, skipped = [], []
    colored: list[np.ndarray] = []
    textureless: list[np.ndarray] = []
    for place, prompt in progress(runs.items(), "rendering runs", len(runs)):
        try:
            r_precision.find_captions(captions, [prompt])
            run = load(place)
        except UserError as error:
            skipped.append(f"{place.name}: {error}")
            continue
        colored.append(renderings(run, how.size, False))
        textureless.append(renderings(run, how.size, True))
        prompts.append(prompt)
    if not prompts:
        raise UserError(f"no run can be scored: {'; '.join(skipped) or 'the folder holds none'}")
    truth = r_precision.find_captions(captions, prompts)
    rows = []
    for name, (clip, params) in clips.items():
        features = jax.jit(functools.partial(clip.image_features, params))
        scores: Any = (
            r_precision.r_precision(
                r_precision.embed_renderings(features, np.stack(rgb)), texts[name], truth
            )
            for rgb in (colored, textureless)
        )
        rows.append(r_precision.Row(name, *scores))
    return Scores(rows, skipped)


def renderings(
    run: FinishedRun, size: int, textureless: bool
) -> Float[np.ndarray, "v size size 3"]:
    """A run's field from `AZIMUTHS`."""
    camera, shading = shots(run.cameras, AZIMUTHS, ELEVATION, textureless)
    return np.asarray(run.render(camera, shading, jnp.ones((1, 1, 3)), size).rgb)


def page(scores: Scores) -> str:
    """R-Precision as Markdown."""
    parts = ["### CLIP R-Precision", r_precision.table(scores.rows)]
    return "\n\n".join([*parts, *tables.not_scored(scores.skipped)])
