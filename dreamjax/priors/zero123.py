"""Zero123 (arXiv 2303.11328), Zero123-XL and Stable Zero123: views of the object in a picture.

Stable Diffusion's UNet is given the picture in place of a text: its latents beside the noisy ones,
as the autoencoder has them (the mode, not scaled), and one token, a linear layer's reading of
CLIP's image feature and of how the camera has moved from the picture's, four numbers:

    polar - polar_0, sin(azimuth - azimuth_0), cos(azimuth - azimuth_0), distance - distance_0

in radians and scene units, polar being the angle from straight above. Stable Zero123's last number
is polar_0 instead. Without a condition latents and token are zero.

Symbols: z_0 [B, h, w, 4] scaled latents; D channels of the token.
"""

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, PyTree

from dreamjax import weights
from dreamjax.diffusion.reverse import Parameterisation, unclipped
from dreamjax.diffusion.schedule import Schedule
from dreamjax.errors import UserError
from dreamjax.nets.stable_diffusion.clip import CLIPVisionConfig
from dreamjax.nets.stable_diffusion.settings import whole
from dreamjax.nets.stable_diffusion.unet import SDUNet, SDUNetConfig
from dreamjax.nets.stable_diffusion.vae import AutoencoderKL, VAEConfig
from dreamjax.nets.zero123 import ImageEncoder
from dreamjax.priors import published
from dreamjax.priors.base import Conditions, Prompt, encode_pixels
from dreamjax.priors.clip import MEAN, STD
from dreamjax.priors.stable_diffusion import (
    check_pictures,
    decode_latents,
    encode_latents,
    read_schedule,
)
from dreamjax.scene.camera import Camera
from dreamjax.scene.views import Views
from dreamjax.settings import Dtype, settings

PARTS = ("unet", "vae", "image_encoder")
# By the name of the published pipeline: the folder of the linear layer, and the layer's name.
PROJECTIONS = {
    "Zero1to3StableDiffusionPipeline": ("cc_projection", "projection"),
    "Zero123Pipeline": ("clip_camera_projection", "proj"),
}
POSE = 4  # numbers
CUBIC = -0.75  # PyTorch's cubic kernel; JAX's is of -0.5


class EmbeddedPicture(NamedTuple):
    """What the network is given of the picture: the token is `token` + a pose times `pose`."""

    token: Float[Array, " d"]
    pose: Float[Array, "4 d"]
    latents: Float[Array, "h w c"]
    camera: Camera


class Condition(NamedTuple):
    """What the UNet is given beside z_t and t, a row an example."""

    token: Float[Array, "b d"]
    latents: Float[Array, "b h w c"]


@dataclasses.dataclass(frozen=True)
class Zero123Nets:
    """The networks that a folder describes; `projection` is a name in `PROJECTIONS`' values."""

    unet: SDUNetConfig
    vae: VAEConfig
    vision: CLIPVisionConfig
    feature_dim: int
    schedule: Schedule
    prediction: str
    projection: tuple[str, str]

    @property
    def image_size(self) -> int:
        """H = W in pixels."""
        return self.unet.sample_size * self.vae.multiple

    def init(self, key: Key[Array, ""]) -> PyTree:
        """Random parameters by part, in the shapes of the published ones."""
        keys = jax.random.split(key, 4)
        size, side, width = self.unet.sample_size, self.vision.image_size, self.feature_dim
        x = jnp.zeros((1, self.vae.multiple, self.vae.multiple, 3))
        z = jnp.zeros((1, size, size, self.unet.in_channels))
        tokens = jnp.zeros((1, 1, width))
        encoder = ImageEncoder(self.vision, width)
        nets = {
            "vae": AutoencoderKL(self.vae).init(keys[0], x),
            "unet": SDUNet(self.unet).init(keys[1], z, jnp.zeros(1, jnp.int32), tokens),
            "image_encoder": encoder.init(keys[2], jnp.zeros((1, side, side, 3))),
        }
        params = {name: variables["params"] for name, variables in nets.items()}
        folder, layer = self.projection
        kernel = jax.random.normal(keys[3], (width + POSE, width)) / width**0.5
        return {**params, folder: {layer: {"kernel": kernel, "bias": jnp.zeros(width)}}}


@settings
class Zero123:
    """Zero123, Zero123-XL or Stable Zero123, as published for diffusers; needs an image."""

    weights: str = ""  # a folder in the layout of diffusers, or a repository id, fetched once
    stable: bool = False  # true for Stable Zero123, whose poses are given in another way
    dtype: Dtype = "float32"  # of the activations; float16 for GPUs, bfloat16 for TPUs
    remat: bool = False  # gradients recompute activations: less memory, more time
    fused: bool = False  # cuDNN's attention in the UNet: NVIDIA GPUs, half precision

    reads_images: ClassVar[bool] = True

    def __post_init__(self):
        if self.fused and self.dtype == "float32":
            raise UserError("fused attention is for half precision; dtype is 'float32'")

    @functools.cached_property
    def net(self) -> Zero123Nets:
        """The networks that the weights are of; raises UserError for another model's."""
        if not self.weights:
            raise UserError(
                "Zero123 needs weights: name a folder or a repository id, as "
                "--config.prior.weights=kxic/zero123-xl"
            )
        folder = published.find(self.weights, ())
        return describe(folder, self.dtype, self.remat, self.fused)

    @functools.cached_property
    def folder(self) -> Path:
        """The folder of the model; raises UserError for one that cannot be had."""
        return published.find(self.weights, (*PARTS, self.net.projection[0]))

    @property
    def schedule(self) -> Schedule:
        """The noise schedule that the UNet was trained on."""
        return self.net.schedule

    @property
    def parameterisation(self) -> Parameterisation:
        """What the UNet's output stands for; latents are not clipped."""
        return Parameterisation(self.net.prediction, "fixed_small", unclipped)

    @property
    def image_size(self) -> int:
        """H = W in pixels, 8 times the latents'."""
        return self.net.image_size

    @property
    def shape(self) -> tuple[int, int, int]:
        """h, w, c of the latents."""
        unet = self.net.unet
        return (unet.sample_size, unet.sample_size, unet.out_channels)

    def load(self) -> PyTree:
        """Float32 parameters of UNet and autoencoder; `embed` reads the others and frees them.

        Raises UserError for what is missing, damaged or does not fit.
        """
        shapes = weights.shapes_of(self.net)
        return {part: published.load(self.folder / part, shapes[part]) for part in ("unet", "vae")}

    def embed(self, params: PyTree, prompt: Prompt) -> EmbeddedPicture:
        """What the network is given of the prompt's picture; its text names the object alone.

        Raises UserError for a prompt without a picture, for a negative prompt, and as `load`.
        """
        if prompt.image is None:
            raise UserError(
                "Zero123 is given a picture, not words: name one, as --config.image=FILE"
            )
        if prompt.negative.strip():
            raise UserError("negative_prompt is set, but Zero123 reads no texts")
        net, shapes = self.net, weights.shapes_of(self.net)
        part, layer = net.projection
        encoder = published.load(self.folder / "image_encoder", shapes["image_encoder"])
        linear = published.load(self.folder / part, shapes[part])[layer]
        size = self.image_size
        rgb = jax.image.resize(jnp.asarray(prompt.image.rgb), (size, size, 3), "linear")[None]
        feature = _image_feature(net, encoder, rgb)[0]
        kernel = linear["kernel"]
        read = jnp.matmul(feature, kernel[:-POSE], precision=jax.lax.Precision.HIGHEST)
        latents = _latents(net.vae, params["vae"], 2.0 * rgb - 1.0)[0]
        return EmbeddedPicture(read + linear["bias"], kernel[-POSE:], latents, prompt.image.camera)

    def condition(self, embedded: EmbeddedPicture, views: Views) -> Conditions:
        """The picture and how each view's camera has moved from it; zeros without a condition."""
        pose = relative_pose(views.camera, embedded.camera, self.stable)
        read = jnp.matmul(pose, embedded.pose, precision=jax.lax.Precision.HIGHEST)
        latents = jnp.broadcast_to(embedded.latents, (len(pose), *embedded.latents.shape))
        cond = Condition(embedded.token + read, latents)
        return Conditions(cond, jax.tree.map(jnp.zeros_like, cond))

    def encode(
        self,
        params: PyTree,
        rgb: Float[Array, "b h w 3"],
        keys: Key[Array, " b"],
        cheap: bool = False,
    ) -> Float[Array, "b s s c"]:
        """Scaled latents, drawn from the encoder's distribution; there is no cheap way."""
        x = encode_pixels(rgb, self.image_size)
        return encode_latents(self.net.vae, params["vae"], x, keys)

    def decode(self, params: PyTree, z_0: Float[Array, "b s s c"]) -> Float[Array, "b h w 3"]:
        """Pictures in [0, 1] of scaled latents."""
        return decode_latents(self.net.vae, params["vae"], z_0)

    def predict(
        self,
        params: PyTree,
        z_t: Float[Array, "b s s c"],
        t: Int[Array, " b"],
        condition: Condition,
    ) -> Float[Array, "b s s c"]:
        """The UNet's output."""
        both = jnp.concatenate([z_t, condition.latents], axis=-1)
        unet, tokens = SDUNet(self.net.unet), condition.token[:, None]
        return cast(Array, unet.apply({"params": params["unet"]}, both, t, tokens))


def relative_pose(camera: Camera, reference: Camera, stable: bool) -> Float[Array, "v 4"]:
    """How V cameras have moved from the picture's, in the four numbers above."""
    polar = jnp.deg2rad(reference.elevation - camera.elevation)
    azimuth = jnp.deg2rad(camera.azimuth - reference.azimuth)
    if stable:
        last = jnp.full_like(polar, jnp.deg2rad(90.0 - reference.elevation))
    else:
        there, here = (jnp.linalg.norm(c.position, axis=-1) for c in (camera, reference))
        last = there - here
    return jnp.stack([polar, jnp.sin(azimuth), jnp.cos(azimuth), last], axis=-1)


def clip_images(rgb: Float[Array, "b h h 3"], size: int) -> Float[Array, "b size size 3"]:
    """Square pictures in [0, 1] as the image encoder takes them: resized and normalised.

    As published, and not as CLIP's own preprocessing: bicubic, not smoothed, with the corner
    pixels' centres in the corners.
    """
    resize = jnp.asarray(bicubic(rgb.shape[1], size), jnp.float32)
    found = jnp.einsum("ih,jw,bhwc->bijc", resize, resize, rgb, precision=jax.lax.Precision.HIGHEST)
    return (found - jnp.array(MEAN)) / jnp.array(STD)


def bicubic(before: int, after: int) -> Float[np.ndarray, "after before"]:
    """The matrix that resizes rows, aligned at their end pixels, which go on beyond the ends."""
    place = np.arange(after) * ((before - 1) / max(after - 1, 1))
    first = np.floor(place)
    matrix = np.zeros((after, before))
    for offset in (-1, 0, 1, 2):
        d = np.abs(place - first - offset)
        near = ((CUBIC + 2) * d - (CUBIC + 3)) * d**2 + 1
        far = CUBIC * (((d - 5) * d + 8) * d - 4)
        column = np.clip(first + offset, 0, before - 1).astype(int)
        matrix[np.arange(after), column] += np.where(d <= 1, near, far)
    return matrix


@functools.partial(jax.jit, static_argnums=0)
def _image_feature(net: Zero123Nets, params: PyTree, rgb: Float[Array, "b h h 3"]) -> Array:
    encoder = ImageEncoder(net.vision, net.feature_dim)
    images = clip_images(rgb, net.vision.image_size)
    return cast(Array, encoder.apply({"params": params}, images)).astype(jnp.float32)


@functools.partial(jax.jit, static_argnums=0)
def _latents(vae: VAEConfig, params: PyTree, x: Float[Array, "b h h 3"]) -> Array:
    """The mode of the encoder's distribution, not scaled."""
    found = AutoencoderKL(vae).apply({"params": params}, x, method="encode")
    return cast(tuple[Array, Array], found)[0].astype(jnp.float32)


def describe(folder: Path, dtype: str, remat: bool, fused: bool) -> Zero123Nets:
    """The model that a folder's configs describe; raises UserError for one that this is not."""
    kind = published.pipeline_of(folder, *PROJECTIONS)
    ours = {"dtype": dtype, "remat": remat}
    unet = published.read_config(folder / "unet", SDUNetConfig.from_json)
    vae = published.read_config(folder / "vae", VAEConfig.from_json)
    encoder = folder / "image_encoder"
    vision = published.read_config(encoder, CLIPVisionConfig.from_json)
    feature_dim = published.read_config(encoder, _feature_dim)
    _check_together(folder, unet, vae, feature_dim)
    schedule, prediction = read_schedule(folder)
    return Zero123Nets(
        unet=dataclasses.replace(unet, fused=fused, **ours),
        vae=dataclasses.replace(vae, **ours),
        vision=dataclasses.replace(vision, **ours),
        feature_dim=feature_dim,
        schedule=schedule,
        prediction=prediction,
        projection=PROJECTIONS[kind],
    )


def _feature_dim(config: Mapping[str, Any]) -> int:
    return whole(config, "projection_dim", 512)


def _check_together(folder: Path, unet: SDUNetConfig, vae: VAEConfig, feature_dim: int) -> None:
    """Raise UserError where the parts do not fit each other."""
    latents = vae.latent_channels
    if (unet.in_channels, unet.out_channels) != (2 * latents, latents):
        raise UserError(
            f"{folder}: the UNet maps {unet.in_channels} channels to {unet.out_channels}; expected "
            f"{2 * latents} and {latents}, noisy latents and the picture's beside each other"
        )
    check_pictures(folder, unet, vae)
    if unet.cross_attention_dim != feature_dim:
        raise UserError(
            f"{folder}: the UNet reads tokens of cross_attention_dim {unet.cross_attention_dim}; "
            f"the image encoder's projection_dim is {feature_dim}"
        )
