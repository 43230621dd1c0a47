"""The published guided-diffusion models (arXiv 2105.05233) as priors.

Weights are read from safetensors, the tensors under the names and in the layouts of the published
PyTorch code: a convolution's weight is [O, I, H, W], a Dense layer's [O, I] or, in attention,
[O, I, 1]. The tensors' names say nothing of heads, nor of the noise, so the settings must be those
that the model was trained with.
"""

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import PyTree

from dreamjax import weights
from dreamjax.diffusion.schedule import Schedule, cosine, linear
from dreamjax.errors import UserError
from dreamjax.nets.adm import (
    ADM,
    ADMClassifier,
    ADMConfig,
    Blocks,
    Channels,
    Classes,
    HeadDim,
    Heads,
    Side,
)
from dreamjax.priors.classes import ClassConditional, ClassNet
from dreamjax.settings import Dtype, Range, settings

# Ours to theirs: the parts of a residual block, of attention, and all that is there but once.
BLOCK = {
    "norm_in": "in_layers.0",
    "conv_in": "in_layers.2",
    "cond": "emb_layers.1",
    "norm_out": "out_layers.0",
    "conv_out": "out_layers.3",
    "skip": "skip_connection",
}
ATTENTION = {"norm": "norm", "qkv": "qkv", "out": "proj_out"}
ONCE = {
    "cond.time_in": "time_embed.0",
    "cond.time_out": "time_embed.2",
    "cond.label": "label_emb",
    "in": "input_blocks.0.0",
    "norm_out": "out.0",
    "conv_out": "out.2",
    "pool_qkv": "out.2.qkv_proj",
    "pool_out": "out.2.c_proj",
}
LEAF = {"kernel": "weight", "bias": "bias", "scale": "weight", "embedding": "weight"}

Steps = Annotated[int, Range(2, 10**5)]


@settings
class Layout:
    """Sizes of a published network and its noise; the published flag in brackets."""

    weights: str = ""  # a safetensors file with the published tensors
    image_size: Side = 64  # H = W in pixels [image_size]
    channels: Channels = 192  # at the finest level, times its first factor [num_channels]
    channel_mults: tuple[Blocks, ...] = (1, 2, 3, 4)  # a factor a level [channel_mult]
    res_blocks: Blocks = 3  # a level on the way down, one more on the way up [num_res_blocks]
    attention_sizes: tuple[Side, ...] = (32, 16, 8)  # sides with attention [attention_resolutions]
    heads: Heads = 4  # of attention, where head_dim is 0 [num_heads]
    head_dim: HeadDim = 64  # channels a head of attention, 0: as heads say [num_head_channels]
    split_qkv_first: bool = True  # the order of q, k and v [use_new_attention_order]
    resblock_updown: bool = True  # residual blocks change the size, else convolutions
    scale_shift_norm: bool = True  # time and class scale and shift a norm [use_scale_shift_norm]
    noise: Literal["linear", "cosine"] = "cosine"  # shape of the schedule [noise_schedule]
    steps: Steps = 1000  # of the noise that it was trained on [diffusion_steps]
    dtype: Dtype = "float32"  # of the network's activations

    def __post_init__(self):
        self.adm()  # says which sizes do not fit together

    def adm(self, **more) -> ADMConfig:
        """The layout as the network's config; raises UserError for sizes that do not fit."""
        mine = {field.name: getattr(self, field.name) for field in dataclasses.fields(Layout)}
        known = {field.name for field in dataclasses.fields(ADMConfig)}
        return ADMConfig(**{name: mine[name] for name in mine if name in known}, **more)

    def make_schedule(self) -> Schedule:
        """The schedule; `linear` with other than 1000 steps is scaled as in the published code."""
        if self.noise == "cosine":
            return cosine(self.steps)
        return linear(self.steps, 0.1 / self.steps, 20.0 / self.steps)

    def path(self, part: str, file: str) -> str:
        """The weights file; raises UserError where none is named, with `file` as an example."""
        if not self.weights:
            raise UserError(
                f"{type(self).__name__} needs weights: name a safetensors file with the tensors of "
                f"the published one, as --config.{part}.weights={file}"
            )
        return self.weights


@settings
class GuidedDiffusion(Layout, ClassConditional):
    """A published guided-diffusion model; by default ImageNet's of 64 x 64 pixels.

    Prompts are its classes' numbers, "0" to "999".
    """

    num_classes: Classes = 1000  # 0 is unconditional [class_cond]
    learns_variance: bool = True  # doubles the output's channels [learn_sigma]

    @functools.cached_property
    def net(self) -> ClassNet:
        """The network; raises UserError for sizes that do not fit together."""
        return ClassNet(
            net=self.adm(num_classes=self.num_classes, learns_variance=self.learns_variance),
            schedule=self.make_schedule(),
            variance="learned_range" if self.learns_variance else "fixed_large",
            classes=tuple(map(str, range(self.num_classes))),
        )

    def load(self) -> PyTree:
        """Float32 parameters; raises UserError for a file that does not fit the layout."""
        return load(self.path("prior", "64x64_diffusion.safetensors"), self.net.net)


def load(path: str | Path, config: ADMConfig) -> PyTree:
    """Float32 parameters of `ADM(config)` from a published UNetModel's safetensors file.

    Raises UserError for a file that cannot be read, and, naming the first four, for tensors that
    are missing, left over, of another shape or not finite.
    """
    return _params(path, ADM(config))


def load_classifier(path: str | Path, config: ADMConfig, out_classes: int) -> PyTree:
    """Float32 parameters of `ADMClassifier(config, out_classes)` from an EncoderUNetModel's file.

    That must have attention pooling. Raises UserError as `load` does.
    """
    return _params(path, ADMClassifier(config, out_classes))


def _params(path: str | Path, net: nn.Module) -> PyTree:
    c = net.config
    x = jnp.zeros((1, c.image_size, c.image_size, c.in_channels))
    label = (jnp.zeros(1, jnp.int32),) if c.num_classes else ()
    shapes = jax.eval_shape(net.init, jax.random.key(0), x, jnp.zeros(1), *label)["params"]
    modules = _modules(c)
    wanted, names = {}, {}
    for ours, value in cast(dict[str, Any], flatten_dict(shapes, sep=".")).items():
        theirs = _published_name(modules, ours)
        names[ours] = theirs
        wanted[theirs] = jax.ShapeDtypeStruct(_published_shape(theirs, value.shape), value.dtype)
    params = weights.fit(path, wanted)
    found = cast(dict[str, Any], flatten_dict(params, sep="."))
    return unflatten_dict({a: _our_layout(b, found[b]) for a, b in names.items()}, sep=".")


def _modules(config: ADMConfig) -> dict[str, str]:
    """The published name of each of our modules, those that this config lacks among them."""
    last, step = len(config.channel_mults) - 1, config.res_blocks + 1
    blocks = {"middle_0": "middle_block.0", "middle_1": "middle_block.2"}
    attentions = {"middle_attention": "middle_block.1"}
    resamplers = {}
    for level in range(last + 1):
        down, up = 1 + level * step, (last - level) * step
        for i in range(config.res_blocks):
            blocks[f"down_{level}_{i}"] = f"input_blocks.{down + i}.0"
            attentions[f"down_{level}_{i}_attention"] = f"input_blocks.{down + i}.1"
        for i in range(step):
            blocks[f"up_{level}_{i}"] = f"output_blocks.{up + i}.0"
            attentions[f"up_{level}_{i}_attention"] = f"output_blocks.{up + i}.1"
        # The way down has a place of its own for what halves; what doubles ends a level's last.
        after = 2 if config.attends(level) else 1
        blocks[f"down_{level}"] = f"input_blocks.{down + config.res_blocks}.0"
        blocks[f"up_{level}"] = f"output_blocks.{up + config.res_blocks}.{after}"
        resamplers[f"down_{level}"] = blocks[f"down_{level}"] + ".op"
        resamplers[f"up_{level}"] = blocks[f"up_{level}"] + ".conv"
    modules = ONCE | resamplers
    for places, parts in ((blocks, BLOCK), (attentions, ATTENTION)):
        for ours, theirs in places.items():
            modules |= {f"{ours}.{a}": f"{theirs}.{b}" for a, b in parts.items()}
    return modules


def _published_name(modules: Mapping[str, str], name: str) -> str:
    if name == "place":
        return "out.2.positional_embedding"
    module, _, leaf = name.rpartition(".")
    return f"{modules[module]}.{LEAF[leaf]}"


def _published_shape(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape that a tensor of ours has under its published name."""
    if len(shape) == 1 or name.startswith("label_emb"):
        return shape
    module = name.split(".")[-2]
    if module in ("qkv", "proj_out", "qkv_proj", "c_proj"):
        return (*shape[::-1], 1)
    return (*shape[:-3:-1], *shape[:-2])


def _our_layout(name: str, value: jax.Array) -> jax.Array:
    """Undo `_published_shape`."""
    if value.ndim == 1 or name.startswith("label_emb"):
        return value
    if value.ndim == 4:
        return value.transpose(2, 3, 1, 0)
    return value.reshape(value.shape[:2]).T
