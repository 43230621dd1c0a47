"""A small text transformer over a word vocabulary.

Symbols: N texts, L tokens a text, D channels. Token id 0 is padding; a text of padding alone is the
null text, the one that classifier-free guidance calls unconditional.
"""

from typing import Annotated, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from dreamjax.errors import UserError
from dreamjax.settings import Range, settings

# Large and finite: a row that is masked whole becomes uniform instead of nan.
MASKED = -1e9


@settings
class TextConfig:
    """Sizes of the text transformer; `length` is the most tokens a text may have.

    Raises UserError for heads that do not divide `dim`.
    """

    vocabulary_size: Annotated[int, Range(1, 10**6)]
    length: Annotated[int, Range(1, 4096)] = 24
    dim: Annotated[int, Range(1, 8192)] = 128
    layers: Annotated[int, Range(0, 64)] = 2
    heads: Annotated[int, Range(1, 256)] = 4

    def __post_init__(self):
        if self.dim % self.heads:
            raise UserError(f"a width of {self.dim} cannot have {self.heads} heads")


class Text(NamedTuple):
    """Embedded texts: `tokens` [N, L, D] (zero at padding) and `mask` [N, L] (True at a word)."""

    tokens: Float[Array, "n l d"]
    mask: Bool[Array, "n l"]


def attend(
    q: Float[Array, "b q h d"],
    k: Float[Array, "b k h d"],
    v: Float[Array, "b k h d"],
    mask: Bool[Array, "b k"] | None = None,
) -> Float[Array, "b q h d"]:
    """Scaled dot-product attention with a float32 softmax; `mask` is True at keys that count."""
    logits = jnp.einsum("bqhd,bkhd->bhqk", q, k, preferred_element_type=jnp.float32)
    logits = logits * q.shape[-1] ** -0.5
    if mask is not None:
        logits = jnp.where(mask[:, None, None, :], logits, MASKED)
    weights = jax.nn.softmax(logits, axis=-1).astype(v.dtype)
    return jnp.einsum("bhqk,bkhd->bqhd", weights, v)


class TextBlock(nn.Module):
    """A pre-norm transformer layer: self-attention over the words, then a perceptron on each."""

    heads: int

    @nn.compact
    def __call__(self, x: Float[Array, "n l d"], mask: Bool[Array, "n l"]) -> Float[Array, "n l d"]:
        """Map tokens [N, L, D] to tokens of the same shape; padding is never attended to."""
        dim = x.shape[-1]
        h = nn.Dense(3 * dim, use_bias=False, name="qkv")(nn.LayerNorm(name="norm_attention")(x))
        q, k, v = jnp.split(h.reshape(*x.shape[:2], self.heads, -1), 3, axis=-1)
        h = attend(q, k, v, mask).reshape(x.shape)
        x = x + nn.Dense(dim, name="attention_out")(h)
        h = nn.Dense(4 * dim, name="mlp_in")(nn.LayerNorm(name="norm_mlp")(x))
        return x + nn.Dense(dim, name="mlp_out")(nn.gelu(h))


class TextEncoder(nn.Module):
    """Word ids to token embeddings: learned words and places, `layers` blocks, a final norm."""

    config: TextConfig

    @nn.compact
    def __call__(self, ids: Int[Array, "n l"]) -> Text:
        """Embed ids [N, L], L at most `config.length`, in float32; id 0 is padding.

        Padding does not change the words' embeddings; the null text is finite (zero tokens).
        """
        config = self.config
        if ids.shape[-1] > config.length:
            raise ValueError(f"texts of {ids.shape[-1]} tokens; the encoder has {config.length}")
        mask = ids > 0
        init = nn.initializers.normal(0.02)
        place = self.param("place", init, (config.length, config.dim))
        x = nn.Embed(config.vocabulary_size, config.dim, embedding_init=init, name="word")(ids)
        x = x + place[: ids.shape[-1]]
        for layer in range(config.layers):
            x = TextBlock(config.heads, name=f"block_{layer}")(x, mask)
        x = nn.LayerNorm(name="norm")(x)
        return Text(x * mask[..., None], mask)
