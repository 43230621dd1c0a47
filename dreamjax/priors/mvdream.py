"""MVDream as a prior: four views of one thing at once (arXiv 2308.16512).

It is Stable Diffusion 2.1 with attention among the places of four views, each of which is told its
camera: none can grow a second face behind the first. Views come in groups of four, a quarter turn
apart (`Cameras.group`), share t within a group, and are rows of one sequence.

Folders are those of MVDream's diffusers conversion: a `MVDreamPipeline` whose autoencoder and text
encoder are in diffusers' layout, and whose UNet, a `MultiViewUNetModel`, has latent diffusion's
names (`their_name`). The original release is one pickle, which is not read.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, cast

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array, Float, Int, PyTree

from dreamjax.errors import UserError
from dreamjax.nets.stable_diffusion import settings as unets
from dreamjax.nets.stable_diffusion.unet import SDUNetConfig
from dreamjax.nets.text import Text
from dreamjax.priors import published, words
from dreamjax.priors.base import Conditions, Prompt
from dreamjax.priors.stable_diffusion import CAMERA_DIM, LatentDiffusion, StableDiffusionNets
from dreamjax.scene.camera import Camera, camera_matrix, orbit
from dreamjax.scene.views import Views
from dreamjax.settings import settings

CROSS_DOWN, CROSS_UP = "CrossAttnDownBlock2D", "CrossAttnUpBlock2D"
VIEWS = 4
SAMPLE_ELEVATION = 15.0  # degrees, of pictures that are drawn without an object
# Published settings with which the network is this one, and those that are read.
FIXED = {"_class_name": "MultiViewUNetModel", "transformer_depth": 1, "camera_dim": CAMERA_DIM}
READ = (
    *("image_size", "in_channels", "out_channels", "model_channels", "channel_mult"),
    *("num_res_blocks", "num_head_channels", "attention_resolutions", "context_dim"),
)
# Modules of ours and theirs: the outer ones, those of a residual block.
OUTER = {
    "time_embedding.linear_1": "time_embed_0",
    "time_embedding.linear_2": "time_embed_2",
    "camera_embedding.linear_1": "camera_embed_0",
    "camera_embedding.linear_2": "camera_embed_2",
    "conv_in": "input_blocks_0.0",
    "conv_norm_out": "out_0",
    "conv_out": "out_2",
}
MIDDLE = {"resnets_0": "0", "attentions_0": "1", "resnets_1": "2"}
RESIDUAL = {
    "norm1": "in_layers_0",
    "conv1": "in_layers_2",
    "time_emb_proj": "emb_layers_1",
    "norm2": "out_layers_0",
    "conv2": "out_layers_3",
    "conv_shortcut": "skip_connection",
}


class MultiView(NamedTuple):
    """What the network is told of each of B views, four rows in a row being one group."""

    text: Text
    camera: Float[Array, "b 16"]


class MVDreamNets(StableDiffusionNets):
    """The networks of a multi-view diffusion model, as its folder describes them."""

    PIPELINE: ClassVar[str] = "MVDreamPipeline"

    def embed_texts(self, params: PyTree, texts: Sequence[str]) -> MultiView:
        """The condition of N texts, four in a row being seen from the four sides of one thing."""
        azimuth = 360.0 / VIEWS * (jnp.arange(len(texts)) % VIEWS)
        camera = jax.vmap(lambda angle: orbit(angle, SAMPLE_ELEVATION, 1.0, 1.0))(azimuth)
        return MultiView(super().embed_texts(params, texts), told_camera(camera))

    def predict(
        self,
        params: PyTree,
        z_t: Float[Array, "b s s c"],
        t: Int[Array, " b"],
        condition: MultiView,
    ) -> Float[Array, "b s s c"]:
        """The UNet's output, eps; four rows in a row are one group, and share t."""
        return super().predict(params, z_t, t, condition.text, condition.camera)

    @classmethod
    def read_unet(cls, given: Mapping[str, Any]) -> SDUNetConfig:
        """The UNet that its config.json describes; raises UserError for another network's."""
        unets.refuse_others(given, READ, FIXED)
        channels = unets.whole(given, "model_channels", 320)
        head = unets.whole(given, "num_head_channels", 64)
        mults = unets.wholes(given, "channel_mult", (1, 2, 4, 4))
        if mults[0] != 1:
            raise unets.refused("channel_mult", mults, "1 at its finest level")
        scales = unets.wholes(given, "attention_resolutions", (4, 2, 1))
        widths = [channels * mult for mult in mults]
        if any(width % head for width in widths):
            raise unets.refused("num_head_channels", head, f"levels of {widths} channels")
        attends = [2**level in scales for level in range(len(mults))]
        # The same network, all but views and cameras, in the words of diffusers.
        config = SDUNetConfig.from_json(
            {
                "sample_size": given.get("image_size", 32),
                "in_channels": given.get("in_channels", 4),
                "out_channels": given.get("out_channels", 4),
                "block_out_channels": widths,
                "down_block_types": [CROSS_DOWN if has else "DownBlock2D" for has in attends],
                "up_block_types": [CROSS_UP if has else "UpBlock2D" for has in attends[::-1]],
                "attention_head_dim": [width // head for width in widths],
                "layers_per_block": given.get("num_res_blocks", 2),
                "cross_attention_dim": given.get("context_dim", 1024),
                "use_linear_projection": True,
            }
        )
        return dataclasses.replace(config, views=VIEWS, camera_dim=CAMERA_DIM)

    def load_unet(self, folder: Path, wanted: PyTree) -> PyTree:
        """The UNet's parameters of the shapes `wanted`; raises UserError as `published.load`."""
        flat = cast(dict[str, Any], flatten_dict(wanted, sep="."))
        names = {name: their_name(name, self.unet) for name in flat}
        theirs = {names[name]: value for name, value in flat.items()}
        read = published.load(folder, unflatten_dict(theirs, sep="."))
        found = cast(dict[str, Any], flatten_dict(read, sep="."))
        return unflatten_dict({name: found[names[name]] for name in flat}, sep=".")


def their_name(name: str, config: SDUNetConfig) -> str:
    """The name of our parameter in the original UNet, list numbers as a suffix as in ours.

    `input_blocks_4.0.in_layers_2.kernel` for `down_blocks_1.resnets_0.conv1.kernel`.
    """
    for ours, theirs in OUTER.items():
        if name.startswith(f"{ours}."):
            return theirs + name.removeprefix(ours)
    place, module, rest = name.split(".", 2)
    layers, number = config.layers_per_block + 1, int(module.rpartition("_")[2])
    inner, _, leaf = rest.partition(".")
    if module.startswith("resnets"):
        rest = f"{RESIDUAL[inner]}.{leaf}"
    if place == "mid_block":
        return f"middle_block_{MIDDLE[module]}.{rest}"
    level = int(place.rpartition("_")[2])
    if place.startswith("down"):
        if module == "downsamplers_0":
            return f"input_blocks_{layers * (level + 1)}.0.op.{leaf}"
        block = f"input_blocks_{1 + layers * level + number}"
    else:
        attends = config.attends[::-1][level]
        if module == "upsamplers_0":
            last = layers * (level + 1) - 1
            return f"output_blocks_{last}.{1 + attends}.conv.{leaf}"
        block = f"output_blocks_{layers * level + number}"
    return f"{block}.{0 if module.startswith('resnets') else 1}.{rest}"


def told_camera(camera: Camera) -> Float[Array, "b 16"]:
    """Camera-to-world matrices, cameras brought to distance 1 from the origin.

    The network's world is ours: z up, the front at azimuth 0 (its code's t2i.py draws it from +x).
    """
    distance = jnp.linalg.norm(camera.position, axis=-1, keepdims=True)
    return camera_matrix(camera._replace(position=camera.position / (distance + 1e-8)))


@settings
class MVDream(LatentDiffusion):
    """MVDream: Stable Diffusion 2.1 that sees four sides of a thing together."""

    NETS: ClassVar[type[StableDiffusionNets]] = MVDreamNets
    EXAMPLE: ClassVar[str] = "ashawkey/mvdream-sd2.1-diffusers"
    views_together: ClassVar[int] = VIEWS  # rows of `predict` that are one thing

    def embed(self, params: PyTree, prompt: Prompt) -> Text:
        """The prompt and what is guided away from [2, L, D]; views are told by camera alone.

        Raises UserError for a prompt without a word in it.
        """
        texts = [words.read_prompt(prompt.text), prompt.negative.strip()]
        return cast(MultiView, self.net.embed_texts(params, texts)).text

    def condition(self, embedded: Text, views: Views) -> Conditions:
        """The prompt, and the null text, with each view's camera.

        Raises UserError for views that are no groups of four.
        """
        count = len(views.index)
        if count % VIEWS:
            raise UserError(
                f"MVDream sees {VIEWS} views together, not {count}: batch_views must be a multiple "
                f"of {VIEWS} on every device, and cameras.group {VIEWS}"
            )
        camera = told_camera(views.camera)

        def told(row: int) -> MultiView:
            text = jax.tree.map(lambda x: jnp.broadcast_to(x[row], (count, *x.shape[1:])), embedded)
            return MultiView(text, camera)

        return Conditions(told(0), told(1))
