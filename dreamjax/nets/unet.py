"""A text-conditional pixel UNet in the manner of ADM (arXiv 2105.05233) and Imagen (2205.11487).

Symbols: B images of H = W pixels, C channels at one level, E channels of the conditioning vector.
Level 0 works on `patch` x `patch` pixels folded into channels; each further level halves the
resolution. Nothing depends on the size of the image, so one set of weights serves 32 and 64.
"""

from typing import Annotated

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Num

from dreamjax.errors import UserError
from dreamjax.nets.text import Text, attend
from dreamjax.settings import Dtype, Range, settings

Width = Annotated[int, Range(1, 8192)]
Blocks = Annotated[int, Range(0, 64)]
Level = Annotated[int, Range(0, 7)]
GROUP = 8  # channels that are normalised together
MOST_BLOCKS = 64  # in all; a description of more is no network of ours


@settings
class UNetConfig:
    """Layout of the UNet.

    `down_blocks` and `up_blocks` count the residual blocks of each level above the lowest one,
    highest resolution first; `middle_blocks` those of the lowest level. Raises UserError for sizes
    that do not fit together.
    """

    patch: Annotated[int, Range(1, 16)] = 2
    channels: Width = 64
    channel_mults: tuple[Annotated[int, Range(1, 32)], ...] = (1, 2, 4)
    down_blocks: tuple[Blocks, ...] = (1, 1)
    middle_blocks: Blocks = 3
    up_blocks: tuple[Blocks, ...] = (1, 1)
    attention_levels: tuple[Level, ...] = (1, 2)
    head_dim: Width = 32
    text_dim: Width = 128
    out_channels: Annotated[int, Range(1, 64)] = 3
    dtype: Dtype = "float32"

    def __post_init__(self):
        levels = len(self.channel_mults)
        if not 1 <= levels <= 8:
            raise UserError(f"channel_mults is of {levels} levels: expected 1 to 8")
        if self.channels % 2:
            raise UserError(f"channels is {self.channels}: expected an even number")
        for name in ("down_blocks", "up_blocks"):
            if len(getattr(self, name)) != levels - 1:
                raise UserError(f"{name} {getattr(self, name)} must be of {levels - 1} levels")
        blocks = sum((*self.down_blocks, self.middle_blocks, *self.up_blocks))
        if blocks > MOST_BLOCKS:
            raise UserError(f"{blocks} residual blocks: expected at most {MOST_BLOCKS}")
        for level, mult in enumerate(self.channel_mults):
            width = mult * self.channels
            if width % GROUP:
                raise UserError(f"a level of {width} channels; they must divide by {GROUP}")
            if level in self.attention_levels and width % self.head_dim:
                heads = f"heads of {self.head_dim}"
                raise UserError(f"a level of {width} channels cannot have {heads} channels")

    @property
    def multiple(self) -> int:
        """The number of pixels that H and W must be a multiple of."""
        return self.patch * 2 ** (len(self.channel_mults) - 1)


def space_to_depth(x: Float[Array, "b h w c"], size: int) -> Float[Array, "b h2 w2 c2"]:
    """Fold `size` x `size` pixels into channels, the place in the patch before the channel."""
    b, h, w, c = x.shape
    x = x.reshape(b, h // size, size, w // size, size, c).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(b, h // size, w // size, size * size * c)


def depth_to_space(x: Float[Array, "b h w c"], size: int) -> Float[Array, "b h2 w2 c2"]:
    """Undo `space_to_depth`."""
    b, h, w, c = x.shape
    x = x.reshape(b, h, w, size, size, c // size**2).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(b, h * size, w * size, c // size**2)


def timestep_embedding(t: Num[Array, " b"], dim: int) -> Float[Array, "b dim"]:
    """Sines and cosines of t at `dim` / 2 frequencies from 1 to 1e-4 (DDPM appendix B)."""
    freqs = jnp.exp(-jnp.log(10000.0) * jnp.arange(dim // 2, dtype=jnp.float32) / (dim // 2))
    angles = t.astype(jnp.float32)[:, None] * freqs
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


def after_null(
    null: Float[Array, " d"], text: Text
) -> tuple[Float[Array, "b l2 d"], Bool[Array, "b l2"]]:
    """The text's tokens, zero where masked, and its mask, behind the null token."""
    count = len(text.mask)
    null = jnp.broadcast_to(null, (count, 1, len(null)))
    mask = jnp.concatenate([jnp.ones((count, 1), bool), text.mask], axis=1)
    tokens = jnp.concatenate([null, text.tokens.astype(jnp.float32)], axis=1)
    return tokens * mask[..., None], mask


class GroupNorm(nn.Module):
    """Group normalisation in float32, with an optional scale and shift for each example (FiLM)."""

    group_size: int = GROUP

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], film: Float[Array, "b 2*c"] | None = None
    ) -> Float[Array, "b h w c"]:
        """Normalise each group of `group_size` channels, then `x * (1 + scale) + shift`."""
        b, _, _, c = x.shape
        a = self.param("scale", nn.initializers.ones, (c,))
        shift = self.param("bias", nn.initializers.zeros, (c,))
        if film is not None:
            film_scale, film_shift = jnp.split(film.astype(jnp.float32), 2, axis=-1)
            a = a * (1 + film_scale)
            shift = shift * (1 + film_scale) + film_shift
        # The moments of each channel first, then the affine map in one pass over the image.
        wide = x.astype(jnp.float32)
        moments = jnp.stack([wide.mean((1, 2)), jnp.square(wide).mean((1, 2))])
        moments = moments.reshape(2, b, c // self.group_size, self.group_size).mean(-1)
        mean, square = jnp.repeat(moments, self.group_size, axis=-1)
        a = a / jnp.sqrt(jnp.maximum(square - mean**2, 0.0) + 1e-5)
        shift = shift - mean * a
        return (wide * a[:, None, None] + shift[:, None, None]).astype(x.dtype)


class ResBlock(nn.Module):
    """The residual block of ADM: norm, conv, norm with scale and shift from `cond`, conv."""

    dtype: jnp.dtype

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], cond: Float[Array, "b e"]
    ) -> Float[Array, "b h w c"]:
        """Map [B, H, W, C] to the same shape; the identity at initialisation."""
        c = x.shape[-1]
        film = nn.Dense(2 * c, dtype=self.dtype, name="film")(cond)
        h = nn.silu(GroupNorm(name="norm_in")(x))
        h = nn.Conv(c, (3, 3), dtype=self.dtype, name="conv_in")(h)
        h = nn.silu(GroupNorm(name="norm_out")(h, film))
        zero = nn.initializers.zeros
        return x + nn.Conv(c, (3, 3), kernel_init=zero, dtype=self.dtype, name="conv_out")(h)


class AttentionBlock(nn.Module):
    """Self-attention among the places of the image, then cross-attention to the text."""

    head_dim: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b h w c"],
        tokens: Float[Array, "b l d"],
        mask: Bool[Array, "b l"],
    ) -> Float[Array, "b h w c"]:
        """Map [B, H, W, C] to the same shape; the identity at initialisation."""
        b, height, width, c = x.shape
        lecun, zero = nn.initializers.lecun_normal(), nn.initializers.zeros

        def dense(features, name, init=lecun, bias=False):
            return nn.Dense(features, kernel_init=init, use_bias=bias, dtype=self.dtype, name=name)

        def heads(h):
            return h.reshape(b, -1, c // self.head_dim, self.head_dim)

        q, k, v = jnp.split(dense(3 * c, "self_qkv")(GroupNorm(name="norm_self")(x)), 3, axis=-1)
        h = attend(heads(q), heads(k), heads(v)).reshape(b, height, width, c)
        x = x + dense(c, "self_out", zero, bias=True)(h)
        q = dense(c, "cross_q")(GroupNorm(name="norm_cross")(x))
        k, v = jnp.split(dense(2 * c, "cross_kv")(tokens), 2, axis=-1)
        h = attend(heads(q), heads(k), heads(v), mask).reshape(b, height, width, c)
        return x + dense(c, "cross_out", zero, bias=True)(h)


class UNet(nn.Module):
    """Noisy images, timesteps and embedded texts to a prediction of the images' shape."""

    config: UNetConfig

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], t: Num[Array, " b"], text: Text
    ) -> Float[Array, "b h w out"]:
        """Predict from x [B, H, W, C] in [-1, 1] plus noise, t [B] in timesteps, text of B rows.

        C is 3, or more where something is shown beside the picture. H and W are multiples of
        `config.multiple`. Float32 in and out, zero at initialisation; the network's own activations
        have `config.dtype`.
        """
        config = self.config
        if x.shape[1] % config.multiple or x.shape[2] % config.multiple:
            raise ValueError(f"images of {x.shape[1:3]}; sides must divide by {config.multiple}")
        dtype = jnp.dtype(config.dtype)
        lowest = len(config.channel_mults) - 1
        channels = [config.channels * mult for mult in config.channel_mults]

        def dense(features, name):
            return nn.Dense(features, dtype=dtype, name=name)

        # The null token gives cross-attention somewhere to look, and a mean, when there is no word.
        null = self.param("null_token", nn.initializers.normal(1.0), (config.text_dim,))
        tokens, mask = after_null(null, text)
        pooled = tokens.sum(1) / mask.sum(1, keepdims=True)
        tokens = tokens.astype(dtype)

        width = 4 * config.channels
        cond = nn.silu(dense(width, "time_in")(timestep_embedding(t, config.channels)))
        cond = dense(width, "time_out")(cond) + dense(width, "text_pooled")(pooled)
        cond = nn.silu(cond)

        def block(x, level, name):
            x = ResBlock(dtype, name=name)(x, cond)
            if level in config.attention_levels:
                attention = AttentionBlock(config.head_dim, dtype, name=f"{name}_attention")
                x = attention(x, tokens, mask)
            return x

        h = space_to_depth(x.astype(dtype), config.patch)
        h = nn.Conv(channels[0], (3, 3), dtype=dtype, name="conv_in")(h)
        skips = []
        for level in range(lowest):
            for i in range(config.down_blocks[level]):
                h = block(h, level, f"down_{level}_{i}")
            skips.append(h)
            h = dense(channels[level + 1], f"down_{level}")(space_to_depth(h, 2))
        for i in range(config.middle_blocks):
            h = block(h, lowest, f"middle_{i}")
        for level in reversed(range(lowest)):
            h = depth_to_space(dense(4 * channels[level], f"up_{level}")(h), 2)
            h = dense(channels[level], f"merge_{level}")(jnp.concatenate([h, skips[level]], -1))
            for i in range(config.up_blocks[level]):
                h = block(h, level, f"up_{level}_{i}")

        h = nn.silu(GroupNorm(name="norm_out")(h))
        h = nn.Conv(
            config.out_channels * config.patch**2,
            (3, 3),
            kernel_init=nn.initializers.zeros,
            dtype=dtype,
            name="conv_out",
        )(h)
        return depth_to_space(h.astype(jnp.float32), config.patch)
