"""A classifier of noisy images, which guides sampling (arXiv 2105.05233 section 4).

One safetensors file holds the parameters and, in the metadata, the network's sizes, the names of
the classes and the betas of the noise it was trained on.
"""

import dataclasses
import functools
import json
from pathlib import Path
from typing import Protocol, cast

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, PyTree

from dreamjax import weights
from dreamjax.diffusion.schedule import Schedule
from dreamjax.errors import UserError
from dreamjax.nets.adm import ADMClassifier, ADMConfig
from dreamjax.priors.classes import with_schedule
from dreamjax.settings import settings

FORMAT = "dreamjax-classifier-1"


class NoisyClassifier(Protocol):
    """What guides sampling: frozen, without arrays, its parameters apart."""

    @property
    def schedule(self) -> Schedule:
        """The schedule of the noise that it has seen."""
        ...

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of its classes."""
        ...

    def load(self) -> PyTree:
        """The parameters; on the host, once. Raises UserError for weights that cannot be had."""
        ...

    def log_probability(
        self,
        params: PyTree,
        x_t: Float[Array, "b h w c"],
        t: Int[Array, " b"],
        label: Int[Array, " b"],
    ) -> Float[Array, " b"]:
        """log p(label | x_t) of each example."""
        ...


@settings
class ClassifierNet:
    """The network, the schedule of the noise it has seen, and the names of its classes.

    Raises UserError for a network of other than 1 class or more, or that is told classes.
    """

    net: ADMConfig
    schedule: Schedule
    classes: tuple[str, ...]

    def __post_init__(self):
        if not self.classes or self.net.num_classes:
            named = f"{len(self.classes)} classes are named"
            raise UserError(f"{named}, and net.num_classes is {self.net.num_classes}: expected 0")

    def init(self, key: Key[Array, ""]) -> PyTree:
        """Fresh parameters."""
        size = self.net.image_size
        x = jnp.zeros((1, size, size, self.net.in_channels))
        return ADMClassifier(self.net, len(self.classes)).init(key, x, jnp.zeros(1))["params"]

    def logits(
        self,
        params: PyTree,
        x_t: Float[Array, "b h w c"],
        t: Int[Array, " b"],
        dropout: Key[Array, ""] | None = None,
    ) -> Float[Array, "b classes"]:
        """The classes' logits; with a key for `dropout` the network is in training."""
        rngs = {} if dropout is None else {"dropout": dropout}
        net = ADMClassifier(self.net, len(self.classes))
        out = net.apply({"params": params}, x_t, t, train=dropout is not None, rngs=rngs)
        return cast(Array, out)

    def log_probability(
        self,
        params: PyTree,
        x_t: Float[Array, "b h w c"],
        t: Int[Array, " b"],
        label: Int[Array, " b"],
    ) -> Float[Array, " b"]:
        """log p(label | x_t) of each example; a label past the last class gives 0, no guidance."""
        log_p = jax.nn.log_softmax(self.logits(params, x_t, t))
        taken = jnp.take_along_axis(log_p, jnp.minimum(label, log_p.shape[1] - 1)[:, None], 1)
        return jnp.where(label < log_p.shape[1], taken[:, 0], 0.0)


class NetClassifier:
    """The part of a classifier that its network's description, `net`, answers."""

    @property
    def net(self) -> ClassifierNet:
        """The network that the weights are of; a subclass reads it once."""
        raise NotImplementedError

    @property
    def schedule(self) -> Schedule:
        """The schedule of the noise that it has seen."""
        return self.net.schedule

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of its classes."""
        return self.net.classes

    def log_probability(
        self,
        params: PyTree,
        x_t: Float[Array, "b h w c"],
        t: Int[Array, " b"],
        label: Int[Array, " b"],
    ) -> Float[Array, " b"]:
        """log p(label | x_t) of each example; a label past the last class gives 0, no guidance."""
        return self.net.log_probability(params, x_t, t, label)


@settings
class Classifier(NetClassifier):
    """A classifier of noisy images that task train_classifier wrote."""

    weights: str = ""  # the classifier.safetensors of task train_classifier

    @functools.cached_property
    def net(self) -> ClassifierNet:
        """The network that the file describes; raises UserError for a file that cannot be read."""
        return read_net(self._path)

    @property
    def _path(self) -> str:
        if not self.weights:
            raise UserError(
                "Classifier needs weights: name a classifier.safetensors of task train_classifier, "
                "as --config.classifier.weights=runs/classifier/classifier.safetensors"
            )
        return self.weights

    def load(self) -> PyTree:
        """Float32 parameters; raises UserError for a file that is damaged or does not fit."""
        return load(self._path)[1]


def save(path: str | Path, classifier: ClassifierNet, params: PyTree) -> None:
    """Write classifier and parameters (float32), at once or not at all.

    Raises UserError where nothing can be written.
    """
    fields = {
        "net": dataclasses.asdict(classifier.net),
        "schedule": classifier.schedule.betas.tolist(),
        "classes": classifier.classes,
    }
    weights.save(path, {"format": FORMAT, "classifier": json.dumps(fields)}, params, np.float32)


def load(path: str | Path) -> tuple[ClassifierNet, PyTree]:
    """Read a classifier with its parameters.

    Raises UserError for a file that is missing, damaged, or not of this kind.
    """
    net = read_net(path)
    return net, weights.fit(path, weights.shapes_of(net))


def read_net(path: str | Path) -> ClassifierNet:
    """The network that a file describes; raises UserError as `load` does."""
    fields = weights.description(path, FORMAT, "classifier")
    return weights.build(path, ClassifierNet, with_schedule(path, fields))
