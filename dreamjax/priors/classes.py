"""Diffusion models of labelled images as priors: the prompt is the name of a class.

The network is the ADM UNet with its schedule and what it predicts. One safetensors file holds
everything: the parameters, the betas in float64, and in the metadata the rest.
"""

import dataclasses
import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, PyTree

from dreamjax import weights
from dreamjax.diffusion.reverse import Parameterisation
from dreamjax.diffusion.schedule import Schedule
from dreamjax.errors import UserError
from dreamjax.nets.adm import ADM, ADMConfig
from dreamjax.priors.base import Conditions, NetPrior, Pixels, Prompt
from dreamjax.priors.words import read_prompt
from dreamjax.scene.views import Views
from dreamjax.settings import Range, convert, settings, short

FORMAT = "dreamjax-classes-1"


Level = Annotated[int, Range(2, 65_536)]
Beta = Annotated[float, Range(0.0, 1.0, above=True)]
MOST_STEPS = 100_000  # of a schedule


@settings
class ClassNet(Pixels):
    """A diffusion model of images of `classes`, each pixel one of `levels` values.

    `net` has a class more than `classes` where the model also knows the null class, which
    classifier-free guidance needs, and none at all where it is unconditional. Raises UserError for
    sizes that do not fit together.
    """

    net: ADMConfig
    schedule: Schedule
    prediction: Literal["eps", "x0", "v", "mean"] = "eps"
    variance: Literal["fixed_small", "fixed_large", "learned", "learned_range"] = "fixed_large"
    classes: tuple[str, ...] = ()
    levels: Level = 256

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

    def embed_texts(self, params: PyTree, texts: Sequence[str]) -> Int[Array, " n"] | None:
        """Labels of class names; "" is the null class. None for an unconditional model.

        Raises UserError for an unknown name, and for "" where there is no null class.
        """
        if not self.classes:
            if any(texts):
                raise UserError(f"{list(texts)} were asked for, but the model has no classes")
            return None
        numbers = {name: number for number, name in enumerate(self.classes)}
        if self.null_class is not None:
            numbers[""] = self.null_class
        for text in texts:
            if text not in numbers:
                shown = ", ".join(self.classes[:12]) + (", ..." if len(self.classes) > 12 else "")
                raise UserError(f"the model knows no class {text!r}; it has {shown}")
        return jnp.asarray([numbers[text] for text in texts], jnp.int32)

    def predict(
        self,
        params: PyTree,
        z_t: Float[Array, "b h w c"],
        t: Int[Array, " b"],
        condition: Int[Array, " b"] | None,
        dropout: Key[Array, ""] | None = None,
    ) -> Float[Array, "b h w d"]:
        """The network's output given one label a row; with a key for `dropout`, in training."""
        rngs = {} if dropout is None else {"dropout": dropout}
        train = dropout is not None
        net = ADM(self.net)
        out = net.apply({"params": params}, z_t, t, condition, train=train, rngs=rngs)
        return cast(Array, out)


class Labels(NamedTuple):
    """An embedded prompt: the label [1] of its class, and the one guided away from [1].

    Both are None for an unconditional model.
    """

    cond: Int[Array, "1"] | None
    uncond: Int[Array, "1"] | None


class ClassConditional(NetPrior):
    """The part of a prior of classes that does not depend on where its weights come from."""

    net: ClassNet

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of its classes."""
        return self.net.classes

    def embed(self, params: PyTree, prompt: Prompt) -> Labels:
        """The label of the prompt's class; raises UserError for a class it does not know.

        Guidance is away from the null class, or from the class that `prompt.negative` names; where
        there is neither, there is none.
        """
        net = self.net
        cond = net.embed_texts(params, [read_prompt(prompt.text)])
        negative = prompt.negative.strip()
        if not negative and net.null_class is None:
            raise UserError(
                "the model was trained without the null class, which guidance needs: train it "
                "with class_dropout, or name a class in negative_prompt"
            )
        return Labels(cond, net.embed_texts(params, [negative]))

    def condition(self, embedded: Labels, views: Views) -> Conditions:
        """The same labels for every view: the model cannot be told a view."""
        rows = views.index.shape
        cond, uncond = jax.tree.map(lambda label: jnp.broadcast_to(label[0], rows), embedded)
        return Conditions(cond, uncond)


@settings
class Classes(ClassConditional):
    """A diffusion model of labelled images that task train_diffusion wrote."""

    weights: str = ""  # the model.safetensors of task train_diffusion

    @functools.cached_property
    def net(self) -> ClassNet:
        """The network that the file describes; raises UserError for a file that cannot be read."""
        return read_net(self._path)

    @property
    def _path(self) -> str:
        if not self.weights:
            raise UserError(
                "Classes needs weights: name a model.safetensors of task train_diffusion, as "
                "--config.prior.weights=runs/digits/model.safetensors"
            )
        return self.weights

    def load(self) -> PyTree:
        """Float32 parameters; raises UserError for a file that is damaged or does not fit."""
        return load(self._path)[1]


def save(path: str | Path, net: ClassNet, params: PyTree) -> None:
    """Write network and parameters (float32) as one safetensors file, at once or not at all.

    Raises UserError where nothing can be written.
    """
    fields = {f.name: getattr(net, f.name) for f in dataclasses.fields(net)}
    fields["net"] = dataclasses.asdict(net.net)
    # Python's JSON writes a float64 with all its digits.
    fields["schedule"] = net.schedule.betas.tolist()
    weights.save(path, {"format": FORMAT, "prior": json.dumps(fields)}, params, np.float32)


def load(path: str | Path) -> tuple[ClassNet, PyTree]:
    """Read a network with its parameters.

    Raises UserError for a file that is missing, damaged, or not of this kind.
    """
    net = read_net(path)
    return net, weights.fit(path, weights.shapes_of(net))


def read_net(path: str | Path) -> ClassNet:
    """The network that a file describes; raises UserError as `load` does."""
    fields = weights.description(path, FORMAT, "prior")
    return weights.build(path, ClassNet, with_schedule(path, fields))


def with_schedule(path: str | Path, fields: dict[str, Any]) -> dict[str, Any]:
    """The fields that a file describes, its betas made a schedule; raises UserError."""
    betas = fields.get("schedule")
    try:
        if not isinstance(betas, list) or not 1 <= len(betas) <= MOST_STEPS:
            raise UserError(f"schedule is {short(betas)}: expected 1 to {MOST_STEPS} betas")
        betas = convert(tuple[Beta, ...], betas, "schedule")
    except UserError as error:
        raise UserError(f"{path}: cannot make sense of its description: {error}") from error
    return fields | {"schedule": Schedule(np.array(betas))}
