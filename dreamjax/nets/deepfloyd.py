"""DeepFloyd IF's first UNet: noisy pixels, timestep and text to eps and variance.

It is Imagen's (arXiv 2205.11487) in the layout that diffusers reads: the ADM UNet (`nets.adm`,
arXiv 2105.05233) whose attention sees the text beside the places, as GLIDE's does (arXiv
2112.10741), with the text pooled into the time embedding. M, L and XL differ in the widths of
`IFUNetConfig` alone. Symbols: B pictures of H x W pixels, C channels at one level, E = 4 x
`block_out_channels[0]` of the conditioning vector, text of L tokens of D channels. Modules and
parameters have the published PyTorch names.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Num

from dreamjax.errors import UserError
from dreamjax.nets import text
from dreamjax.nets.adm import double, halve, timestep_embedding
from dreamjax.nets.stable_diffusion import settings
from dreamjax.nets.stable_diffusion.blocks import attend, group_norm
from dreamjax.nets.stable_diffusion.clip import gelu

UP = {
    "ResnetDownsampleBlock2D": "ResnetUpsampleBlock2D",
    "SimpleCrossAttnDownBlock2D": "SimpleCrossAttnUpBlock2D",
}
ATTENDS = "SimpleCrossAttnDownBlock2D"
EPS = 1e-5  # of the norms whose epsilon is in no config
TEXT_GROUPS = 32  # of the norm of a text before attention
WHOLES = (
    "sample_size",
    "in_channels",
    "out_channels",
    "attention_head_dim",
    "layers_per_block",
    "cross_attention_dim",
    "encoder_hid_dim",
    "addition_embed_type_num_heads",
    "norm_num_groups",
)
READ = (*WHOLES, "block_out_channels", "down_block_types", "norm_eps", "encoder_hid_dim_type")
# Published settings with which the network is this one.
FIXED = {
    "_class_name": "UNet2DConditionModel",
    "act_fn": "gelu",
    "addition_embed_type": "text",
    "attention_type": "default",
    "conv_in_kernel": 3,
    "conv_out_kernel": 3,
    "cross_attention_norm": "group_norm",
    "downsample_padding": 1,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "mid_block_scale_factor": 1,
    "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
    "resnet_out_scale_factor": 1.0,
    "resnet_time_scale_shift": "scale_shift",
    "time_embedding_type": "positional",
    "transformer_layers_per_block": 1,
}
# What diffusers takes a file without the key to mean, where that is another network.
ABSENT = {
    "act_fn": "silu",
    "addition_embed_type": None,
    "attention_head_dim": 8,
    "cross_attention_norm": None,
    "encoder_hid_dim": None,
    "in_channels": 4,
    "layers_per_block": 2,
    "cross_attention_dim": 1280,
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "out_channels": 4,
    "resnet_time_scale_shift": "default",
    "sample_size": None,
}


@dataclasses.dataclass(frozen=True)
class IFUNetConfig:
    """Layout of the UNet, under the published names, by level with the finest first.

    By default IF-I-XL's. `sample_size` is the pictures' side, `encoder_hid_dim` the text's width
    and `cross_attention_dim` what it becomes for attention; `attends`: whether a level has
    attention, in heads of `attention_head_dim` channels. Raises UserError for sizes that do not
    fit.
    """

    sample_size: int = 64
    in_channels: int = 3
    out_channels: int = 6
    block_out_channels: tuple[int, ...] = (704, 1408, 2112, 2816)
    attends: tuple[bool, ...] = (False, True, True, True)
    attention_head_dim: int = 64
    layers_per_block: int = 3
    cross_attention_dim: int = 2816
    encoder_hid_dim: int = 4096
    addition_embed_type_num_heads: int = 64
    norm_num_groups: int = 32
    norm_eps: float = 1e-5
    dtype: str = "float32"

    def __post_init__(self):
        levels = len(self.block_out_channels)
        if len(self.attends) != levels:
            raise UserError(f"attends {self.attends} must be of {levels} levels")
        groups, head = self.norm_num_groups, self.attention_head_dim
        for width in self.block_out_channels:
            if width % groups or width % head or width % 2:
                raise UserError(
                    f"a level of {width} channels; they must divide by 2, by {groups} groups and "
                    f"into heads of {head}"
                )
        if self.cross_attention_dim % TEXT_GROUPS:
            wide = self.cross_attention_dim
            raise UserError(f"cross_attention_dim is {wide}: it must divide by {TEXT_GROUPS}")
        if self.encoder_hid_dim % self.addition_embed_type_num_heads:
            raise UserError(
                f"encoder_hid_dim is {self.encoder_hid_dim}: it must divide by the "
                f"{self.addition_embed_type_num_heads} heads of addition_embed_type_num_heads"
            )
        if self.sample_size % self.multiple:
            raise UserError(f"sample_size is {self.sample_size}: must divide by {self.multiple}")

    @classmethod
    def from_json(cls, given: Mapping[str, Any]) -> "IFUNetConfig":
        """The layout that a published `config.json` describes.

        Raises UserError naming the key and the value that another network than this would need.
        """
        given = ABSENT | dict(given)
        types: Any = given.get("down_block_types")
        strings = isinstance(types, list | tuple) and all(isinstance(n, str) for n in types)
        if not strings or not all(name in UP for name in types):
            raise settings.refused("down_block_types", types, f"a list of {' and '.join(UP)}")
        mirrored = [UP[name] for name in reversed(types)]
        settings.refuse_others(given, READ, FIXED | {"up_block_types": mirrored})
        kind = given.get("encoder_hid_dim_type")  # none is a linear map too
        if kind not in (None, "text_proj"):
            raise settings.refused("encoder_hid_dim_type", kind, "'text_proj'")
        return cls(
            **settings.wholes_of(cls, given, WHOLES),
            block_out_channels=settings.wholes(given, "block_out_channels", ()),
            attends=tuple(name == ATTENDS for name in types),
            norm_eps=settings.number(given, "norm_eps", cls.norm_eps),
        )

    @property
    def multiple(self) -> int:
        """The number that H and W must be a multiple of."""
        return 2 ** (len(self.block_out_channels) - 1)


class ResnetBlock(nn.Module):
    """A residual block that time and text scale and shift; `resample` is `halve` or `double`."""

    config: IFUNetConfig
    width: int
    resample: Callable[[Array], Array] | None = None

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], cond: Float[Array, "b e"]
    ) -> Float[Array, "b h2 w2 c2"]:
        """Map [B, H, W, C] to `width` channels, at half or twice the size with `resample`."""
        config, dtype = self.config, self.config.dtype

        def norm(name: str) -> nn.GroupNorm:
            return group_norm(config.norm_num_groups, config.norm_eps, name)

        def conv(size: int, name: str) -> nn.Conv:
            return nn.Conv(self.width, (size, size), dtype=dtype, name=name)

        h = gelu(norm("norm1")(x)).astype(dtype)
        if self.resample is not None:
            h, x = self.resample(h), self.resample(x)
        h = conv(3, "conv1")(h)
        film = nn.Dense(2 * self.width, dtype=dtype, name="time_emb_proj")(gelu(cond))
        scale, shift = jnp.split(film.astype(jnp.float32)[:, None, None], 2, axis=-1)
        h = gelu(norm("norm2")(h) * (1.0 + scale) + shift).astype(dtype)
        h = conv(3, "conv2")(h)
        return h + (x if x.shape[-1] == self.width else conv(1, "conv_shortcut")(x))


class Attention(nn.Module):
    """Attention of the places to the text and to themselves at once, added to its input."""

    config: IFUNetConfig

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], tokens: Float[Array, "b l d"]
    ) -> Float[Array, "b h w c"]:
        """Map [B, H, W, C] to the same shape."""
        config, (b, _, _, c) = self.config, x.shape

        def project(name: str, h: Float[Array, "b n c2"]) -> Float[Array, "b n heads k"]:
            out = nn.Dense(c, dtype=config.dtype, name=name)(h)
            return out.reshape(b, -1, c // config.attention_head_dim, config.attention_head_dim)

        places = group_norm(config.norm_num_groups, EPS, "group_norm")(x).reshape(b, -1, c)
        said = group_norm(TEXT_GROUPS, EPS, "norm_cross")(tokens)
        k = jnp.concatenate([project("add_k_proj", said), project("to_k", places)], axis=1)
        v = jnp.concatenate([project("add_v_proj", said), project("to_v", places)], axis=1)
        out = attend(project("to_q", places), k, v).reshape(x.shape)
        return x + nn.Dense(c, dtype=config.dtype, name="to_out_0")(out)


class DownBlock(nn.Module):
    """A level on the way down: residual blocks, each with attention where the level has it."""

    config: IFUNetConfig
    level: int

    @nn.compact
    def __call__(
        self, h: Float[Array, "b h w c"], cond: Float[Array, "b e"], tokens: Float[Array, "b l d"]
    ) -> list[Float[Array, "b _h _w c2"]]:
        """The features after every layer, for the way up; the last ones at half the size."""
        config, skips = self.config, []
        width = config.block_out_channels[self.level]
        for i in range(config.layers_per_block):
            h = ResnetBlock(config, width, name=f"resnets_{i}")(h, cond)
            if config.attends[self.level]:
                h = Attention(config, name=f"attentions_{i}")(h, tokens)
            skips.append(h)
        if self.level < len(config.block_out_channels) - 1:
            skips.append(ResnetBlock(config, width, halve, name="downsamplers_0")(h, cond))
        return skips


class MidBlock(nn.Module):
    """The lowest level's residual block, attention, residual block."""

    config: IFUNetConfig

    @nn.compact
    def __call__(
        self, h: Float[Array, "b h w c"], cond: Float[Array, "b e"], tokens: Float[Array, "b l d"]
    ) -> Float[Array, "b h w c"]:
        """Map [B, H, W, C] to the same shape."""
        h = ResnetBlock(self.config, h.shape[-1], name="resnets_0")(h, cond)
        h = Attention(self.config, name="attentions_0")(h, tokens)
        return ResnetBlock(self.config, h.shape[-1], name="resnets_1")(h, cond)


class UpBlock(nn.Module):
    """A level on the way up: as on the way down, with what was kept there beside each input."""

    config: IFUNetConfig
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
        config, width = self.config, self.config.block_out_channels[self.level]
        for i, skip in enumerate(reversed(skips)):
            h = jnp.concatenate([h, skip], axis=-1)
            h = ResnetBlock(config, width, name=f"resnets_{i}")(h, cond)
            if config.attends[self.level]:
                h = Attention(config, name=f"attentions_{i}")(h, tokens)
        return ResnetBlock(config, width, double, name="upsamplers_0")(h, cond) if self.level else h


class TimeEmbedding(nn.Module):
    """Cosines and sines of the timestep through two layers, in float32."""

    config: IFUNetConfig

    @nn.compact
    def __call__(self, t: Num[Array, " b"]) -> Float[Array, "b e"]:
        """Embed timesteps [B], 0 to 999."""
        width = self.config.block_out_channels[0]
        cond = nn.Dense(4 * width, name="linear_1")(timestep_embedding(t, width))
        return nn.Dense(4 * width, name="linear_2")(gelu(cond))


class AttentionPooling(nn.Module):
    """Attention of a text's mean to itself and the tokens (CLIP's pooling), in float32."""

    heads: int

    @nn.compact
    def __call__(self, tokens: Float[Array, "b l d"]) -> Float[Array, "b d"]:
        """Pool [B, L, D] to [B, D]."""
        b, _, width = tokens.shape
        init = nn.initializers.normal(width**-0.5)
        mean = tokens.mean(1, keepdims=True)
        mean = mean + self.param("positional_embedding", init, (1, width))
        tokens = jnp.concatenate([mean, tokens], axis=1)

        def project(name: str, h: Float[Array, "b n d"]) -> Float[Array, "b n heads k"]:
            return nn.Dense(width, name=name)(h).reshape(b, -1, self.heads, width // self.heads)

        q, k, v = project("q_proj", mean), project("k_proj", tokens), project("v_proj", tokens)
        return text.attend(q, k, v).reshape(b, width)


class TextTimeEmbedding(nn.Module):
    """The pooled text, for the time embedding to be added to, in float32."""

    config: IFUNetConfig

    @nn.compact
    def __call__(self, tokens: Float[Array, "b l d"]) -> Float[Array, "b e"]:
        """Embed texts [B, L, D]."""

        def norm(name: str) -> nn.LayerNorm:
            return nn.LayerNorm(EPS, use_fast_variance=False, name=name)

        heads = self.config.addition_embed_type_num_heads
        pooled = AttentionPooling(heads, name="pool")(norm("norm1")(tokens))
        pooled = nn.Dense(4 * self.config.block_out_channels[0], name="proj")(pooled)
        return norm("norm2")(pooled)


class IFUNet(nn.Module):
    """Noisy pictures, timesteps and text to a prediction of twice the pictures' channels."""

    config: IFUNetConfig

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b h w c"],
        t: Num[Array, " b"],
        tokens: Float[Array, "b l d"],
    ) -> Float[Array, "b h w c2"]:
        """Predict eps and what the variance is made of, float32, from x in about [-1, 1].

        Raises UserError for H or W that are no multiple of `config.multiple`.
        """
        config = self.config
        if x.shape[1] % config.multiple or x.shape[2] % config.multiple:
            raise UserError(
                f"pictures of {x.shape[1]} x {x.shape[2]} pixels; both must divide by "
                f"{config.multiple}"
            )
        cond = TimeEmbedding(config, name="time_embedding")(t)
        cond = cond + TextTimeEmbedding(config, name="add_embedding")(tokens)
        tokens = nn.Dense(config.cross_attention_dim, dtype=config.dtype, name="encoder_hid_proj")(
            tokens
        )
        conv_in = nn.Conv(config.block_out_channels[0], (3, 3), dtype=config.dtype, name="conv_in")
        skips = [conv_in(x)]
        for level in range(len(config.block_out_channels)):
            skips += DownBlock(config, level, name=f"down_blocks_{level}")(skips[-1], cond, tokens)
        h = MidBlock(config, name="mid_block")(skips[-1], cond, tokens)
        layers = config.layers_per_block + 1
        for i, level in enumerate(reversed(range(len(config.block_out_channels)))):
            kept, skips = skips[-layers:], skips[:-layers]
            h = UpBlock(config, level, name=f"up_blocks_{i}")(h, kept, cond, tokens)
        h = gelu(group_norm(config.norm_num_groups, config.norm_eps, "conv_norm_out")(h))
        return nn.Conv(config.out_channels, (3, 3), name="conv_out")(h)
