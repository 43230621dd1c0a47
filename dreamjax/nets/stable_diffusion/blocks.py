"""What the UNet and the autoencoder of latent diffusion are both built of (arXiv 2112.10752).

Symbols: B images of H x W places, C channels, E of the conditioning vector, L tokens. Convolutions
and products run in `dtype`; norms and softmax in float32. Modules and parameters have the published
PyTorch names.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from dreamjax.nets import text

# On a CPU: queries of a head that are answered together, and how many weights there must be a head.
ROWS = 256
MANY_WEIGHTS = 2**20


def group_norm(groups: int, eps: float, name: str) -> nn.GroupNorm:
    """Group normalisation in float32."""
    # The fast variance, E[x^2] - E[x]^2, loses digits where a group's mean is far from zero.
    return nn.GroupNorm(groups, epsilon=eps, dtype=jnp.float32, use_fast_variance=False, name=name)


def attend(
    q: Float[Array, "b q h d"],
    k: Float[Array, "b k h d"],
    v: Float[Array, "b k h d"],
    fused: bool = False,
) -> Float[Array, "b q h d"]:
    """Scaled dot-product attention, logits and softmax in float32.

    `fused` is cuDNN's flash attention, for the head sizes that it has: it never writes the weights,
    1 GiB an image with 8 heads among 64 x 64 places. By itself JAX leaves attention to XLA, which
    writes them; on a CPU they then go by blocks that fit the cache, five times as fast.
    """
    size = q.shape[-1]
    kernel = "cudnn" if fused and size <= 128 and size % 8 == 0 else None
    if kernel is None and q.dtype == jnp.float16:  # JAX's own asks CPUs for what they have not
        return text.attend(q, k, v)
    if q.shape[1] % ROWS or q.shape[1] * k.shape[1] < MANY_WEIGHTS:
        return jax.nn.dot_product_attention(q, k, v, implementation=kernel)

    def whole(q, k, v):
        return jax.nn.dot_product_attention(q, k, v, implementation=kernel)

    return jax.lax.platform_dependent(q, k, v, cpu=_attend_by_blocks, default=whole)


def _attend_by_blocks(q, k, v):
    """`attend`, head by head and `ROWS` queries at a time."""

    def one_head(qkv):
        q, k, v = qkv

        def some(q):
            logits = jnp.matmul(q, k.T, preferred_element_type=jnp.float32)
            weights = jax.nn.softmax(logits * q.shape[-1] ** -0.5, axis=-1)
            return weights.astype(v.dtype) @ v

        return jax.lax.map(some, q.reshape(-1, ROWS, q.shape[-1])).reshape(q.shape)

    heads = [jnp.moveaxis(x, 2, 1).reshape(-1, x.shape[1], x.shape[3]) for x in (q, k, v)]
    out = jax.lax.map(one_head, tuple(heads))
    return jnp.moveaxis(out.reshape(q.shape[0], q.shape[2], *out.shape[1:]), 1, 2)


class ResnetBlock(nn.Module):
    """A residual block: norm, convolution, time added where it is given, norm, convolution."""

    width: int
    groups: int
    eps: float
    dtype: str

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], cond: Float[Array, "b e"] | None = None
    ) -> Float[Array, "b h w c2"]:
        """Map [B, H, W, C] to `width` channels."""
        h = nn.silu(group_norm(self.groups, self.eps, "norm1")(x)).astype(self.dtype)
        h = nn.Conv(self.width, (3, 3), dtype=self.dtype, name="conv1")(h)
        if cond is not None:
            h = h + nn.Dense(self.width, name="time_emb_proj")(nn.silu(cond))[:, None, None]
        h = nn.silu(group_norm(self.groups, self.eps, "norm2")(h)).astype(self.dtype)
        h = nn.Conv(self.width, (3, 3), dtype=self.dtype, name="conv2")(h)
        if x.shape[-1] != self.width:
            x = nn.Conv(self.width, (1, 1), dtype=self.dtype, name="conv_shortcut")(x)
        return x + h


class Downsample(nn.Module):
    """A convolution that halves H and W; `pad` is the rows (columns) of zeros before and after."""

    pad: tuple[int, int]
    dtype: str

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c"]:
        """Map [B, H, W, C] to [B, H / 2, W / 2, C]."""
        pads = (self.pad, self.pad)
        return nn.Conv(x.shape[-1], (3, 3), (2, 2), pads, dtype=self.dtype, name="conv")(x)


class Upsample(nn.Module):
    """Every place as 2 x 2, then a convolution."""

    dtype: str

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c"]:
        """Map [B, H, W, C] to [B, 2 H, 2 W, C]."""
        x = jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)
        return nn.Conv(x.shape[-1], (3, 3), dtype=self.dtype, name="conv")(x)
