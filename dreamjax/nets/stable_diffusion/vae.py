"""Stable Diffusion's autoencoder: pictures to latents an eighth their size and back.

AutoencoderKL of latent diffusion (arXiv 2112.10752 appendix G). Symbols: B pictures x [B, H, W, 3]
in [-1, 1], latents z [B, H / 8, W / 8, 4] as the network has them: times `scaling_factor` they
become those that are diffused. Modules and parameters have the published PyTorch names.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from dreamjax.errors import UserError
from dreamjax.nets.stable_diffusion import settings
from dreamjax.nets.stable_diffusion.blocks import (
    Downsample,
    ResnetBlock,
    Upsample,
    attend,
    group_norm,
)

EPS = 1e-6
# The published clip of the encoder's log variance.
LOG_VARIANCE = (-30.0, 20.0)
WHOLES = ("sample_size", "in_channels", "out_channels", "latent_channels", "norm_num_groups")
READ = (*WHOLES, "block_out_channels", "layers_per_block", "scaling_factor", "force_upcast")
# Published settings with which the network is this one; force_upcast, which is read and left, is
# about float16.
FIXED = {
    "_class_name": "AutoencoderKL",
    "act_fn": "silu",
    "mid_block_add_attention": True,
    "use_post_quant_conv": True,
    "use_quant_conv": True,
}


@dataclasses.dataclass(frozen=True)
class VAEConfig:
    """Layout of the autoencoder, under the published names, by level with the finest first.

    `scaling_factor` brings latents to about unit variance; `sample_size` is the side of the
    pictures that it was trained on. `remat` recomputes blocks on the way back instead of keeping
    their insides. Raises UserError for channels that do not fit the norms' groups.
    """

    sample_size: int = 512
    in_channels: int = 3
    out_channels: int = 3
    latent_channels: int = 4
    block_out_channels: tuple[int, ...] = (128, 256, 512, 512)
    layers_per_block: int = 2
    norm_num_groups: int = 32
    scaling_factor: float = 0.18215
    dtype: str = "float32"
    remat: bool = False

    def __post_init__(self):
        for width in self.block_out_channels:
            if width % self.norm_num_groups:
                raise UserError(
                    f"a level of {width} channels; they must divide by "
                    f"{self.norm_num_groups} groups"
                )

    @classmethod
    def from_json(cls, given: Mapping[str, Any]) -> "VAEConfig":
        """The layout that a published `config.json` describes.

        Raises UserError naming the key and the value that another network than this would need.
        """
        widths = settings.wholes(given, "block_out_channels", (64,))
        levels = {
            "down_block_types": ["DownEncoderBlock2D"] * len(widths),
            "up_block_types": ["UpDecoderBlock2D"] * len(widths),
        }
        settings.refuse_others(given, READ, FIXED | levels)
        return cls(
            **settings.wholes_of(cls, given, WHOLES),
            block_out_channels=widths,
            layers_per_block=settings.whole(given, "layers_per_block", 1),
            scaling_factor=settings.number(given, "scaling_factor", cls.scaling_factor),
        )

    @property
    def multiple(self) -> int:
        """The number that H and W must be a multiple of: a latent's side in pixels."""
        return 2 ** (len(self.block_out_channels) - 1)


class Attention(nn.Module):
    """Single-head self-attention among the places, added to its input."""

    groups: int
    dtype: str

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        """Map [B, H, W, C] to the same shape."""
        b, _, _, c = x.shape
        h = group_norm(self.groups, EPS, "group_norm")(x).reshape(b, -1, 1, c)
        q, k, v = (nn.Dense(c, dtype=self.dtype, name=f"to_{name}")(h) for name in "qkv")
        return x + nn.Dense(c, dtype=self.dtype, name="to_out_0")(attend(q, k, v)).reshape(x.shape)


def _resnet(config: VAEConfig, width: int, i: int) -> nn.Module:
    block = nn.remat(ResnetBlock) if config.remat else ResnetBlock
    return block(width, config.norm_num_groups, EPS, config.dtype, name=f"resnets_{i}")


class DownBlock(nn.Module):
    """A level of the encoder: residual blocks, then half the size but for the lowest level."""

    config: VAEConfig
    level: int

    @nn.compact
    def __call__(self, h: Float[Array, "b h w c"]) -> Float[Array, "b _h _w c2"]:
        """Map [B, H, W, C] to the level's width."""
        config = self.config
        for i in range(config.layers_per_block):
            h = _resnet(config, config.block_out_channels[self.level], i)(h)
        if self.level == len(config.block_out_channels) - 1:
            return h
        # The published encoder pads behind alone.
        return Downsample((0, 1), config.dtype, name="downsamplers_0")(h)


class MidBlock(nn.Module):
    """The lowest level's residual block, attention, residual block."""

    config: VAEConfig

    @nn.compact
    def __call__(self, h: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        """Map [B, H, W, C] to the same shape."""
        config, width = self.config, h.shape[-1]
        attention = nn.remat(Attention) if config.remat else Attention
        h = _resnet(config, width, 0)(h)
        h = attention(config.norm_num_groups, config.dtype, name="attentions_0")(h)
        return _resnet(config, width, 1)(h)


class UpBlock(nn.Module):
    """A level of the decoder: residual blocks, then twice the size but for the finest level."""

    config: VAEConfig
    level: int

    @nn.compact
    def __call__(self, h: Float[Array, "b h w c"]) -> Float[Array, "b _h _w c2"]:
        """Map [B, H, W, C] to the level's width."""
        config = self.config
        for i in range(config.layers_per_block + 1):
            h = _resnet(config, config.block_out_channels[self.level], i)(h)
        return Upsample(config.dtype, name="upsamplers_0")(h) if self.level else h


class Encoder(nn.Module):
    """Pictures to the features that latents are read from, float32."""

    config: VAEConfig

    @nn.compact
    def __call__(self, x: Float[Array, "b h w 3"]) -> Float[Array, "b h8 w8 z2"]:
        """Map [B, H, W, 3] to two channels for each of the latents'."""
        config = self.config
        width = config.block_out_channels[0]
        h = nn.Conv(width, (3, 3), dtype=config.dtype, name="conv_in")(x)
        for level in range(len(config.block_out_channels)):
            h = DownBlock(config, level, name=f"down_blocks_{level}")(h)
        h = MidBlock(config, name="mid_block")(h)
        h = nn.silu(group_norm(config.norm_num_groups, EPS, "conv_norm_out")(h))
        return nn.Conv(2 * config.latent_channels, (3, 3), name="conv_out")(h)


class Decoder(nn.Module):
    """Latents to pictures, float32."""

    config: VAEConfig

    @nn.compact
    def __call__(self, z: Float[Array, "b h8 w8 z"]) -> Float[Array, "b h w 3"]:
        """Map [B, H / 8, W / 8, 4] to [B, H, W, 3]."""
        config = self.config
        width = config.block_out_channels[-1]
        h = nn.Conv(width, (3, 3), dtype=config.dtype, name="conv_in")(z)
        h = MidBlock(config, name="mid_block")(h)
        for i, level in enumerate(reversed(range(len(config.block_out_channels)))):
            h = UpBlock(config, level, name=f"up_blocks_{i}")(h)
        h = nn.silu(group_norm(config.norm_num_groups, EPS, "conv_norm_out")(h))
        return nn.Conv(config.out_channels, (3, 3), name="conv_out")(h)


class AutoencoderKL(nn.Module):
    """The encoder to a Gaussian of latents, and the decoder; apply with `method="encode"`."""

    config: VAEConfig

    def setup(self):
        """Name the parts."""
        latent = self.config.latent_channels
        self.encoder = Encoder(self.config)
        self.decoder = Decoder(self.config)
        self.quant_conv = nn.Conv(2 * latent, (1, 1))
        self.post_quant_conv = nn.Conv(latent, (1, 1))

    def encode(
        self, x: Float[Array, "b h w 3"]
    ) -> tuple[Float[Array, "b h8 w8 z"], Float[Array, "b h8 w8 z"]]:
        """The latents' mean and log variance, float32, unscaled, of pictures x in [-1, 1].

        Raises UserError for H or W that are no multiple of `config.multiple`.
        """
        multiple = self.config.multiple
        if x.shape[1] % multiple or x.shape[2] % multiple:
            raise UserError(
                f"pictures of {x.shape[1]} x {x.shape[2]} pixels; both must divide by {multiple}"
            )
        mean, log_variance = jnp.split(self.quant_conv(self.encoder(x)), 2, axis=-1)
        return mean, jnp.clip(log_variance, *LOG_VARIANCE)

    def decode(self, z: Float[Array, "b h8 w8 z"]) -> Float[Array, "b h w 3"]:
        """Pictures, float32, about in [-1, 1], of unscaled latents."""
        return self.decoder(self.post_quant_conv(z))

    def __call__(self, x: Float[Array, "b h w 3"]) -> Float[Array, "b h w 3"]:
        """Decode the mean of the encoding: what `init` needs."""
        return self.decode(self.encode(x)[0])
