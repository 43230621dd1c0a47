"""CLIP's text and vision transformers (arXiv 2103.00020), under their published names.

Stable Diffusion 1.x reads text with ViT-L/14's text transformer, 2.x with OpenCLIP ViT-H's. Names
of modules, and what a config means, are those of `transformers`, so that its files fit without a
table.

Symbols: N texts or images, L tokens, D = `hidden_size` channels, P = `projection_dim`.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from dreamjax.nets.stable_diffusion.settings import choice, number, refused, whole, wholes_of

# Configs older than 2023 name this as the end token, which it is not.
LEGACY_END = 2


def quick_gelu(x: Float[Array, "*batch"]) -> Float[Array, "*batch"]:
    """x sigmoid(1.702 x), OpenAI's stand-in for GELU."""
    return x * nn.sigmoid(1.702 * x)


def gelu(x: Float[Array, "*batch"]) -> Float[Array, "*batch"]:
    """x Phi(x), exactly."""
    return nn.gelu(x, approximate=False)


ACTIVATIONS = {"quick_gelu": quick_gelu, "gelu": gelu}


@dataclasses.dataclass(frozen=True)
class CLIPTextConfig:
    """A text transformer in the words of its config.json.

    `dtype` is that of the activations; with `remat` gradients recompute them.
    """

    vocab_size: int = 49408
    hidden_size: int = 512
    intermediate_size: int = 2048
    num_hidden_layers: int = 12
    num_attention_heads: int = 8
    max_position_embeddings: int = 77
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5
    eos_token_id: int = 49407
    dtype: str = "float32"
    remat: bool = False

    @classmethod
    def from_json(cls, given: Mapping[str, Any]) -> "CLIPTextConfig":
        """The config that a config.json describes; raises UserError for another network's."""
        _check_type(given, "clip_text_model")
        names = ("vocab_size", "max_position_embeddings", "eos_token_id")
        return cls(
            **_common(cls, given),
            **wholes_of(cls, given, names),
        )


@dataclasses.dataclass(frozen=True)
class CLIPVisionConfig:
    """A vision transformer in the words of its config.json.

    `dtype` is that of the activations; with `remat` gradients recompute them.
    """

    hidden_size: int = 768
    intermediate_size: int = 3072
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    image_size: int = 224
    patch_size: int = 32
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5
    dtype: str = "float32"
    remat: bool = False

    @classmethod
    def from_json(cls, given: Mapping[str, Any]) -> "CLIPVisionConfig":
        """The config that a config.json describes; raises UserError for another network's."""
        _check_type(given, "clip_vision_model")
        if given.get("num_channels", 3) != 3:
            raise refused("num_channels", given["num_channels"], "3")
        names = ("image_size", "patch_size")
        config = cls(
            **_common(cls, given),
            **wholes_of(cls, given, names),
        )
        if config.patch_size > config.image_size:
            raise refused("patch_size", config.patch_size, "no patch larger than the image")
        return config


@dataclasses.dataclass(frozen=True)
class CLIPConfig:
    """Both towers, and the width of the space in which they meet."""

    text: CLIPTextConfig = CLIPTextConfig()
    vision: CLIPVisionConfig = CLIPVisionConfig()
    projection_dim: int = 512

    @classmethod
    def from_json(cls, given: Mapping[str, Any]) -> "CLIPConfig":
        """The config that a whole CLIP's config.json describes; raises UserError."""
        _check_type(given, "clip")

        def part(name):
            # Where there are both, the older key is the one that counts.
            older = given.get(f"{name}_config_dict")
            found = given.get(f"{name}_config") if older is None else older
            if not isinstance(found, Mapping):
                raise refused(f"{name}_config", found, f"a {name} transformer's settings there")
            return found

        return cls(
            CLIPTextConfig.from_json(part("text")),
            CLIPVisionConfig.from_json(part("vision")),
            whole(given, "projection_dim", cls.projection_dim),
        )


def _check_type(given: Mapping[str, Any], model_type: str) -> None:
    if given.get("model_type", model_type) != model_type:
        raise refused("model_type", given["model_type"], repr(model_type))


def _common(cls, given: Mapping[str, Any]) -> dict[str, Any]:
    """What both towers' configs say."""
    names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    found = wholes_of(cls, given, names)
    if found["hidden_size"] % found["num_attention_heads"]:
        right = f"heads of one size, and {found['hidden_size']} channels"
        raise refused("num_attention_heads", found["num_attention_heads"], right)
    activation = choice(given, "hidden_act", cls.hidden_act, ACTIVATIONS)
    eps = number(given, "layer_norm_eps", cls.layer_norm_eps)
    return {**found, "hidden_act": activation, "layer_norm_eps": eps}


class TextStates(NamedTuple):
    """What a text transformer says, float32.

    `last` is under the final norm; `penultimate` is what the last layer but one puts out, without
    a norm; `pooled` is `last` at the end token.
    """

    last: Float[Array, "n l d"]
    penultimate: Float[Array, "n l d"]
    pooled: Float[Array, "n d"]


def _norm(config: CLIPTextConfig | CLIPVisionConfig, name: str) -> nn.LayerNorm:
    # The fast variance, E[x^2] - E[x]^2, loses digits where the mean is far from zero.
    return nn.LayerNorm(
        epsilon=config.layer_norm_eps, dtype=jnp.float32, use_fast_variance=False, name=name
    )


class Attention(nn.Module):
    """Self-attention; with `causal`, of each place to itself and those before it."""

    config: CLIPTextConfig | CLIPVisionConfig
    causal: bool

    @nn.compact
    def __call__(self, x: Float[Array, "n l d"]) -> Float[Array, "n l d"]:
        """Map [N, L, D] to the same shape."""
        config = self.config

        def dense(name):
            return nn.Dense(config.hidden_size, dtype=config.dtype, name=name)

        heads = (*x.shape[:-1], config.num_attention_heads, -1)
        q, k, v = (dense(f"{letter}_proj")(x).reshape(heads) for letter in "qkv")
        if q.dtype == jnp.float16:  # CPUs lack the product that JAX asks for
            q, k, v = (a.astype(jnp.float32) for a in (q, k, v))
        attended = jax.nn.dot_product_attention(q, k, v, is_causal=self.causal)
        return dense("out_proj")(attended.reshape(x.shape))


class MLP(nn.Module):
    """Two layers on each place."""

    config: CLIPTextConfig | CLIPVisionConfig

    @nn.compact
    def __call__(self, x: Float[Array, "n l d"]) -> Float[Array, "n l d"]:
        """Map [N, L, D] to the same shape."""
        config = self.config
        x = nn.Dense(config.intermediate_size, dtype=config.dtype, name="fc1")(x)
        x = ACTIVATIONS[config.hidden_act](x)
        return nn.Dense(config.hidden_size, dtype=config.dtype, name="fc2")(x)


class Layer(nn.Module):
    """A pre-norm transformer layer."""

    config: CLIPTextConfig | CLIPVisionConfig
    causal: bool

    @nn.compact
    def __call__(self, x: Float[Array, "n l d"]) -> Float[Array, "n l d"]:
        """Map [N, L, D] to the same shape."""
        config = self.config
        h = _norm(config, "layer_norm1")(x).astype(config.dtype)
        x = x + Attention(config, self.causal, name="self_attn")(h)
        h = _norm(config, "layer_norm2")(x).astype(config.dtype)
        return x + MLP(config, name="mlp")(h)


class Encoder(nn.Module):
    """A stack of layers."""

    config: CLIPTextConfig | CLIPVisionConfig
    causal: bool

    @nn.compact
    def __call__(
        self, x: Float[Array, "n l d"]
    ) -> tuple[Float[Array, "n l d"], Float[Array, "n l d"]]:
        """What the last layer puts out and what it is given, both [N, L, D]."""
        layer = nn.remat(Layer) if self.config.remat else Layer
        before = x = x.astype(self.config.dtype)
        for i in range(self.config.num_hidden_layers):
            before, x = x, layer(self.config, self.causal, name=f"layers_{i}")(x)
        return x, before


class TextEmbeddings(nn.Module):
    """Embedded tokens at embedded places."""

    config: CLIPTextConfig

    @nn.compact
    def __call__(self, ids: Int[Array, "n l"]) -> Float[Array, "n l d"]:
        """Map ids [N, L] to float32 [N, L, D]."""
        config = self.config
        init = nn.initializers.normal(0.02)
        token = nn.Embed(
            config.vocab_size, config.hidden_size, embedding_init=init, name="token_embedding"
        )
        place = nn.Embed(
            config.max_position_embeddings,
            config.hidden_size,
            embedding_init=init,
            name="position_embedding",
        )
        return token(ids) + place(jnp.arange(ids.shape[-1]))


class CLIPText(nn.Module):
    """Token ids to what `TextStates` holds."""

    config: CLIPTextConfig

    @nn.compact
    def __call__(self, ids: Int[Array, "n l"]) -> TextStates:
        """Read ids [N, L]; raises ValueError for texts longer than the network has places."""
        config = self.config
        if ids.shape[-1] > config.max_position_embeddings:
            raise ValueError(
                f"texts of {ids.shape[-1]} tokens; the network has {config.max_position_embeddings}"
            )
        x = TextEmbeddings(config, name="embeddings")(ids)
        x, penultimate = Encoder(config, causal=True, name="encoder")(x)
        last = _norm(config, "final_layer_norm")(x)
        # The first end token, as texts may be padded with it; it is the highest id of CLIP's own
        # vocabulary, which is how networks of the legacy config find it.
        is_end = ids if config.eos_token_id == LEGACY_END else ids == config.eos_token_id
        end = jnp.argmax(is_end, axis=-1)
        pooled = jnp.take_along_axis(last, end[:, None, None], axis=1)[:, 0]
        return TextStates(last, penultimate.astype(jnp.float32), pooled)


class VisionEmbeddings(nn.Module):
    """A class token and the patches of an image, at embedded places."""

    config: CLIPVisionConfig

    @nn.compact
    def __call__(self, images: Float[Array, "n h w 3"]) -> Float[Array, "n l d"]:
        """Map images [N, H, W, 3] to float32 [N, 1 + patches, D]."""
        config, width = self.config, self.config.hidden_size
        patch = (config.patch_size, config.patch_size)
        x = nn.Conv(
            width,
            patch,
            patch,
            padding="VALID",
            use_bias=False,
            dtype=config.dtype,
            name="patch_embedding",
        )(images)
        x = x.reshape(len(x), -1, width).astype(jnp.float32)
        first = self.param("class_embedding", nn.initializers.normal(width**-0.5), (width,))
        x = jnp.concatenate([jnp.broadcast_to(first, (len(x), 1, width)), x], axis=1)
        places = nn.Embed(
            x.shape[1],
            width,
            embedding_init=nn.initializers.normal(0.02),
            name="position_embedding",
        )
        return x + places(jnp.arange(x.shape[1]))


class CLIPVision(nn.Module):
    """Images, normalised as CLIP's preprocessing does, to what their class token becomes."""

    config: CLIPVisionConfig

    @nn.compact
    def __call__(self, images: Float[Array, "n h w 3"]) -> Float[Array, "n d"]:
        """Map images [N, H, W, 3] to float32 [N, D]; raises ValueError for another image size."""
        size = self.config.image_size
        if images.shape[1:3] != (size, size):
            raise ValueError(f"images are {images.shape[1:3]}; the network's are {size} x {size}")
        x = VisionEmbeddings(self.config, name="embeddings")(images)
        x = _norm(self.config, "pre_layrnorm")(x)  # so spelt in the published files
        x, _ = Encoder(self.config, causal=False, name="encoder")(x)
        return _norm(self.config, "post_layernorm")(x[:, 0])


class CLIP(nn.Module):
    """Both towers and the projections into the space in which they meet."""

    config: CLIPConfig

    def setup(self):
        """Name the parts as published."""
        self.text_model = CLIPText(self.config.text)
        self.vision_model = CLIPVision(self.config.vision)
        self.text_projection = nn.Dense(self.config.projection_dim, use_bias=False)
        self.visual_projection = nn.Dense(self.config.projection_dim, use_bias=False)
        self.logit_scale = self.param("logit_scale", nn.initializers.constant(2.6592), ())

    def text_features(self, ids: Int[Array, "n l"]) -> Float[Array, "n p"]:
        """Features of texts, of any length, as they are projected."""
        return self.text_projection(self.text_model(ids).pooled)

    def image_features(self, images: Float[Array, "n h w 3"]) -> Float[Array, "n p"]:
        """Features of normalised images, of any length, as they are projected."""
        return self.visual_projection(self.vision_model(images))

    def __call__(
        self, images: Float[Array, "n h w 3"], ids: Int[Array, "m l"]
    ) -> Float[Array, "n m"]:
        """exp(logit_scale) cos(image, text) of all pairs."""
        images, texts = unit(self.image_features(images)), unit(self.text_features(ids))
        cosine = jnp.matmul(images, texts.T, precision=jax.lax.Precision.HIGHEST)
        return jnp.exp(self.logit_scale) * cosine


def unit(x: Float[Array, "*batch p"]) -> Float[Array, "*batch p"]:
    """Vectors of length 1 in the same direction."""
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)
