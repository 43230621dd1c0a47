"""A classifier of noisy images, which guides sampling (arXiv 2105.05233 section 4).

One safetensors file holds the parameters and, in the metadata, the network's sizes, the names of
the classes and the betas of the noise it was trained on.
"""

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, PyTree

from dreamjax import weights
from dreamjax.diffusion.schedule import Schedule
from dreamjax.errors import UserError
from dreamjax.nets.adm import ADMClassifier, ADMConfig

FORMAT = "dreamjax-classifier-1"


@dataclasses.dataclass(frozen=True)
class NoisyClassifier:
    """The network, the schedule of the noise it has seen, and the names of its classes."""

    net: ADMConfig
    schedule: Schedule
    classes: tuple[str, ...]

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
        return net.apply({"params": params}, x_t, t, train=dropout is not None, rngs=rngs)

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


def save(path: str | Path, classifier: NoisyClassifier, params: PyTree) -> None:
    """Write classifier and parameters (float32), beside and then renamed.

    Raises UserError where nothing can be written.
    """
    fields = {
        "net": dataclasses.asdict(classifier.net),
        "schedule": classifier.schedule.betas.tolist(),
        "classes": classifier.classes,
    }
    weights.save(path, {"format": FORMAT, "classifier": json.dumps(fields)}, params, np.float32)


def load(path: str | Path) -> tuple[NoisyClassifier, PyTree]:
    """Read a classifier with its parameters.

    Raises UserError for a file that is missing, damaged, or not of this kind.
    """
    metadata, tensors = weights.read(path, FORMAT)
    try:
        fields = weights.tuples(json.loads(metadata.get("classifier", "")))
        net = ADMConfig(**weights.tuples(fields["net"]))
        schedule = Schedule(np.array(fields["schedule"]))
        classifier = NoisyClassifier(net, schedule, fields["classes"])
    except (UserError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path}: cannot make sense of its description: {error}") from error
    return classifier, weights.fit(
        path, tensors, jax.eval_shape(classifier.init, jax.random.key(0))
    )
