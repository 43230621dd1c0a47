"""Stable Diffusion 1.x and 2.x as a prior (latent diffusion, arXiv 2112.10752).

Symbols: rgb [B, H, W, 3] in [0, 1]; z_0 [B, h, w, 4] scaled latents, of 1 / 8 the image's size.
Everything about a model comes from its folder (`priors.published`): its networks' sizes, the
schedule, what the UNet predicts, and the tokenizer.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, cast

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, PyTree

from dreamjax import weights
from dreamjax.diffusion import schedule as schedules
from dreamjax.diffusion.reverse import Parameterisation, unclipped
from dreamjax.diffusion.schedule import Schedule
from dreamjax.errors import UserError
from dreamjax.nets import lora
from dreamjax.nets.stable_diffusion.clip import CLIPText, CLIPTextConfig, TextStates
from dreamjax.nets.stable_diffusion.unet import CameraEmbedding, SDUNet, SDUNetConfig
from dreamjax.nets.stable_diffusion.vae import AutoencoderKL, VAEConfig
from dreamjax.nets.text import Text
from dreamjax.priors import lora_files, published, words
from dreamjax.priors.base import Conditions, NetPrior, Prompt, decode_pixels, encode_pixels
from dreamjax.priors.clip import token_ids
from dreamjax.scene.views import Views
from dreamjax.settings import Dtype, Range, settings

PARTS = ("unet", "vae", "text_encoder")
PREDICTIONS = {"epsilon": "eps", "v_prediction": "v"}
LARGEST_PICTURE = 4096  # pixels a side
CAMERA_DIM = 16  # numbers of a camera-to-world matrix, which adapters are told
Beta = Annotated[float, Range(0.0, 1.0, above=True, below=True)]
LoraScale = Annotated[float, Range(-100.0, 100.0)]


def encode_latents(
    config: VAEConfig, params: PyTree, x: Float[Array, "b h w 3"], keys: Key[Array, " b"]
) -> Float[Array, "b h2 w2 c"]:
    """Scaled latents of pictures in [-1, 1], drawn from the encoder's distribution."""
    found = AutoencoderKL(config).apply({"params": params}, x, method="encode")
    mean, log_var = cast(tuple[Array, Array], found)
    noise = jax.vmap(lambda key: jax.random.normal(key, mean.shape[1:]))(keys)
    return config.scaling_factor * (mean + jnp.exp(0.5 * log_var) * noise)


def decode_latents(
    config: VAEConfig, params: PyTree, z_0: Float[Array, "b h w c"]
) -> Float[Array, "b h2 w2 3"]:
    """Pictures in [0, 1] of scaled latents."""
    z = z_0 / config.scaling_factor
    x = AutoencoderKL(config).apply({"params": params}, z, method="decode")
    return decode_pixels(cast(Array, x).astype(jnp.float32))


@dataclasses.dataclass(frozen=True)
class StableDiffusionNets:
    """The networks of a latent text-to-image diffusion model, as its folder describes them.

    Their parameters are {"unet", "vae", "text"} and, for the cheap way to encode alone,
    "rgb_to_latent" (`fit_rgb_to_latent`); `tokenizer` is a folder.
    """

    PIPELINE: ClassVar[str] = "StableDiffusionPipeline"  # whose folders are of this kind

    unet: SDUNetConfig
    vae: VAEConfig
    text: CLIPTextConfig
    schedule: Schedule
    prediction: str
    tokenizer: str

    @property
    def parameterisation(self) -> Parameterisation:
        """What the network's output stands for; latents are not clipped."""
        return Parameterisation(self.prediction, "fixed_small", unclipped)

    @property
    def image_size(self) -> int:
        """H = W in pixels, 8 times the latents'."""
        return self.unet.sample_size * 2 ** (len(self.vae.block_out_channels) - 1)

    @property
    def shape(self) -> tuple[int, int, int]:
        """H, W, C of the latents."""
        return (self.unet.sample_size, self.unet.sample_size, self.vae.latent_channels)

    @property
    def levels(self) -> int:
        """How many values a pixel of a decoded picture has."""
        return 256

    def init(self, key: Key[Array, ""]) -> PyTree:
        """Random parameters, in the shapes of the published ones."""
        keys = jax.random.split(key, 3)
        ids = jnp.zeros((1, self.text.max_position_embeddings), jnp.int32)
        size = 2 ** (len(self.vae.block_out_channels) - 1)
        rows, unet = self.unet.views, self.unet
        x, z = jnp.zeros((1, size, size, 3)), jnp.zeros((rows, *self.shape))
        t, tokens = jnp.zeros(rows, jnp.int32), jnp.zeros((rows, 1, unet.cross_attention_dim))
        camera = jnp.zeros((rows, unet.camera_dim)) if unet.camera_dim else None
        nets = {
            "text": CLIPText(self.text).init(keys[0], ids),
            "vae": AutoencoderKL(self.vae).init(keys[1], x),
            "unet": SDUNet(unet).init(keys[2], z, t, tokens, camera),
        }
        return {name: variables["params"] for name, variables in nets.items()}

    def embed_texts(self, params: PyTree, texts: Sequence[str]) -> Text:
        """CLIP's final token embeddings [N, L, D]; longer texts are cut, as in the published code.

        Padding counts as text here (the mask is True everywhere): the model was trained so.
        """
        text = self.text
        folder = Path(self.tokenizer)
        ids = token_ids(folder, texts, text.max_position_embeddings, text.vocab_size)
        tokens = _token_embeddings(self.text, params["text"], jnp.asarray(ids))
        return Text(tokens, jnp.ones(ids.shape, bool))

    def encode(
        self,
        params: PyTree,
        rgb: Float[Array, "b h w 3"],
        keys: Key[Array, " b"],
        cheap: bool = False,
    ) -> Float[Array, "b s s c"]:
        """Scaled latents, drawn from the encoder's distribution at `image_size`.

        With `cheap` they are those of the affine map of colours that is nearest to the encoder: a
        thousandth of the work, and right for flat colours only, for a time when there is no detail
        to encode; nothing is drawn. Raises UserError where that map has not been fitted.
        """
        if cheap:
            return self._encode_linear(params, rgb)
        return encode_latents(self.vae, params["vae"], encode_pixels(rgb, self.image_size), keys)

    def _encode_linear(self, params: PyTree, rgb: Float[Array, "b h w 3"]) -> Array:
        if "rgb_to_latent" not in params:
            raise UserError("cheap encoding was asked for, but cheap_encoder is false")
        x = encode_pixels(rgb, self.unet.sample_size)
        ones = jnp.ones((*x.shape[:-1], 1))
        return jnp.concatenate([x, ones], -1) @ params["rgb_to_latent"]

    def decode(self, params: PyTree, z_0: Float[Array, "b s s c"]) -> Float[Array, "b h w 3"]:
        """Pictures in [0, 1] of scaled latents."""
        return decode_latents(self.vae, params["vae"], z_0)

    def predict(
        self,
        params: PyTree,
        z_t: Float[Array, "b s s c"],
        t: Int[Array, " b"],
        condition: Text,
        camera: Float[Array, "b k"] | None = None,
    ) -> Float[Array, "b s s c"]:
        """The UNet's output, eps or v; a camera is for a UNet whose parameters embed one."""
        unet = SDUNet(self.unet)
        return cast(Array, unet.apply({"params": params["unet"]}, z_t, t, condition.tokens, camera))

    @classmethod
    def read_unet(cls, given: Mapping[str, Any]) -> SDUNetConfig:
        """The UNet that its config.json describes; raises UserError for another network's."""
        return SDUNetConfig.from_json(given)

    def load_unet(self, folder: Path, wanted: PyTree) -> PyTree:
        """The UNet's parameters of the shapes `wanted`; raises UserError as `published.load`."""
        return published.load(folder, wanted)


@settings
class LatentDiffusion(NetPrior):
    """A prior whose networks a folder in the layout of diffusers describes."""

    NETS: ClassVar[type[StableDiffusionNets]] = StableDiffusionNets
    EXAMPLE: ClassVar[str] = "stable-diffusion-v1-5/stable-diffusion-v1-5"

    weights: str = ""  # a folder in the layout of diffusers, or a repository id, fetched once
    lora: str = ""  # a safetensors file of a LoRA, of diffusers or kohya, merged when loading
    lora_scale: LoraScale = 1.0  # how much of it
    dtype: Dtype = "float32"  # of the activations; float16 for GPUs, bfloat16 for TPUs
    remat: bool = False  # gradients recompute activations: less memory, more time
    fused: bool = False  # cuDNN's attention in the UNet: NVIDIA GPUs, half precision
    cheap_encoder: bool = True  # fit the cheap way to encode when loading; drawing needs none

    def __post_init__(self):
        if self.fused and self.dtype == "float32":
            raise UserError("fused attention is for half precision; dtype is 'float32'")

    @functools.cached_property
    def folder(self) -> Path:
        """The folder of the model; raises UserError for one that cannot be had."""
        if not self.weights:
            raise UserError(
                f"{type(self).__name__} needs weights: name a folder or a repository id, as "
                f"--config.prior.weights={self.EXAMPLE}"
            )
        return published.find(self.weights, PARTS)

    @functools.cached_property
    def net(self) -> StableDiffusionNets:
        """The networks that the folder describes; raises UserError for another model's."""
        return describe(self.folder, self.dtype, self.remat, self.fused, self.NETS)

    def load(self) -> PyTree:
        """Float32 parameters; raises UserError for what is missing, damaged or does not fit."""
        shapes, tower = weights.shapes_of(self.net), self.net.text
        text = self.folder / "text_encoder"
        # A tokenizer that cannot be used is told before minutes are spent on tensors.
        tokenizer = Path(self.net.tokenizer)
        token_ids(tokenizer, ("a",), tower.max_position_embeddings, tower.vocab_size)
        params = {
            "unet": self.net.load_unet(self.folder / "unet", shapes["unet"]),
            "vae": published.load(self.folder / "vae", shapes["vae"]),
            # CLIPTextModelWithProjection's, which the UNet is not told.
            "text": published.load(
                text, shapes["text"], "text_model.", ("text_projection.weight",)
            ),
        }
        if self.lora:
            params = lora_files.merge_file(weights.resolved(self.lora), params, self.lora_scale)
        if self.cheap_encoder:
            params["rgb_to_latent"] = fit_rgb_to_latent(self.net, params)
        return params


@settings
class StableDiffusion(LatentDiffusion):
    """Stable Diffusion 1.x or 2.x, or a model of the same layout, as published for diffusers."""

    interpolate_views: bool = False  # mix the texts of front, side and back by azimuth

    def embed(self, params: PyTree, prompt: Prompt) -> words.ViewTexts:
        """The texts of all views; raises UserError for a prompt without a word in it."""
        read = functools.partial(self.embed_texts, params)
        return words.embed_views(read, prompt, words.PAPER_VIEWS)

    def condition(self, embedded: words.ViewTexts, views: Views) -> Conditions:
        """Each view's own text, of the nearest name or mixed, whatever it shows."""
        return words.condition(embedded, views, words.PAPER_VIEWS, self.interpolate_views)

    def init_adapter(self, key: Key[Array, ""], params: PyTree, rank: int) -> PyTree:
        """A LoRA on the UNet's attention and an embedding of cameras, which change nothing yet."""
        key_lora, key_camera = jax.random.split(key)
        embedding = CameraEmbedding(self.net.unet)
        camera = embedding.init(key_camera, jnp.zeros((1, CAMERA_DIM)))["params"]
        silent = jax.tree.map(jnp.zeros_like, camera["linear_2"])
        return {
            "lora": lora.init(key_lora, params["unet"], rank, _in_attention),
            "camera_embedding": {**camera, "linear_2": silent},
        }

    def predict_adapted(
        self,
        params: PyTree,
        adapter: PyTree,
        z_t: Float[Array, "b s s c"],
        t: Int[Array, " b"],
        condition: Text,
        camera: Float[Array, "b k"],
    ) -> Float[Array, "b s s c"]:
        """`predict` with the adapter's changes to the UNet, which is told cameras [B, 16]."""
        unet = lora.merge(params["unet"], adapter["lora"])
        unet |= {"camera_embedding": adapter["camera_embedding"]}
        return self.net.predict({**params, "unet": unet}, z_t, t, condition, camera)


def _in_attention(module: lora.Path) -> bool:
    return "attn1" in module or "attn2" in module


@functools.partial(jax.jit, static_argnums=0)
def _token_embeddings(
    config: CLIPTextConfig, params: PyTree, ids: Int[Array, "n l"]
) -> Float[Array, "n l d"]:
    """CLIP's final token embeddings; compiled once for all texts."""
    return cast(TextStates, CLIPText(config).apply({"params": params}, ids)).last


def describe(
    folder: Path,
    dtype: str,
    remat: bool,
    fused: bool,
    nets: type[StableDiffusionNets] = StableDiffusionNets,
) -> StableDiffusionNets:
    """The model that a folder's configs describe; raises UserError for one that is not `nets`."""
    published.pipeline_of(folder, nets.PIPELINE)
    ours = {"dtype": dtype, "remat": remat}
    unet = published.read_config(folder / "unet", nets.read_unet)
    vae = published.read_config(folder / "vae", VAEConfig.from_json)
    text = published.read_config(folder / "text_encoder", CLIPTextConfig.from_json)
    _check_together(folder, unet, vae, text)
    schedule, prediction = read_schedule(folder)
    return nets(
        unet=replace(unet, fused=fused, **ours),
        vae=replace(vae, **ours),
        text=text,
        schedule=schedule,
        prediction=prediction,
        tokenizer=str(folder / "tokenizer"),
    )


def _check_together(folder: Path, unet: SDUNetConfig, vae: VAEConfig, text: CLIPTextConfig) -> None:
    """Raise UserError where the parts are not a text-to-image model's, each fitting the next."""
    latents, more = vae.latent_channels, unet.in_channels - vae.latent_channels
    if unet.in_channels == 2 * latents + 1:
        raise UserError(
            f"{folder} is an inpainting model: its UNet takes {unet.in_channels} channels, the "
            f"masked picture and the mask among them; expected a text-to-image model's {latents}"
        )
    if more or unet.out_channels != latents:
        raise UserError(
            f"{folder}: the UNet maps {unet.in_channels} channels to {unet.out_channels}; "
            f"expected {latents} both, as the VAE's latents have"
        )
    check_pictures(folder, unet, vae)
    if unet.cross_attention_dim != text.hidden_size:
        raise UserError(
            f"{folder}: the UNet reads texts of cross_attention_dim {unet.cross_attention_dim}; "
            f"the text encoder's hidden_size is {text.hidden_size}"
        )


def check_pictures(folder: Path, unet: SDUNetConfig, vae: VAEConfig) -> None:
    """Raise UserError where the parts are of no pictures, or of pictures of no possible size."""
    if (vae.in_channels, vae.out_channels) != (3, 3):
        raise UserError(f"{folder}: the VAE's pictures have {vae.in_channels} channels: expected 3")
    if unet.sample_size % unet.multiple:
        raise UserError(
            f"{folder}: the UNet's sample_size {unet.sample_size} must divide by {unet.multiple}"
        )
    if unet.sample_size * vae.multiple > LARGEST_PICTURE:
        raise UserError(
            f"{folder}: pictures of {unet.sample_size * vae.multiple} pixels a side: expected at "
            f"most {LARGEST_PICTURE}"
        )


@settings
class Noise:
    """What `scheduler_config.json` says of the noise; how diffusers samples is left."""

    num_train_timesteps: Annotated[int, Range(2, 100_000)]
    beta_start: Beta
    beta_end: Beta
    beta_schedule: Literal["scaled_linear", "linear"]
    prediction_type: Literal["epsilon", "v_prediction"] = "epsilon"
    rescale_betas_zero_snr: bool = False
    trained_betas: None = None


def _read_noise(path: Path) -> Noise:
    plain = published.read_json(path)
    names = {field.name: field for field in dataclasses.fields(Noise)}
    lacking = [n for n in names if n not in plain and names[n].default is dataclasses.MISSING]
    if lacking:
        raise UserError(f"{path.parent.parent}: {path.name} lacks {lacking[0]!r}")
    try:
        return Noise(**{name: plain[name] for name in names if name in plain})
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def read_schedule(folder: Path) -> tuple[Schedule, str]:
    """The noise schedule of a model's folder, and what its UNet predicts; raises UserError."""
    noise = _read_noise(folder / "scheduler" / "scheduler_config.json")
    make = {"scaled_linear": schedules.scaled_linear, "linear": schedules.linear}
    schedule = make[noise.beta_schedule](
        noise.num_train_timesteps, noise.beta_start, noise.beta_end
    )
    if noise.rescale_betas_zero_snr:
        try:
            schedule = schedules.zero_terminal_snr(schedule)
        except UserError as error:
            raise UserError(f"{folder}: {error}") from error
    return schedule, PREDICTIONS[noise.prediction_type]


def fit_rgb_to_latent(nets: StableDiffusionNets, params: PyTree) -> Float[Array, "4 c"]:
    """The affine map of colours in [-1, 1] to latents, by least squares on 27 flat pictures."""
    ends = jnp.linspace(0.0, 1.0, 3)
    rgb = jnp.stack(jnp.meshgrid(ends, ends, ends), -1).reshape(-1, 3)
    size = 8 * 2 ** (len(nets.vae.block_out_channels) - 1)
    flat = jnp.broadcast_to(2 * rgb[:, None, None] - 1, (len(rgb), size, size, 3))
    vae = AutoencoderKL(nets.vae)
    encode = jax.jit(functools.partial(vae.apply, method="encode"))
    mean, _ = encode({"params": params["vae"]}, flat)
    latent = nets.vae.scaling_factor * mean.astype(jnp.float32).mean((1, 2))
    colors = np.concatenate([2 * np.asarray(rgb) - 1, np.ones((len(rgb), 1))], -1)
    return jnp.asarray(np.linalg.lstsq(colors, np.asarray(latent), rcond=None)[0], jnp.float32)
