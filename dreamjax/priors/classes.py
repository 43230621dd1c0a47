"""A diffusion model of labelled images: the ADM UNet with its schedule and what it predicts.

It is a prior (`priors.base.Prior`) whose prompts are names of classes. One safetensors file holds
everything: the parameters, the betas in float64, and in the metadata the rest.
"""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, PyTree

from dreamjax import weights
from dreamjax.diffusion.reverse import Parameterisation, eps_of, split_output
from dreamjax.diffusion.schedule import Schedule
from dreamjax.errors import UserError
from dreamjax.nets.adm import ADM, ADMConfig
from dreamjax.priors.base import PAPER_VIEWS, decode_pixels, encode_pixels

FORMAT = "dreamjax-classes-1"


@dataclasses.dataclass(frozen=True)
class ClassPrior:
    """A diffusion model of images of `classes`, each pixel one of `levels` values.

    `net` has a class more than `classes` where the model also knows the null class, which
    classifier-free guidance needs, and none at all where it is unconditional. Raises UserError for
    sizes that do not fit together.
    """

    net: ADMConfig
    schedule: Schedule
    prediction: str = "eps"
    variance: str = "fixed_large"
    classes: tuple[str, ...] = ()
    levels: int = 256

    def __post_init__(self):
        known = self.net.num_classes
        if known not in ({0} if not self.classes else {len(self.classes), len(self.classes) + 1}):
            raise UserError(f"{len(self.classes)} classes are named; net.num_classes is {known}")
        if self.parameterisation.learns_variance != self.net.learns_variance:
            raise UserError(
                f"variance is {self.variance}, but net.learns_variance {self.net.learns_variance}"
            )

    @property
    def parameterisation(self) -> Parameterisation:
        """What the network's output stands for."""
        return Parameterisation(self.prediction, self.variance)

    @property
    def image_size(self) -> int:
        """H = W in pixels."""
        return self.net.image_size

    @property
    def view_names(self) -> tuple[tuple[float, tuple[str, ...]], ...]:
        """What it calls views: the paper's words."""
        return PAPER_VIEWS

    @property
    def shape(self) -> tuple[int, int, int]:
        """H, W, C of an image."""
        return (self.net.image_size, self.net.image_size, self.net.in_channels)

    @property
    def null_class(self) -> int | None:
        """The label that stands for any class, None where the model has none."""
        return len(self.classes) if self.net.num_classes == len(self.classes) + 1 else None

    def init(self, key: Key[Array, ""]) -> PyTree:
        """Fresh parameters."""
        label = jnp.zeros(1, jnp.int32) if self.net.num_classes else None
        return ADM(self.net).init(key, jnp.zeros((1, *self.shape)), jnp.zeros(1), label)["params"]

    def embed(self, params: PyTree, prompts: Sequence[str]) -> Int[Array, " n"] | None:
        """Labels of class names; "" is the null class. None for an unconditional model.

        Raises UserError for an unknown name, and for "" where there is no null class.
        """
        if not self.classes:
            if any(prompts):
                raise UserError(f"{list(prompts)} were asked for, but the model has no classes")
            return None
        numbers = {name: number for number, name in enumerate(self.classes)}
        if self.null_class is not None:
            numbers[""] = self.null_class
        for prompt in prompts:
            if prompt not in numbers:
                shown = ", ".join(self.classes[:12]) + (", ..." if len(self.classes) > 12 else "")
                raise UserError(f"the model knows no class {prompt!r}; it has {shown}")
        return jnp.asarray([numbers[prompt] for prompt in prompts], jnp.int32)

    def encode(
        self, params: PyTree, rgb: Float[Array, "b h w 3"], key: Key[Array, ""]
    ) -> Float[Array, "b s s 3"]:
        """Pixels brought to `image_size` and to [-1, 1]; `params` and `key` are not used."""
        return encode_pixels(rgb, self.image_size)

    def decode(self, params: PyTree, z_0: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        """Pictures in [0, 1]; `params` are not used."""
        return decode_pixels(z_0)

    def output(
        self,
        params: PyTree,
        x_t: Float[Array, "b h w c"],
        t: Int[Array, " b"],
        label: Int[Array, " b"] | None,
        dropout: Key[Array, ""] | None = None,
    ) -> Float[Array, "b h w d"]:
        """The network's own output; with a key for `dropout` it is in training."""
        rngs = {} if dropout is None else {"dropout": dropout}
        train = dropout is not None
        return ADM(self.net).apply({"params": params}, x_t, t, label, train=train, rngs=rngs)

    def predict_eps(
        self,
        params: PyTree,
        z_t: Float[Array, "b h w c"],
        t: Int[Array, " b"],
        text: Int[Array, " b"] | None,
    ) -> Float[Array, "b h w c"]:
        """eps_hat of z_t at t given one label a row."""
        p = self.parameterisation
        prediction, _ = split_output(p, z_t, self.output(params, z_t, t, text))
        return eps_of(self.schedule, p, z_t, t, prediction)


def save(path: str | Path, prior: ClassPrior, params: PyTree) -> None:
    """Write prior and parameters (float32) as one safetensors file, beside and then renamed.

    Raises UserError where nothing can be written.
    """
    fields = {f.name: getattr(prior, f.name) for f in dataclasses.fields(prior)}
    fields["net"] = dataclasses.asdict(prior.net)
    # Python's JSON writes a float64 with all its digits.
    fields["schedule"] = prior.schedule.betas.tolist()
    weights.save(path, {"format": FORMAT, "prior": json.dumps(fields)}, params, np.float32)


def load(path: str | Path) -> tuple[ClassPrior, PyTree]:
    """Read a prior with its parameters.

    Raises UserError for a file that is missing, damaged, or not of this kind.
    """
    metadata, tensors = weights.read(path, FORMAT)
    try:
        fields = weights.tuples(json.loads(metadata.get("prior", "")))
        fields["net"] = ADMConfig(**weights.tuples(fields["net"]))
        fields["schedule"] = Schedule(np.array(fields["schedule"]))
        prior = ClassPrior(**fields)
    except (UserError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path}: cannot make sense of its description: {error}") from error
    return prior, weights.fit(path, tensors, jax.eval_shape(prior.init, jax.random.key(0)))
