"""The published guided-diffusion weights (arXiv 2105.05233) as parameters of `nets.adm`.

They are read from safetensors, the tensors under the names and in the layouts of the published
PyTorch code: a convolution's weight is [O, I, H, W], a Dense layer's [O, I] or, in attention,
[O, I, 1]. The tensors' names say nothing of heads, so the config must be the one trained with.
"""

from collections.abc import Mapping
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import PyTree

from dreamjax import weights
from dreamjax.nets.adm import ADM, ADMClassifier, ADMConfig

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


def load(path: str | Path, config: ADMConfig) -> PyTree:
    """`unet_params` of a safetensors file; raises UserError too where it cannot be read."""
    return _params(path, weights.read(path, None).tensors, ADM(config))


def load_classifier(path: str | Path, config: ADMConfig, out_classes: int) -> PyTree:
    """`classifier_params` of a safetensors file; raises UserError too where it cannot be read."""
    return _params(path, weights.read(path, None).tensors, ADMClassifier(config, out_classes))


def unet_params(tensors: Mapping[str, np.ndarray], config: ADMConfig) -> PyTree:
    """Float32 parameters of `ADM(config)` from the published UNetModel's tensors.

    Raises UserError, naming the first, for tensors that are missing, left over, of another shape or
    not finite.
    """
    return _params("the UNet's tensors", tensors, ADM(config))


def classifier_params(
    tensors: Mapping[str, np.ndarray], config: ADMConfig, out_classes: int
) -> PyTree:
    """Float32 parameters of `ADMClassifier(config, out_classes)` from an EncoderUNetModel's.

    That must have attention pooling. Raises UserError as `unet_params` does.
    """
    return _params("the classifier's tensors", tensors, ADMClassifier(config, out_classes))


def _params(source: str | Path, tensors: Mapping[str, np.ndarray], net: nn.Module) -> PyTree:
    c = net.config
    x = jnp.zeros((1, c.image_size, c.image_size, c.in_channels))
    label = (jnp.zeros(1, jnp.int32),) if c.num_classes else ()
    shapes = jax.eval_shape(net.init, jax.random.key(0), x, jnp.zeros(1), *label)["params"]
    modules = _modules(c)
    wanted, names = {}, {}
    for ours, value in flatten_dict(shapes, sep=".").items():
        theirs = _published_name(modules, ours)
        names[ours] = theirs
        wanted[theirs] = jax.ShapeDtypeStruct(_published_shape(theirs, value.shape), value.dtype)
    found = flatten_dict(weights.fit(source, tensors, wanted), sep=".")
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
