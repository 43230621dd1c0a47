"""A small picture classifier with several heads, all reading the same pooled features."""

from typing import Annotated

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from dreamjax.errors import UserError
from dreamjax.nets.unet import GROUP, GroupNorm, space_to_depth
from dreamjax.settings import Range, settings


@settings
class ProbeConfig:
    """Layout of the probe: residual blocks and channels by level, the first at half resolution.

    `heads` are the numbers of classes. The defaults take about 28 MFLOP for a 32x32 picture.
    Raises UserError for sizes that do not fit.
    """

    heads: tuple[Annotated[int, Range(1, 10_000)], ...]
    channels: tuple[Annotated[int, Range(1, 8192)], ...] = (32, 64, 128)
    blocks: tuple[Annotated[int, Range(0, 16)], ...] = (1, 1, 1)
    hidden: Annotated[int, Range(1, 8192)] = 160

    def __post_init__(self):
        levels = len(self.channels)
        if not 1 <= levels <= 5 or len(self.blocks) != levels:
            raise UserError(f"channels of {levels} levels, blocks of {len(self.blocks)}")
        for width in self.channels:
            if width % GROUP:
                raise UserError(f"a level of {width} channels; they must divide by {GROUP}")


class _Block(nn.Module):
    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        h = nn.Conv(x.shape[-1], (3, 3), name="conv_in")(nn.silu(GroupNorm(name="norm_in")(x)))
        h = nn.silu(GroupNorm(name="norm_out")(h))
        zero = nn.initializers.zeros
        return x + nn.Conv(x.shape[-1], (3, 3), kernel_init=zero, name="conv_out")(h)


class Probe(nn.Module):
    """Pictures to the logits of each head."""

    config: ProbeConfig

    @nn.compact
    def __call__(self, rgb: Float[Array, "b h w 3"]) -> tuple[Float[Array, "b _"], ...]:
        """Logits [B, classes] a head for rgb in [0, 1]; H and W multiples of 2^levels."""
        config = self.config
        h = space_to_depth(2.0 * rgb - 1.0, 2)
        h = nn.Conv(config.channels[0], (3, 3), name="conv_in")(h)
        for level, (channels, blocks) in enumerate(
            zip(config.channels, config.blocks, strict=True)
        ):
            if level:
                h = nn.Dense(channels, name=f"down_{level}")(space_to_depth(h, 2))
            for i in range(blocks):
                h = _Block(name=f"block_{level}_{i}")(h)
        h = nn.silu(GroupNorm(name="norm_out")(h))
        # Where a part sits in the picture tells views apart, so the places are kept up to here.
        h = nn.Dense(config.hidden // 4, name="places")(h).reshape(len(h), -1)
        h = nn.silu(nn.Dense(config.hidden, name="hidden")(h))
        return tuple(
            nn.Dense(classes, name=f"head_{i}")(jnp.asarray(h, jnp.float32))
            for i, classes in enumerate(config.heads)
        )
