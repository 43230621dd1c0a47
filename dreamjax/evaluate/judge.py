"""The judge of named things: says which of its phrases a picture shows.

It is a classifier, trained by task `train_judge` on ground-truth renders of its own. As a network
of pictures and texts (`retrieval.ImageText`) its feature of a text is the unit vector of that
phrase, and its feature of a picture are the phrases' logits: what is nearest is what is likeliest.
"""

import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from dreamjax import weights
from dreamjax.errors import UserError
from dreamjax.evaluate.probe import SIZE, shrink
from dreamjax.evaluate.r_precision import canonical
from dreamjax.evaluate.scores import Count
from dreamjax.nets.probe import Probe, ProbeConfig
from dreamjax.settings import convert, settings

FORMAT = "dreamjax-judge-1"
CHUNK = 256


class Trained(NamedTuple):
    """A judge: its layout, its phrases, its parameters, and its counts on fresh renders.

    `report` has [right, of] by look and by "top-1" and "top-5".
    """

    config: ProbeConfig
    phrases: tuple[str, ...]
    params: PyTree
    report: dict


@settings
class Judge:
    """A judge by the file that task train_judge wrote."""

    weights: str = ""  # the file

    @functools.cached_property
    def trained(self) -> Trained:
        """What the file holds; raises UserError for one that cannot be read."""
        return load(self.weights)

    def load(self) -> PyTree:
        """The parameters."""
        return self.trained.params

    def embed_texts(self, params: PyTree, texts: Sequence[str]) -> Float[Array, "n phrases"]:
        """Unit vectors; raises UserError for a text that is none of its phrases."""
        number = {canonical(phrase): i for i, phrase in enumerate(self.trained.phrases)}
        for text in texts:
            if canonical(text) not in number:
                raise UserError(f"the judge {self.weights} does not know the phrase {text!r}")
        return jnp.eye(len(number))[np.array([number[canonical(text)] for text in texts])]

    def image_features(
        self, params: PyTree, rgb: Float[Array, "b h w 3"]
    ) -> Float[Array, "b phrases"]:
        """The phrases' logits for pictures of any size in [0, 1]."""
        return logits(self.trained.config, params, shrink(rgb))


def logits(
    config: ProbeConfig, params: PyTree, rgb: Float[Array, "b s s 3"]
) -> Float[Array, "b phrases"]:
    """Logits for pictures of `SIZE` pixels in [0, 1]."""
    return cast(tuple[Array], Probe(config).apply({"params": params}, rgb))[0]


_logits = jax.jit(logits, static_argnums=0)


def read(judge: Trained, rgb: Float[np.ndarray, "n h w 3"]) -> Float[np.ndarray, "n phrases"]:
    """Logits for any number of pictures of any size in [0, 1]."""
    parts = []
    for start in range(0, len(rgb), CHUNK):
        small = shrink(rgb[start : start + CHUNK])
        padded = jnp.pad(small, ((0, CHUNK - len(small)), (0, 0), (0, 0), (0, 0)))
        parts.append(np.asarray(_logits(judge.config, judge.params, padded))[: len(small)])
    return np.concatenate(parts)


def among(
    scores: Float[np.ndarray, "n phrases"], truth: Int[np.ndarray, " n"], first: int
) -> Count:
    """How often the true phrase is among the `first` likeliest."""
    own = np.take_along_axis(scores, truth[:, None], axis=1)
    return Count(int(((scores > own).sum(1) < first).sum()), len(truth))


def counts(scores: Float[np.ndarray, "n phrases"], truth: Int[np.ndarray, " n"]) -> dict:
    """[right, of] for the likeliest phrase and for the five likeliest."""
    return {f"top-{first}": list(among(scores, truth, first)) for first in (1, 5)}


def save(path: str | Path, judge: Trained) -> None:
    """Write a judge (float16) as one safetensors file, beside and then renamed."""
    layout = {key: value for key, value in vars(judge.config).items() if key != "heads"}
    described = {"layout": layout, "phrases": judge.phrases, "report": judge.report}
    weights.save(path, {"format": FORMAT, "judge": json.dumps(described)}, judge.params)


def load(path: str | Path) -> Trained:
    """Read a judge; raises UserError for a file that is missing, damaged or not a judge's."""
    described = weights.description(path, FORMAT, "judge")
    phrases = convert(tuple[str, ...], described.get("phrases", ()), f"{path}: phrases")
    layout, report = (
        convert(dict, described.get(name, {}), f"{path}: {name}") for name in ("layout", "report")
    )
    config = weights.build(path, ProbeConfig, layout | {"heads": (len(phrases),)})
    blank = jnp.zeros((1, SIZE, SIZE, 3))
    init = jax.eval_shape(Probe(config).init, jax.random.key(0), blank)["params"]
    return Trained(config, phrases, weights.fit(path, init), report)
