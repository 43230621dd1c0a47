"""The ADM UNet (arXiv 2105.05233) in its general form, and the encoder half as a classifier.

The layout is the published guided-diffusion code's, so that its weights fit: `ADMConfig` has a
field for each of its flags. Symbols: B images of H = W pixels, C channels at one level, E = 4 x
`channels` of the conditioning vector. The shipped text-conditional UNet (`nets.unet`) is a smaller
relative of its own, built for a CPU.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Annotated

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Num

from dreamjax.errors import UserError
from dreamjax.nets import unet
from dreamjax.nets.text import attend
from dreamjax.settings import Dtype, Range, settings, short

GROUPS = 32
Channels = Annotated[int, Range(1, 4096)]
Side = Annotated[int, Range(1, 1024)]
Blocks = Annotated[int, Range(1, 32)]
Heads = Annotated[int, Range(1, 256)]
HeadDim = Annotated[int, Range(0, 1024)]
Classes = Annotated[int, Range(0, 10**6)]
LEVELS = 8  # that a network may have
MOST_BLOCKS = 128  # in all; the largest published network has 32


@settings
class ADMConfig:
    """Layout of the network; the published name of a flag in brackets where it differs.

    `channels` (num_channels), `channel_mults` by level, `res_blocks` a level on the way down (one
    more on the way up), `attention_sizes` the sides in pixels at which there is attention
    (attention_resolutions), `heads` of attention or, with `head_dim` > 0, channels a head
    (num_head_channels), `split_qkv_first` (use_new_attention_order), `resblock_updown`: residual
    blocks change the resolution, else convolutions; `scale_shift_norm`: time and class scale and
    shift the second norm, else they are added before it. `num_classes` 0 is unconditional.
    `learns_variance` (learn_sigma) doubles the output's channels. Raises UserError for sizes that
    do not fit together.
    """

    image_size: Annotated[int, Range(1, 4096)]
    in_channels: Annotated[int, Range(1, 64)] = 3
    channels: Channels = 128
    channel_mults: tuple[Blocks, ...] = (1, 2, 4, 8)
    res_blocks: Blocks = 2
    attention_sizes: tuple[Side, ...] = (16, 8)
    heads: Heads = 4
    head_dim: HeadDim = 0
    split_qkv_first: bool = False
    resblock_updown: bool = False
    scale_shift_norm: bool = True
    num_classes: Classes = 0
    learns_variance: bool = False
    dropout: Annotated[float, Range(0.0, 1.0, below=True)] = 0.0
    dtype: Dtype = "float32"

    def __post_init__(self):
        if not 1 <= len(self.channel_mults) <= LEVELS:
            raise UserError(
                f"channel_mults is {short(self.channel_mults)}: expected 1 to {LEVELS} factors"
            )
        blocks = len(self.channel_mults) * (2 * self.res_blocks + 1)
        if blocks > MOST_BLOCKS:
            raise UserError(f"{blocks} residual blocks: expected at most {MOST_BLOCKS}")
        if self.channels % 2:
            raise UserError(f"channels is {self.channels}: expected an even number")
        halvings = 2 ** (len(self.channel_mults) - 1)
        if self.image_size % halvings:
            raise UserError(
                f"image_size {self.image_size} must divide by {halvings}, one halving a level"
            )
        for mult in self.channel_mults:
            width = mult * self.channels
            if width % GROUPS:
                raise UserError(f"a level of {width} channels; they must divide by {GROUPS}")
            if width % (self.head_dim or self.heads):
                raise UserError(
                    f"a level of {width} channels cannot have heads of {self.head_dim} channels"
                    if self.head_dim
                    else f"a level of {width} channels cannot have {self.heads} heads"
                )

    @property
    def out_channels(self) -> int:
        """Channels of the output."""
        return self.in_channels * (2 if self.learns_variance else 1)

    def attends(self, level: int) -> bool:
        """Whether there is attention at a level, 0 the finest, whatever the images' own size."""
        return self.image_size // 2**level in self.attention_sizes


def imagenet(image_size: int, num_classes: int = 1000) -> ADMConfig:
    """The published ImageNet networks of 64, 128 and 256 pixels (arXiv 2105.05233 table 12).

    Raises UserError for another size.
    """
    published = functools.partial(
        ADMConfig,
        image_size=image_size,
        attention_sizes=(32, 16, 8),
        resblock_updown=True,
        num_classes=num_classes,
        learns_variance=True,
    )
    if image_size == 64:
        return published(
            channels=192,
            channel_mults=(1, 2, 3, 4),
            res_blocks=3,
            head_dim=64,
            split_qkv_first=True,
            dropout=0.1,
        )
    if image_size == 128:
        return published(channels=256, channel_mults=(1, 1, 2, 3, 4), heads=4)
    if image_size == 256:
        return published(channels=256, channel_mults=(1, 1, 2, 2, 4, 4), head_dim=64)
    raise UserError(f"published networks are of 64, 128 and 256 pixels; got {image_size}")


def timestep_embedding(t: Num[Array, " b"], dim: int) -> Float[Array, "b dim"]:
    """Cosines, then sines, of t at dim / 2 frequencies from 1 down (the published order)."""
    return jnp.roll(unet.timestep_embedding(t, dim), dim // 2, axis=-1)


def halve(x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c"]:
    """The mean of every 2 x 2 pixels."""
    return nn.avg_pool(x, (2, 2), (2, 2))


def double(x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c"]:
    """Every pixel as 2 x 2."""
    return jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)


def _norm(name: str) -> nn.GroupNorm:
    # The fast variance, E[x^2] - E[x]^2, loses digits where a group's mean is far from zero.
    return nn.GroupNorm(GROUPS, epsilon=1e-5, dtype=jnp.float32, use_fast_variance=False, name=name)


class ADMBlock(nn.Module):
    """A residual block; `resample` is `halve`, `double` or None (the BigGAN up/down blocks)."""

    config: ADMConfig
    out_channels: int
    resample: Callable[[Array], Array] | None = None

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], cond: Float[Array, "b e"], train: bool
    ) -> Float[Array, "b h2 w2 c2"]:
        """Map [B, H, W, C] to `out_channels`, at twice or half the size with `resample`."""
        config, dtype, c = self.config, self.config.dtype, self.out_channels
        h = nn.silu(_norm("norm_in")(x)).astype(dtype)
        if self.resample is not None:
            h, x = self.resample(h), self.resample(x)
        h = nn.Conv(c, (3, 3), dtype=dtype, name="conv_in")(h)
        film = nn.Dense(c * (2 if config.scale_shift_norm else 1), name="cond")
        film = film(nn.silu(cond))[:, None, None]
        if config.scale_shift_norm:
            scale, shift = jnp.split(film, 2, axis=-1)
            h = _norm("norm_out")(h) * (1.0 + scale) + shift
        else:
            h = _norm("norm_out")(h + film)
        h = nn.Dropout(config.dropout, deterministic=not train)(nn.silu(h).astype(dtype))
        zero = nn.initializers.zeros
        h = nn.Conv(c, (3, 3), kernel_init=zero, dtype=dtype, name="conv_out")(h)
        if x.shape[-1] != c:
            x = nn.Conv(c, (1, 1), dtype=dtype, name="skip")(x)
        return x + h


def heads_of(config: ADMConfig, channels: int) -> int:
    """The number of attention heads at a level of so many channels."""
    return channels // config.head_dim if config.head_dim else config.heads


def split_heads(
    config: ADMConfig, qkv: Float[Array, "b l d"]
) -> tuple[Float[Array, "b l h k"], Float[Array, "b l h k"], Float[Array, "b l h k"]]:
    """q, k and v by head; the published networks disagree on which is cut first."""
    b, length, width = qkv.shape
    heads = heads_of(config, width // 3)
    if config.split_qkv_first:
        q, k, v = (x.reshape(b, length, heads, -1) for x in jnp.split(qkv, 3, axis=-1))
    else:
        q, k, v = jnp.split(qkv.reshape(b, length, heads, -1), 3, axis=-1)
    return q, k, v


class ADMAttention(nn.Module):
    """Self-attention among the places of the image."""

    config: ADMConfig

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        """Map [B, H, W, C] to the same shape; the identity at initialisation."""
        c, dtype = x.shape[-1], self.config.dtype
        h = _norm("norm")(x).astype(dtype).reshape(len(x), -1, c)
        qkv = nn.Dense(3 * c, dtype=dtype, name="qkv")(h)
        h = attend(*split_heads(self.config, qkv)).reshape(x.shape)
        return x + nn.Dense(c, kernel_init=nn.initializers.zeros, dtype=dtype, name="out")(h)


class _Conditioning(nn.Module):
    """Timestep, and class where there are classes, to the float32 vector that every block sees."""

    config: ADMConfig

    @nn.compact
    def __call__(self, t, label):
        config = self.config
        if (label is None) != (config.num_classes == 0):
            raise UserError(
                f"a network of {config.num_classes} classes was given "
                f"{'no' if label is None else 'a'} class label"
            )
        width = 4 * config.channels
        cond = timestep_embedding(t, config.channels)
        cond = nn.Dense(width, name="time_in")(cond)
        cond = nn.Dense(width, name="time_out")(nn.silu(cond))
        if label is not None:
            cond = cond + nn.Embed(config.num_classes, width, name="label")(label)
        return cond


def _encode(config: ADMConfig, x, cond, train):
    """The way down, called from within a compact module: the last features and all skips."""
    h = nn.Conv(config.channels * config.channel_mults[0], (3, 3), dtype=config.dtype, name="in")(x)
    skips = [h]
    last = len(config.channel_mults) - 1
    for level, mult in enumerate(config.channel_mults):
        width = mult * config.channels
        for i in range(config.res_blocks):
            h = ADMBlock(config, width, name=f"down_{level}_{i}")(h, cond, train)
            if config.attends(level):
                h = ADMAttention(config, name=f"down_{level}_{i}_attention")(h)
            skips.append(h)
        if level < last:
            if config.resblock_updown:
                h = ADMBlock(config, width, halve, name=f"down_{level}")(h, cond, train)
            else:
                h = nn.Conv(
                    width, (3, 3), (2, 2), padding=1, dtype=config.dtype, name=f"down_{level}"
                )(h)
            skips.append(h)
    h = ADMBlock(config, width, name="middle_0")(h, cond, train)
    h = ADMAttention(config, name="middle_attention")(h)
    return ADMBlock(config, width, name="middle_1")(h, cond, train), skips


class ADM(nn.Module):
    """Noisy images, timesteps and class labels to a prediction of the images' shape."""

    config: ADMConfig

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b h w c"],
        t: Num[Array, " b"],
        label: Int[Array, " b"] | None = None,
        train: bool = False,
    ) -> Float[Array, "b h w d"]:
        """Predict from x in about [-1, 1], t in timesteps, labels below `num_classes`.

        Float32 in and out, zero at initialisation. With `train` it needs a "dropout" key.
        """
        config = self.config
        cond = _Conditioning(config, name="cond")(t, label)
        h, skips = _encode(config, x.astype(config.dtype), cond, train)
        for level, mult in reversed(list(enumerate(config.channel_mults))):
            width = mult * config.channels
            for i in range(config.res_blocks + 1):
                h = jnp.concatenate([h, skips.pop()], axis=-1)
                h = ADMBlock(config, width, name=f"up_{level}_{i}")(h, cond, train)
                if config.attends(level):
                    h = ADMAttention(config, name=f"up_{level}_{i}_attention")(h)
            if level:
                if config.resblock_updown:
                    h = ADMBlock(config, width, double, name=f"up_{level}")(h, cond, train)
                else:
                    h = nn.Conv(width, (3, 3), dtype=config.dtype, name=f"up_{level}")(double(h))
        h = nn.silu(_norm("norm_out")(h))
        return nn.Conv(
            config.out_channels, (3, 3), kernel_init=nn.initializers.zeros, name="conv_out"
        )(h)


class ADMClassifier(nn.Module):
    """The UNet's encoder with attention pooling: log p(label | x_t) of noisy images.

    Made for classifier guidance (arXiv 2105.05233 section 4.1); `out_classes` is what it tells
    apart, the config's `num_classes` must be 0.
    """

    config: ADMConfig
    out_classes: int

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], t: Num[Array, " b"], train: bool = False
    ) -> Float[Array, "b classes"]:
        """Logits of the classes, float32, for x noised to timestep t."""
        config = self.config
        cond = _Conditioning(config, name="cond")(t, None)
        h, _ = _encode(config, x.astype(config.dtype), cond, train)
        h = nn.silu(_norm("norm_out")(h))
        b, _, _, c = h.shape
        h = h.reshape(b, -1, c)
        # Attention of the mean over the places, among itself and them (CLIP's pooling).
        h = jnp.concatenate([h.mean(1, keepdims=True), h], axis=1)
        place = nn.initializers.normal(c**-0.5)
        h = h + self.param("place", place, (h.shape[1], c))
        qkv = nn.Dense(3 * c, name="pool_qkv")(h)
        first = dataclasses.replace(config, split_qkv_first=True)
        pooled = attend(*split_heads(first, qkv)).reshape(b, -1, c)[:, 0]
        return nn.Dense(self.out_classes, name="pool_out")(pooled)


def parameter_count(net: nn.Module, config: ADMConfig) -> int:
    """How many parameters a network has, without making them."""
    size = config.image_size
    x = jnp.zeros((1, size, size, config.in_channels))
    label = (jnp.zeros(1, jnp.int32),) if config.num_classes else ()
    shapes = jax.eval_shape(net.init, jax.random.key(0), x, jnp.zeros(1), *label)
    return sum(leaf.size for leaf in jax.tree.leaves(shapes))
