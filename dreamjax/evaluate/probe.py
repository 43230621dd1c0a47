"""The probe: reads kind, colours and view word from a picture of a toybox object.

It is trained on ground-truth renders (`tasks.train_probe`) and ships with the package as float16
safetensors. What it scores on fresh renders is the ceiling of what it can say about anything else;
the file's metadata hold it, with the names of the classes that the numbers stand for.
"""

import json
from functools import cache
from importlib import resources
from pathlib import Path
from typing import NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PyTree

from dreamjax import weights
from dreamjax.errors import UserError
from dreamjax.evaluate.prompts import Meaning, has_second
from dreamjax.evaluate.scores import Count, accuracy
from dreamjax.nets.probe import Probe, ProbeConfig
from dreamjax.scene.views import VIEW_WORDS
from dreamjax.settings import convert
from dreamjax.toybox.draw import COLOR_NAMES
from dreamjax.toybox.kinds import KINDS

FORMAT = "dreamjax-probe-1"
SIZE = 32
CHUNK = 256
# Kinds whose view is read right this often from ground truth have sides that can be told apart.
TELLABLE = 0.75
CLASSES = {
    "kind": tuple(kind.name for kind in KINDS),
    "first": COLOR_NAMES,
    "second": COLOR_NAMES,
    "view": VIEW_WORDS,
}


class Reading(NamedTuple):
    """Probabilities of the classes of each head, [N, classes]."""

    kind: Float[np.ndarray, "n kinds"]
    first: Float[np.ndarray, "n colors"]
    second: Float[np.ndarray, "n colors"]
    view: Float[np.ndarray, "n views"]

    @property
    def labels(self) -> "Labels":
        """The most probable classes."""
        return Labels(*(np.argmax(p, axis=-1) for p in self))


class Labels(NamedTuple):
    """Classes: indices into `KINDS`, twice `COLORS`, and `VIEW_WORDS`."""

    kind: Int[np.ndarray, " n"]
    first: Int[np.ndarray, " n"]
    second: Int[np.ndarray, " n"]
    view: Int[np.ndarray, " n"]


class Shipped(NamedTuple):
    """A trained probe, and what was measured on it when it was trained."""

    config: ProbeConfig
    params: PyTree
    report: dict


def make_config(**layout) -> ProbeConfig:
    """A probe for the toybox as it is."""
    return ProbeConfig(heads=tuple(len(names) for names in CLASSES.values()), **layout)


def logits(
    config: ProbeConfig, params: PyTree, rgb: Float[Array, "n s s 3"]
) -> tuple[Float[Array, "n _"], ...]:
    """The heads' outputs, in the order of `CLASSES`, for pictures of `SIZE` pixels in [0, 1]."""
    return cast(tuple[Array, ...], Probe(config).apply({"params": params}, rgb))


def save(path: str | Path, probe: Shipped) -> None:
    """Write a probe (float16) as one safetensors file, beside and then renamed."""
    layout = {key: value for key, value in vars(probe.config).items() if key != "heads"}
    metadata = {
        "format": FORMAT,
        "classes": json.dumps(CLASSES),
        "layout": json.dumps(layout),
        "report": json.dumps(probe.report),
    }
    weights.save(path, metadata, probe.params)


def shipped() -> Path:
    """The weights file in the package."""
    return Path(str(resources.files("dreamjax.evaluate") / "weights" / "probe.safetensors"))


@cache
def load(path: str | Path = "") -> Shipped:
    """Read a probe with its float32 parameters; without a path, the one that ships.

    Raises UserError for a file that is missing, damaged or not a probe's, and for a probe of
    another toybox (kinds, colours or view words differ).
    """
    path = path or shipped()
    known, layout, report = (
        weights.description(path, FORMAT, key) for key in ("classes", "layout", "report")
    )
    for head, names in CLASSES.items():
        found = convert(tuple[str, ...], known.get(head, ()), f"{path}: {head}")
        if found != names:
            changed = sorted(set(names) ^ set(found))[:9] or ["their order"]
            raise UserError(
                f"the probe {path} is of another toybox (its classes of {head} differ: "
                f"{', '.join(changed)}): train it anew with --config=configs/toybox_probe.py"
            )
    heads = tuple(len(names) for names in CLASSES.values())
    config = weights.build(path, ProbeConfig, layout | {"heads": heads})
    blank = jnp.zeros((1, SIZE, SIZE, 3))
    init = jax.eval_shape(Probe(config).init, jax.random.key(0), blank)["params"]
    return Shipped(config, weights.fit(path, init), report)


def shrink(images: Float[Array | np.ndarray, "n h w 3"]) -> Float[Array, "n s s 3"]:
    """Pictures at the probe's size: block means where it divides theirs, else antialiased."""
    n, height, width, _ = images.shape
    images = jnp.asarray(images, jnp.float32)
    if height == width and height % SIZE == 0:
        factor = height // SIZE
        return images.reshape(n, SIZE, factor, SIZE, factor, 3).mean((2, 4))
    return jax.image.resize(images, (n, SIZE, SIZE, 3), "linear", antialias=True)


def tellable(probe: Shipped, kind: int) -> bool:
    """Whether the probe can tell the sides of this kind apart in ground truth."""
    right, of = probe.report["view_by_kind"][CLASSES["kind"][kind]]
    return right >= TELLABLE * of


def labels_of(meanings: list[Meaning], views: Int[np.ndarray, " n"]) -> Labels:
    """What the probe should read from pictures of these meanings and views."""
    return Labels._make([*(np.array(column) for column in zip(*meanings, strict=True)), views])


_logits = jax.jit(logits, static_argnums=0)


def read(images: Float[Array | np.ndarray, "n h w 3"], probe: Shipped | None = None) -> Reading:
    """Probabilities for pictures in [0, 1] of any size; without a probe, the shipped one's."""
    probe = probe or load()
    parts = []
    for start in range(0, len(images), CHUNK):
        small = shrink(np.asarray(images[start : start + CHUNK]))
        # One shape for every call, so that it is compiled once.
        padded = jnp.pad(small, ((0, CHUNK - len(small)), (0, 0), (0, 0), (0, 0)))
        heads = _logits(probe.config, probe.params, padded)
        parts.append([np.asarray(jax.nn.softmax(head))[: len(small)] for head in heads])
    return Reading(*(np.concatenate(head) for head in zip(*parts, strict=True)))


def score(
    predicted: Labels,
    truth: Labels,
    colored: Bool[np.ndarray, " n"] | None = None,
    tells: Bool[np.ndarray, " n"] | None = None,
) -> dict[str, Count]:
    """Counts of what was read right: kind, first, second, object (all three) and view.

    Colours count where `colored`, the second where the kind has one; views where `tells` (both are
    everywhere without them).
    """
    colored = np.ones(len(truth.kind), bool) if colored is None else np.asarray(colored)
    two = np.array([has_second(kind) for kind in truth.kind], bool)
    right = [np.asarray(p) == np.asarray(t) for p, t in zip(predicted, truth, strict=True)]
    whole = right[0] & right[1] & (right[2] | ~two)
    return {
        "kind": accuracy(predicted.kind, truth.kind),
        "first": accuracy(predicted.first, truth.first, colored),
        "second": accuracy(predicted.second, truth.second, colored & two),
        "object": accuracy(whole, np.ones(len(whole), bool), colored),
        "view": accuracy(predicted.view, truth.view, tells),
    }
