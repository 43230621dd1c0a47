"""The transformer with which Stable Diffusion's UNet reads the text (arXiv 2112.10752 section 3.3).

Symbols: B latents of H x W or N places, C channels, text of L tokens of D channels. Products run in
`dtype`, norms and softmax in float32. Modules and parameters have the published PyTorch names.
With `views` more than 1, so many latents in a row are views of one thing, and the attention among
places is among those of all of them (MVDream's 3D self-attention, arXiv 2308.16512 section 3.1).
"""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from dreamjax.nets.stable_diffusion.blocks import attend, group_norm


class Attention(nn.Module):
    """Multi-head attention of places to `context`, which may be the places themselves."""

    heads: int
    dtype: str
    fused: bool

    @nn.compact
    def __call__(
        self, x: Float[Array, "b n c"], context: Float[Array, "b l d"]
    ) -> Float[Array, "b n c"]:
        """Map [B, N, C] to the same shape."""
        width = x.shape[-1]

        def project(name: str, x: Float[Array, "b n c"]) -> Float[Array, "b n heads k"]:
            out = nn.Dense(width, use_bias=False, dtype=self.dtype, name=name)(x)
            return out.reshape(*x.shape[:2], self.heads, -1)

        q, k, v = project("to_q", x), project("to_k", context), project("to_v", context)
        out = attend(q, k, v, self.fused).reshape(x.shape)
        return nn.Dense(width, dtype=self.dtype, name="to_out_0")(out)


class GatedGelu(nn.Module):
    """One half of a linear map, gated by the exact GELU of the other (GEGLU, arXiv 2002.05202)."""

    width: int
    dtype: str

    @nn.compact
    def __call__(self, x: Float[Array, "b n c"]) -> Float[Array, "b n c2"]:
        """Map [B, N, C] to `width` channels."""
        x, gate = jnp.split(nn.Dense(2 * self.width, dtype=self.dtype, name="proj")(x), 2, axis=-1)
        return x * nn.gelu(gate, approximate=False)


class FeedForward(nn.Module):
    """The perceptron on each place, four times as wide within."""

    dtype: str

    @nn.compact
    def __call__(self, x: Float[Array, "b n c"]) -> Float[Array, "b n c"]:
        """Map [B, N, C] to the same shape."""
        h = GatedGelu(4 * x.shape[-1], self.dtype, name="net_0")(x)
        return nn.Dense(x.shape[-1], dtype=self.dtype, name="net_2")(h)


class TransformerBlock(nn.Module):
    """Attention among the places, attention to the text, a perceptron; each after a norm."""

    heads: int
    dtype: str
    fused: bool
    views: int = 1

    @nn.compact
    def __call__(
        self, x: Float[Array, "b n c"], tokens: Float[Array, "b l d"]
    ) -> Float[Array, "b n c"]:
        """Map [B, N, C] to the same shape."""

        def norm(name: str) -> Float[Array, "b n c"]:
            layer = nn.LayerNorm(1e-5, jnp.float32, use_fast_variance=False, name=name)
            return layer(x).astype(self.dtype)

        h = norm("norm1").reshape(-1, self.views * x.shape[1], x.shape[2])
        among = Attention(self.heads, self.dtype, self.fused, name="attn1")(h, h)
        x = x + among.reshape(x.shape)
        x = x + Attention(self.heads, self.dtype, self.fused, name="attn2")(norm("norm2"), tokens)
        return x + FeedForward(self.dtype, name="ff")(norm("norm3"))


class Transformer(nn.Module):
    """A transformer block over all places of the latents (LDM section 3.3), added to its input.

    The maps into it and out of it are linear in 2.x, 1 x 1 convolutions in 1.x: the same up to the
    shape of the weights.
    """

    heads: int
    linear: bool
    groups: int
    dtype: str
    fused: bool
    views: int = 1

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], tokens: Float[Array, "b l d"]
    ) -> Float[Array, "b h w c"]:
        """Map [B, H, W, C] to the same shape."""
        b, _, _, c = x.shape

        def project(name: str) -> nn.Module:
            if self.linear:
                return nn.Dense(c, dtype=self.dtype, name=name)
            return nn.Conv(c, (1, 1), dtype=self.dtype, name=name)

        h = group_norm(self.groups, 1e-6, "norm")(x)
        h = project("proj_in")(h).reshape(b, -1, c)
        block = TransformerBlock(
            self.heads, self.dtype, self.fused, self.views, name="transformer_blocks_0"
        )
        h = block(h, tokens)
        return x + project("proj_out")(h.reshape(x.shape))
