"""The encoder of T5 1.1 (arXiv 1910.10683, 2002.05202): token ids to the texts that IF reads.

Symbols: N texts, L tokens, D = `d_model` channels, H heads. Everything is float32: in half
precision the larger T5s overflow. Modules and parameters have the published names.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PyTree

from dreamjax.errors import UserError
from dreamjax.nets.stable_diffusion import settings
from dreamjax.nets.text import MASKED

WHOLES = (
    "vocab_size",
    "d_model",
    "d_kv",
    "d_ff",
    "num_layers",
    "num_heads",
    "relative_attention_num_buckets",
    "relative_attention_max_distance",
)


@dataclasses.dataclass(frozen=True)
class T5Config:
    """Layout of the encoder, under the published names; by default that of T5 1.1 XXL.

    Raises UserError for position buckets that do not fit the largest distance.
    """

    vocab_size: int = 32128
    d_model: int = 4096
    d_kv: int = 64
    d_ff: int = 10240
    num_layers: int = 24
    num_heads: int = 64
    relative_attention_num_buckets: int = 32
    relative_attention_max_distance: int = 128
    layer_norm_epsilon: float = 1e-6

    def __post_init__(self):
        buckets, distance = (
            self.relative_attention_num_buckets,
            self.relative_attention_max_distance,
        )
        if buckets % 4 or distance <= buckets // 4:
            raise UserError(
                f"relative_attention_num_buckets {buckets} must divide by 4, and a quarter of it "
                f"lie below relative_attention_max_distance {distance}"
            )

    @classmethod
    def from_json(cls, given: Mapping[str, Any]) -> "T5Config":
        """The encoder that a published `config.json` describes.

        Raises UserError naming the key and the value that another network than this would need.
        """
        fixed = {
            "model_type": "t5",
            "feed_forward_proj": "gated-gelu",
            "eos_token_id": 1,
            "pad_token_id": 0,
        }
        # What transformers takes a file without the key to mean.
        absent = {**fixed, "feed_forward_proj": "relu"}
        for key, right in fixed.items():
            if (value := given.get(key, absent.get(key))) != right:
                raise settings.refused(key, value, repr(right))
        return cls(
            **settings.wholes_of(cls, given, WHOLES),
            layer_norm_epsilon=settings.number(given, "layer_norm_epsilon", cls.layer_norm_epsilon),
        )


def position_buckets(config: T5Config, length: int) -> Int[np.ndarray, "l l"]:
    """The bucket of the distance from each token (row) to each other (column), both directions.

    The nearer half of a direction's buckets are one distance each; the others grow as its logarithm
    up to `relative_attention_max_distance`, and the last holds all that is farther.
    """
    place = np.arange(length)
    distance = place[None, :] - place[:, None]
    count = config.relative_attention_num_buckets // 2
    near = count // 2
    span = np.log(config.relative_attention_max_distance / near)
    # A small share keeps powers of two, whose logarithms are whole, on their side of the border.
    share = np.log(np.maximum(np.abs(distance), 1) / near) / span + 1e-9
    far = np.minimum(near + (share * (count - near)).astype(int), count - 1)
    bucket = np.where(np.abs(distance) < near, np.abs(distance), far)
    return bucket + count * (distance > 0)


class RMSNorm(nn.Module):
    """Division by the root of the mean square, then a scale; no mean and no bias."""

    epsilon: float

    @nn.compact
    def __call__(self, x: Float[Array, "n l d"]) -> Float[Array, "n l d"]:
        """Map [N, L, D] to the same shape."""
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
        square = jnp.mean(jnp.square(x), axis=-1, keepdims=True)
        return scale * x * jax.lax.rsqrt(square + self.epsilon)


class Attention(nn.Module):
    """Self-attention without the usual scale; the first layer's has the places' bias for all."""

    config: T5Config

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "n l d"],
        mask: Bool[Array, "n l"],
        bias: Float[Array, "h l l"] | None,
    ) -> tuple[Float[Array, "n l d"], Float[Array, "h l l"]]:
        """Map [N, L, D] to the same shape; `mask` is True at tokens that count."""
        config = self.config
        heads, size = config.num_heads, config.d_kv

        def project(name: str) -> Float[Array, "n l h k"]:
            return nn.Dense(heads * size, use_bias=False, name=name)(x).reshape(
                *x.shape[:2], heads, size
            )

        if bias is None:
            buckets = position_buckets(config, x.shape[1])
            table = nn.Embed(
                config.relative_attention_num_buckets, heads, name="relative_attention_bias"
            )
            bias = jnp.moveaxis(table(jnp.asarray(buckets)), -1, 0)
        logits = jnp.einsum("nqhk,nlhk->nhql", project("q"), project("k")) + bias
        weights = jax.nn.softmax(jnp.where(mask[:, None, None], logits, MASKED), axis=-1)
        out = jnp.einsum("nhql,nlhk->nqhk", weights, project("v"))
        out = nn.Dense(x.shape[-1], use_bias=False, name="o")(out.reshape(*x.shape[:2], -1))
        return out, bias


class GatedGelu(nn.Module):
    """One linear map gated by the GELU (its tanh form) of another, then a third."""

    config: T5Config

    @nn.compact
    def __call__(self, x: Float[Array, "n l d"]) -> Float[Array, "n l d"]:
        """Map [N, L, D] to the same shape."""

        def dense(width: int, name: str) -> nn.Dense:
            return nn.Dense(width, use_bias=False, name=name)

        gate, h = dense(self.config.d_ff, "wi_0")(x), dense(self.config.d_ff, "wi_1")(x)
        return dense(x.shape[-1], "wo")(nn.gelu(gate, approximate=True) * h)


class AttentionLayer(nn.Module):
    """A norm and attention, added to the input."""

    config: T5Config

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "n l d"],
        mask: Bool[Array, "n l"],
        bias: Float[Array, "h l l"] | None,
    ) -> tuple[Float[Array, "n l d"], Float[Array, "h l l"]]:
        """Map [N, L, D] to the same shape; the places' bias, made where there is none."""
        h = RMSNorm(self.config.layer_norm_epsilon, name="layer_norm")(x)
        h, bias = Attention(self.config, name="SelfAttention")(h, mask, bias)
        return x + h, bias


class FeedForwardLayer(nn.Module):
    """A norm and a perceptron on each token, added to the input."""

    config: T5Config

    @nn.compact
    def __call__(self, x: Float[Array, "n l d"]) -> Float[Array, "n l d"]:
        """Map [N, L, D] to the same shape."""
        h = RMSNorm(self.config.layer_norm_epsilon, name="layer_norm")(x)
        return x + GatedGelu(self.config, name="DenseReluDense")(h)


class T5Block(nn.Module):
    """A layer of the transformer: attention, then a perceptron."""

    config: T5Config

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "n l d"],
        mask: Bool[Array, "n l"],
        bias: Float[Array, "h l l"] | None = None,
    ) -> tuple[Float[Array, "n l d"], Float[Array, "h l l"]]:
        """Map [N, L, D] to the same shape; without a bias the block has its own and returns it."""
        x, bias = AttentionLayer(self.config, name="layer_0")(x, mask, bias)
        return FeedForwardLayer(self.config, name="layer_1")(x), bias


class T5Stack(nn.Module):
    """The blocks and the last norm."""

    config: T5Config

    @nn.compact
    def __call__(self, x: Float[Array, "n l d"], mask: Bool[Array, "n l"]) -> Float[Array, "n l d"]:
        """Map [N, L, D] to the same shape."""
        bias = None
        for i in range(self.config.num_layers):
            x, bias = T5Block(self.config, name=f"block_{i}")(x, mask, bias)
        return RMSNorm(self.config.layer_norm_epsilon, name="final_layer_norm")(x)


class T5Encoder(nn.Module):
    """Token ids to token embeddings."""

    config: T5Config

    @nn.compact
    def __call__(self, ids: Int[Array, "n l"], mask: Bool[Array, "n l"]) -> Float[Array, "n l d"]:
        """Embeddings [N, L, D], those of padding among them, which is never attended to."""
        table = nn.Embed(self.config.vocab_size, self.config.d_model, name="shared")
        return T5Stack(self.config, name="encoder")(table(ids), mask)


def encode_by_blocks(
    config: T5Config,
    read: Callable[[str], PyTree],
    ids: Int[np.ndarray, "n l"],
    mask: Bool[np.ndarray, "n l"],
) -> Float[np.ndarray, "n l d"]:
    """What `T5Encoder` gives, with one block's parameters in memory at a time.

    read("encoder.block_3") gives the parameters below that name. XXL has 4.8 billion in all, 0.2
    billion a block.
    """
    table, counts, bias = np.asarray(read("shared")["embedding"]), jnp.asarray(mask), None
    x = jnp.asarray(table[ids])
    apply = jax.jit(T5Block(config).apply)
    for i in range(config.num_layers):
        found = apply({"params": read(f"encoder.block_{i}")}, x, counts, bias)
        x, bias = cast(tuple[Array, Array], found)
    norm = RMSNorm(config.layer_norm_epsilon)
    return np.asarray(norm.apply({"params": read("encoder.final_layer_norm")}, x))
