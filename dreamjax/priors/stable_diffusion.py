"""Stable Diffusion 1.x and 2.x as a prior (latent diffusion, arXiv 2112.10752).

Symbols: rgb [B, H, W, 3] in [0, 1]; z_0 [B, h, w, 4] scaled latents, of 1 / 8 the image's size.
Everything about a model comes from its folder (`priors.published`): its networks' sizes, the
schedule, what the UNet predicts, and the tokenizer.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, PyTree

from dreamjax.diffusion import schedule as schedules
from dreamjax.diffusion.process import eps_from_v
from dreamjax.diffusion.reverse import Parameterisation, unclipped
from dreamjax.diffusion.schedule import Schedule
from dreamjax.errors import UserError
from dreamjax.nets.stable_diffusion.clip import CLIPText, CLIPTextConfig
from dreamjax.nets.stable_diffusion.unet import SDUNet, SDUNetConfig
from dreamjax.nets.stable_diffusion.vae import AutoencoderKL, VAEConfig
from dreamjax.nets.text import Text
from dreamjax.priors import published
from dreamjax.priors.base import PAPER_VIEWS, decode_pixels, encode_pixels
from dreamjax.priors.clip import token_ids

PARTS = ("unet", "vae", "text_encoder")
DTYPES = ("float32", "bfloat16")
PREDICTIONS = {"epsilon": "eps", "v_prediction": "v"}


@dataclasses.dataclass(frozen=True)
class StableDiffusion:
    """A latent text-to-image diffusion model (the interface of `priors.base.Prior`).

    Its parameters are {"unet", "vae", "text"} and, for `encode_linear` alone, "rgb_to_latent"
    (`fit_rgb_to_latent`); `tokenizer` is a folder.
    """

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
    def view_names(self) -> tuple[tuple[float, tuple[str, ...]], ...]:
        """What it calls views: the paper's words."""
        return PAPER_VIEWS

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
        x, z = jnp.zeros((1, size, size, 3)), jnp.zeros((1, *self.shape))
        tokens = jnp.zeros((1, 1, self.unet.cross_attention_dim))
        nets = {
            "text": CLIPText(self.text).init(keys[0], ids),
            "vae": AutoencoderKL(self.vae).init(keys[1], x),
            "unet": SDUNet(self.unet).init(keys[2], z, jnp.zeros(1, jnp.int32), tokens),
        }
        return {name: variables["params"] for name, variables in nets.items()}

    def embed(self, params: PyTree, prompts: Sequence[str]) -> Text:
        """CLIP's final token embeddings [N, L, D]; longer texts are cut, as in the published code.

        Padding counts as text here (the mask is True everywhere): the model was trained so.
        """
        ids = token_ids(Path(self.tokenizer), prompts, self.text.max_position_embeddings)
        read = jax.jit(CLIPText(self.text).apply)
        tokens = read({"params": params["text"]}, jnp.asarray(ids)).last
        return Text(tokens, jnp.ones(ids.shape, bool))

    def encode(
        self, params: PyTree, rgb: Float[Array, "b h w 3"], key: Key[Array, ""]
    ) -> Float[Array, "b s s c"]:
        """Scaled latents, drawn from the encoder's distribution at `image_size`."""
        x = encode_pixels(rgb, self.image_size)
        vae = AutoencoderKL(self.vae)
        mean, log_var = vae.apply({"params": params["vae"]}, x, method="encode")
        noise = jax.random.normal(key, mean.shape)
        return self.vae.scaling_factor * (mean + jnp.exp(0.5 * log_var) * noise)

    def encode_linear(
        self, params: PyTree, rgb: Float[Array, "b h w 3"], key: Key[Array, ""]
    ) -> Float[Array, "b s s c"]:
        """Latents by the affine map of colours that is nearest to the encoder; `key` is not used.

        A thousandth of `encode`'s work, and right for flat colours only: for the first part of a
        run, when there is no detail to encode.
        """
        x = encode_pixels(rgb, self.unet.sample_size)
        ones = jnp.ones((*x.shape[:-1], 1))
        return jnp.concatenate([x, ones], -1) @ params["rgb_to_latent"]

    def decode(self, params: PyTree, z_0: Float[Array, "b s s c"]) -> Float[Array, "b h w 3"]:
        """Pictures in [0, 1] of scaled latents."""
        z = z_0 / self.vae.scaling_factor
        x = AutoencoderKL(self.vae).apply({"params": params["vae"]}, z, method="decode")
        return decode_pixels(x.astype(jnp.float32))

    def output(
        self, params: PyTree, z_t: Float[Array, "b s s c"], t: Int[Array, " b"], text: Text
    ) -> Float[Array, "b s s c"]:
        """The UNet's own output, eps or v."""
        return SDUNet(self.unet).apply({"params": params["unet"]}, z_t, t, text.tokens)

    def predict_eps(
        self, params: PyTree, z_t: Float[Array, "b s s c"], t: Int[Array, " b"], text: Text
    ) -> Float[Array, "b s s c"]:
        """eps_hat, whatever the UNet predicts."""
        output = self.output(params, z_t, t, text).astype(jnp.float32)
        return output if self.prediction == "eps" else eps_from_v(self.schedule, z_t, t, output)


def load(
    model: str, dtype: str = "float32", remat: bool = False, fused: bool = False
) -> tuple[StableDiffusion, PyTree]:
    """A published model from a folder or a repository id, with float32 parameters.

    `dtype` is that of the networks' activations; with `remat` gradients recompute them; `fused` is
    cuDNN's attention in the UNet. Raises UserError for what cannot be read or is no Stable
    Diffusion 1.x or 2.x.
    """
    folder = published.find(model, PARTS)
    prior = describe(folder, dtype, remat, fused)
    shapes = jax.eval_shape(prior.init, jax.random.key(0))
    params = {
        "unet": published.load(folder / "unet", shapes["unet"]),
        "vae": published.load(folder / "vae", shapes["vae"]),
        "text": published.load(folder / "text_encoder", shapes["text"], strip="text_model."),
    }
    return prior, params


def describe(folder: Path, dtype: str, remat: bool, fused: bool) -> StableDiffusion:
    """The model that a folder's configs describe; raises UserError for one that this is not."""
    index = published.read_json(folder / "model_index.json")
    kind = index.get("_class_name", "")
    if kind != "StableDiffusionPipeline":
        raise UserError(
            f"{folder} is a {kind or 'model of no kind'}, not a StableDiffusionPipeline"
        )
    configs = {part: published.read_json(folder / part / "config.json") for part in PARTS}
    settings = published.read_json(folder / "scheduler" / "scheduler_config.json")
    name = settings.get("prediction_type", "epsilon")
    if name not in PREDICTIONS:
        raise UserError(f"{folder}: prediction_type is {name!r}: expected {', '.join(PREDICTIONS)}")
    if dtype not in DTYPES:
        raise UserError(f"dtype is {dtype!r}: expected one of {', '.join(DTYPES)}")
    ours = {"dtype": dtype, "remat": remat}
    return StableDiffusion(
        unet=replace(SDUNetConfig.from_json(configs["unet"]), fused=fused, **ours),
        vae=replace(VAEConfig.from_json(configs["vae"]), **ours),
        text=CLIPTextConfig.from_json(configs["text_encoder"]),
        schedule=_schedule(folder, settings),
        prediction=PREDICTIONS[name],
        tokenizer=str(folder / "tokenizer"),
    )


def _schedule(folder: Path, settings: Mapping[str, Any]) -> Schedule:
    known = {"scaled_linear": schedules.scaled_linear, "linear": schedules.linear}
    name = settings.get("beta_schedule")
    if name not in known or settings.get("trained_betas") is not None:
        raise UserError(f"{folder}: beta_schedule is {name!r}: expected {', '.join(known)}")
    try:
        numbers = [settings[key] for key in ("num_train_timesteps", "beta_start", "beta_end")]
    except KeyError as error:
        raise UserError(f"{folder}: scheduler_config.json lacks {error}") from error
    schedule = known[name](*numbers)
    zero_snr = settings.get("rescale_betas_zero_snr", False)
    return schedules.zero_terminal_snr(schedule) if zero_snr else schedule


def fit_rgb_to_latent(prior: StableDiffusion, params: PyTree) -> Float[Array, "4 c"]:
    """The affine map of colours in [-1, 1] to latents, by least squares on 27 flat pictures."""
    ends = jnp.linspace(0.0, 1.0, 3)
    rgb = jnp.stack(jnp.meshgrid(ends, ends, ends), -1).reshape(-1, 3)
    size = 8 * 2 ** (len(prior.vae.block_out_channels) - 1)
    flat = jnp.broadcast_to(2 * rgb[:, None, None] - 1, (len(rgb), size, size, 3))
    vae = AutoencoderKL(prior.vae)
    encode = jax.jit(lambda x: vae.apply({"params": params["vae"]}, x, method="encode")[0])
    latent = prior.vae.scaling_factor * encode(flat).astype(jnp.float32).mean((1, 2))
    colors = np.concatenate([2 * np.asarray(rgb) - 1, np.ones((len(rgb), 1))], -1)
    return jnp.asarray(np.linalg.lstsq(colors, np.asarray(latent), rcond=None)[0], jnp.float32)
