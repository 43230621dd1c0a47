"""Stable Diffusion's UNet: noisy latents, timestep and text to eps or v (arXiv 2112.10752).

One network for 1.x and 2.x, base and v-prediction, and for MVDream (arXiv 2308.16512), which sees
several views of one thing together; they differ in the numbers of `SDUNetConfig` alone. It is the
ADM UNet (`nets.adm`) with transformers that read the text after the residual blocks. Symbols: B
latents of H x W places, C channels at one level, E = 4 x `block_out_channels[0]` of the time
embedding, text of L tokens of D channels, K of a camera. Modules and parameters have the published
PyTorch names.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Num

from dreamjax.errors import UserError
from dreamjax.nets.adm import timestep_embedding
from dreamjax.nets.stable_diffusion import settings
from dreamjax.nets.stable_diffusion.blocks import Downsample, ResnetBlock, Upsample, group_norm
from dreamjax.nets.stable_diffusion.transformer import Transformer

DOWN = {"DownBlock2D": "UpBlock2D", "CrossAttnDownBlock2D": "CrossAttnUpBlock2D"}
WHOLES = (
    "sample_size",
    "in_channels",
    "out_channels",
    "layers_per_block",
    "cross_attention_dim",
    "norm_num_groups",
)
READ = (
    *WHOLES,
    "attention_head_dim",
    "block_out_channels",
    "down_block_types",
    "norm_eps",
    "upcast_attention",
    "use_linear_projection",
)
# Published settings with which the network is this one. `upcast_attention` is read and left: the
# logits are float32 without it.
FIXED = {
    "_class_name": "UNet2DConditionModel",
    "act_fn": "silu",
    "addition_embed_type_num_heads": 64,
    "attention_type": "default",
    "conv_in_kernel": 3,
    "conv_out_kernel": 3,
    "downsample_padding": 1,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "mid_block_scale_factor": 1,
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "resnet_out_scale_factor": 1.0,
    "resnet_time_scale_shift": "default",
    "time_embedding_type": "positional",
    "transformer_layers_per_block": 1,
}


@dataclasses.dataclass(frozen=True)
class SDUNetConfig:
    """Layout of the UNet, under the published names, by level with the finest first.

    `sample_size` is the side of the latents that it was trained on, `cross_attention_dim` D of the
    text. `attends`: whether a level has transformers; `heads` of their attention. `remat`
    recomputes blocks on the way back instead of keeping their insides, `fused` is cuDNN's attention
    (NVIDIA GPUs from Ampere on, half precision). With `views` more than 1, so many latents in a row
    are views of one thing. `camera_dim` is K where the network was trained on cameras, else 0.
    Raises UserError for sizes that do not fit.
    """

    sample_size: int = 64
    in_channels: int = 4
    out_channels: int = 4
    block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280)
    attends: tuple[bool, ...] = (True, True, True, False)
    heads: tuple[int, ...] = (8, 8, 8, 8)
    layers_per_block: int = 2
    cross_attention_dim: int = 1280
    use_linear_projection: bool = False
    norm_num_groups: int = 32
    norm_eps: float = 1e-5
    dtype: str = "float32"
    remat: bool = False
    fused: bool = False
    views: int = 1
    camera_dim: int = 0

    def __post_init__(self):
        levels = len(self.block_out_channels)
        for name in ("attends", "heads"):
            if len(getattr(self, name)) != levels:
                raise UserError(f"{name} {getattr(self, name)} must be of {levels} levels")
        for width, heads in zip(self.block_out_channels, self.heads, strict=True):
            if width % self.norm_num_groups or width % heads or width % 2:
                raise UserError(
                    f"a level of {width} channels; they must divide by 2, by "
                    f"{self.norm_num_groups} groups and by {heads} heads"
                )
        if self.fused and self.dtype == "float32":
            raise UserError("fused attention is for half precision; dtype is 'float32'")

    @classmethod
    def from_json(cls, given: Mapping[str, Any]) -> "SDUNetConfig":
        """The layout that a published `config.json` describes.

        Raises UserError naming the key and the value that another network than this would need.
        """
        types = given.get("down_block_types", [*["CrossAttnDownBlock2D"] * 3, "DownBlock2D"])
        strings = isinstance(types, list | tuple) and all(isinstance(n, str) for n in types)
        if not strings or not all(name in DOWN for name in types):
            raise settings.refused("down_block_types", types, f"a list of {' and '.join(DOWN)}")
        mirrored = [DOWN[name] for name in reversed(types)]
        settings.refuse_others(given, READ, FIXED | {"up_block_types": mirrored})
        widths = settings.wholes(given, "block_out_channels", cls.block_out_channels)
        # The published name is its authors' mistake: it is the number of heads, for all levels or a
        # list by level.
        heads = given.get("attention_head_dim", 8)
        if not isinstance(heads, list | tuple):
            heads = [heads] * len(widths)
        return cls(
            **settings.wholes_of(cls, given, WHOLES),
            block_out_channels=widths,
            attends=tuple(name == "CrossAttnDownBlock2D" for name in types),
            heads=settings.wholes({"attention_head_dim": heads}, "attention_head_dim", ()),
            use_linear_projection=settings.switch(given, "use_linear_projection", False),
            norm_eps=settings.number(given, "norm_eps", cls.norm_eps),
        )

    @property
    def multiple(self) -> int:
        """The number that H and W must be a multiple of."""
        return 2 ** (len(self.block_out_channels) - 1)


def _block(config: SDUNetConfig, block: type[nn.Module]) -> type[nn.Module]:
    return nn.remat(block) if config.remat else block


def _resnet(config: SDUNetConfig, level: int, i: int) -> nn.Module:
    width = config.block_out_channels[level]
    return _block(config, ResnetBlock)(
        width, config.norm_num_groups, config.norm_eps, config.dtype, name=f"resnets_{i}"
    )


def _transformer(config: SDUNetConfig, level: int, i: int) -> nn.Module:
    return _block(config, Transformer)(
        config.heads[level],
        config.use_linear_projection,
        config.norm_num_groups,
        config.dtype,
        config.fused,
        config.views,
        name=f"attentions_{i}",
    )


class DownBlock(nn.Module):
    """A level on the way down: residual blocks, each with a transformer where the level attends."""

    config: SDUNetConfig
    level: int

    @nn.compact
    def __call__(
        self, h: Float[Array, "b h w c"], cond: Float[Array, "b e"], tokens: Float[Array, "b l d"]
    ) -> list[Float[Array, "b _h _w c2"]]:
        """The features after every layer, for the way up; the last ones at half the size."""
        config, skips = self.config, []
        for i in range(config.layers_per_block):
            h = _resnet(config, self.level, i)(h, cond)
            if config.attends[self.level]:
                h = _transformer(config, self.level, i)(h, tokens)
            skips.append(h)
        if self.level < len(config.block_out_channels) - 1:
            skips.append(Downsample((1, 1), config.dtype, name="downsamplers_0")(h))
        return skips


class MidBlock(nn.Module):
    """The lowest level's residual block, transformer, residual block."""

    config: SDUNetConfig

    @nn.compact
    def __call__(
        self, h: Float[Array, "b h w c"], cond: Float[Array, "b e"], tokens: Float[Array, "b l d"]
    ) -> Float[Array, "b h w c"]:
        """Map [B, H, W, C] to the same shape."""
        h = _resnet(self.config, -1, 0)(h, cond)
        h = _transformer(self.config, -1, 0)(h, tokens)
        return _resnet(self.config, -1, 1)(h, cond)


class UpBlock(nn.Module):
    """A level on the way up: as on the way down, with what was kept there beside each input."""

    config: SDUNetConfig
    level: int

    @nn.compact
    def __call__(
        self,
        h: Float[Array, "b h w c"],
        skips: list[Float[Array, "b h w _"]],
        cond: Float[Array, "b e"],
        tokens: Float[Array, "b l d"],
    ) -> Float[Array, "b _h _w c2"]:
        """Map [B, H, W, C] to the level's width, at twice the size but for the finest level."""
        for i, skip in enumerate(reversed(skips)):
            h = _resnet(self.config, self.level, i)(jnp.concatenate([h, skip], axis=-1), cond)
            if self.config.attends[self.level]:
                h = _transformer(self.config, self.level, i)(h, tokens)
        return Upsample(self.config.dtype, name="upsamplers_0")(h) if self.level else h


class TimeEmbedding(nn.Module):
    """Cosines and sines of the timestep through two layers, in float32."""

    config: SDUNetConfig

    @nn.compact
    def __call__(self, t: Num[Array, " b"]) -> Float[Array, "b e"]:
        """Embed timesteps [B], 0 to 999."""
        width = self.config.block_out_channels[0]
        cond = nn.Dense(4 * width, name="linear_1")(timestep_embedding(t, width))
        return nn.Dense(4 * width, name="linear_2")(nn.silu(cond))


class CameraEmbedding(nn.Module):
    """A camera through two layers, in float32, to be added to the time embedding.

    MVDream was trained with one; variational score distillation trains one.
    """

    config: SDUNetConfig

    @nn.compact
    def __call__(self, camera: Float[Array, "b k"]) -> Float[Array, "b e"]:
        """Embed cameras [B, K]."""
        width = 4 * self.config.block_out_channels[0]
        cond = nn.Dense(width, name="linear_1")(camera)
        return nn.Dense(width, name="linear_2")(nn.silu(cond))


class SDUNet(nn.Module):
    """Noisy latents, timesteps and text to a prediction of the latents' shape."""

    config: SDUNetConfig

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b h w c"],
        t: Num[Array, " b"],
        tokens: Float[Array, "b l d"],
        camera: Float[Array, "b k"] | None = None,
    ) -> Float[Array, "b h w c2"]:
        """Predict eps or v, float32, from latents scaled to about unit variance, t and tokens.

        There is an embedding of cameras where they are given. Raises UserError for H or W that are
        no multiple of `config.multiple`, and for B that is none of `config.views`.
        """
        config = self.config
        if len(x) % config.views:
            raise UserError(
                f"the network sees {config.views} views together; {len(x)} are no multiple of that"
            )
        if x.shape[1] % config.multiple or x.shape[2] % config.multiple:
            raise UserError(
                f"latents of {x.shape[1]} x {x.shape[2]} places; both must divide by "
                f"{config.multiple}"
            )
        cond = TimeEmbedding(config, name="time_embedding")(t)
        if camera is not None:
            cond = cond + CameraEmbedding(config, name="camera_embedding")(camera)
        tokens = tokens.astype(config.dtype)
        conv_in = nn.Conv(config.block_out_channels[0], (3, 3), dtype=config.dtype, name="conv_in")
        skips = [conv_in(x)]
        for level in range(len(config.block_out_channels)):
            skips += DownBlock(config, level, name=f"down_blocks_{level}")(skips[-1], cond, tokens)
        h = MidBlock(config, name="mid_block")(skips[-1], cond, tokens)
        layers = config.layers_per_block + 1
        for i, level in enumerate(reversed(range(len(config.block_out_channels)))):
            kept, skips = skips[-layers:], skips[:-layers]
            h = UpBlock(config, level, name=f"up_blocks_{i}")(h, kept, cond, tokens)
        h = nn.silu(group_norm(config.norm_num_groups, config.norm_eps, "conv_norm_out")(h))
        return nn.Conv(config.out_channels, (3, 3), name="conv_out")(h)
