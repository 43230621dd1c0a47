"""Zero123 against diffusers and transformers: what they make of a picture, a pose and noise.

The published pipeline is spelt out in PyTorch here, in float64, from its parts: the autoencoder's
mode, not scaled; CLIP's image features; the linear layer; the UNet on both latents beside each
other; zeros without a condition.
"""

import functools
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamjax import weights
from dreamjax.diffusion.schedule import scaled_linear
from dreamjax.errors import UserError
from dreamjax.priors import published, zero123
from dreamjax.priors.base import Picture, Prompt
from dreamjax.priors.zero123 import Zero123, clip_images
from dreamjax.scene.camera import orbit
from dreamjax.scene.views import Views

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")
from diffusers import UNet2DConditionModel  # noqa: E402
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection  # noqa: E402

from . import tiny_zero123  # noqa: E402
from .test_sd_unet import SD15  # noqa: E402
from .test_sd_vae import SD15 as SD15_VAE  # noqa: E402
from .torch_random import nchw, nhwc  # noqa: E402

pytestmark = [
    pytest.mark.slow,
    pytest.mark.usefixtures("quick_compilation"),
    pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning"),
]
REFERENCE = orbit(0.0, 15.0, 3.1, 1.3)
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
KINDS = sorted(tiny_zero123.LAYOUTS)


@pytest.fixture(scope="module", params=KINDS)
def tiny(request, tmp_path_factory):
    return tiny_zero123.make(tmp_path_factory.mktemp("zero123"), request.param)


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    return tiny_zero123.make(tmp_path_factory.mktemp("zero123"), KINDS[0])


def near(got, wanted):
    error = np.abs(np.float64(got) - wanted).max() / np.abs(wanted).max()
    print(f"relative error {error:.1e}")
    return got.shape == wanted.shape and error < 1e-4


def picture(size=64):
    rng = np.random.default_rng(3)
    rgb = np.float32(rng.uniform(size=(size, size, 3)))
    return Picture(rgb, np.ones((size, size), np.float32), REFERENCE)


def views_at(azimuth, elevation, distance):
    camera = jax.vmap(lambda a, e, d: orbit(a, e, d, 1.3))(
        *map(jnp.float32, (azimuth, elevation, distance))
    )
    zeros = jnp.zeros(len(azimuth))
    return Views(camera, jnp.arange(len(azimuth)), zeros, zeros)


def clip_pixels(rgb, size):
    """What the published pipeline shows CLIP, of pictures [B, H, W, 3] in [0, 1]."""
    x = torch.nn.functional.interpolate(
        2.0 * nchw(rgb) - 1.0, (size, size), mode="bicubic", align_corners=True
    )
    mean, std = (torch.tensor(v, dtype=torch.float64).view(1, 3, 1, 1) for v in (MEAN, STD))
    return ((x + 1.0) / 2.0 - mean) / std


def published_eps(tiny, rgb, pose, z_t, t):
    """The published pipeline's two predictions, with the condition and without."""
    module = {name: getattr(tiny, name).double() for name in ("unet", "vae", "encoder")}
    pose, t = torch.from_numpy(pose), torch.from_numpy(t)
    with torch.no_grad():
        feature = module["encoder"](clip_pixels(rgb, 28)).image_embeds
        told = torch.cat([feature.expand(len(pose), -1), pose], -1)[:, None]
        token = tiny.projection.double()(told)
        latents = module["vae"].encode(2.0 * nchw(rgb) - 1.0).latent_dist.mode()
        latents = latents.expand(len(pose), -1, -1, -1)
        found = [
            module["unet"](torch.cat([nchw(z_t), a], 1), t, b).sample
            for a, b in ((latents, token), (0 * latents, 0 * token))
        ]
    return token[:, 0].numpy(), nhwc(latents), [nhwc(eps) for eps in found]


@pytest.mark.parametrize("stable", [False, True])
def test_what_the_unet_is_given_and_says_agrees_with_the_published_pipeline(tiny, stable):
    prior = Zero123(weights=str(tiny.folder), stable=stable)
    params = prior.load()
    azimuth, elevation = np.array([0.0, 70.0, -140.0]), np.array([15.0, -10.0, 60.0])
    distance = np.array([3.1, 2.5, 3.4])
    views = views_at(azimuth, elevation, distance)
    embedded = prior.embed(params, Prompt("", image=picture()))
    conditions = prior.condition(embedded, views)
    rng = np.random.default_rng(4)
    z_t, t = np.float32(rng.normal(size=(3, 8, 8, 4))), np.array([3, 500, 980])
    got = [
        jax.jit(prior.predict)(params, z_t, jnp.int32(t), c)
        for c in (conditions.cond, conditions.uncond)
    ]
    last = np.full(3, np.radians(90.0 - 15.0)) if stable else distance - 3.1
    moved = np.radians(azimuth)
    pose = np.stack([np.radians(15.0 - elevation), np.sin(moved), np.cos(moved), last], -1)
    token, latents, wanted = published_eps(tiny, picture().rgb[None], pose, z_t, t)
    assert near(conditions.cond.token, token) and near(conditions.cond.latents, latents)
    assert near(got[0], wanted[0]) and near(got[1], wanted[1])
    assert np.abs(wanted[0] - wanted[1]).max() > 0.02  # the condition is heard


def test_latents_are_the_published_ones_and_decoded_back(one):
    prior = Zero123(weights=str(one.folder))
    params = prior.load()
    rgb = np.float32(np.random.default_rng(5).uniform(size=(2, 64, 64, 3)))
    keys = jax.random.split(jax.random.key(0), 2)
    z_0 = jax.jit(prior.encode)(params, rgb, keys)
    with torch.no_grad():
        found = one.vae.double().encode(2.0 * nchw(rgb) - 1.0).latent_dist
        noise = np.stack([jax.random.normal(key, (8, 8, 4)) for key in keys])
        wanted = one.vae.config.scaling_factor * (found.mean + found.std * nchw(noise))
        back = one.vae.decode(wanted / one.vae.config.scaling_factor).sample
    assert near(z_0, nhwc(wanted))
    rgb = prior.decode(params, jnp.float32(nhwc(wanted)))
    np.testing.assert_allclose(rgb, np.clip(nhwc(back) / 2 + 0.5, 0, 1), atol=1e-4)
    rough = functools.partial(prior.encode, cheap=True)
    smaller = jax.eval_shape(rough, params, jnp.zeros((2, 20, 20, 3)), keys)
    assert smaller.shape == (2, *prior.shape) == (2, 8, 8, 4)


@pytest.mark.parametrize(("before", "after"), [(256, 224), (64, 28), (20, 33)])
def test_clips_pixels_are_the_published_ones(before, after):
    rgb = np.float32(np.random.default_rng(6).uniform(size=(1, before, before, 3)))
    wanted = nhwc(clip_pixels(rgb, after))
    np.testing.assert_allclose(clip_images(rgb, after), wanted, atol=2e-5)


def test_the_schedule_is_the_published_one(one):
    prior = Zero123(weights=str(one.folder))
    np.testing.assert_allclose(
        prior.schedule.alpha_bar, one.scheduler.alphas_cumprod.numpy(), rtol=1e-5
    )
    assert prior.schedule == scaled_linear(1000, 0.00085, 0.012)
    assert (prior.image_size, prior.parameterisation.prediction) == (64, "eps")


def test_the_published_networks_have_the_published_parameters():
    """At full size: SD 1.5's with 8 channels, ViT-L/14 with its projection, 772 to 768."""
    vision = dict(
        hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16,
        image_size=224, patch_size=14, projection_dim=768, model_type="clip_vision_model",
    )  # fmt: skip
    unet = {**SD15, "in_channels": 8, "sample_size": 32}
    net = zero123.Zero123Nets(
        zero123.SDUNetConfig.from_json(unet),
        zero123.VAEConfig.from_json(SD15_VAE),
        zero123.CLIPVisionConfig.from_json(vision),
        768,
        scaled_linear(1000, 0.00085, 0.012),
        "eps",
        ("cc_projection", "projection"),
    )
    shapes = weights.shapes_of(net)
    with torch.device("meta"):
        theirs = {
            "unet": UNet2DConditionModel.from_config(unet),
            "image_encoder": CLIPVisionModelWithProjection(CLIPVisionConfig(**vision)),
            "cc_projection": tiny_zero123.Projection("projection", 768),
        }
    counts = {"unet": 859_532_484, "image_encoder": 303_966_208, "cc_projection": 593_664}
    assert set(shapes) == {*theirs, "vae"} and net.image_size == 256
    for part, module in theirs.items():
        flat = published.flatten_dict(shapes[part], sep=".")
        ours = {
            published.published_name(name): published.published_shape(name, leaf.shape)
            for name, leaf in flat.items()
        }
        named = {name: tuple(value.shape) for name, value in module.state_dict().items()}
        named = {n: v for n, v in named.items() if not n.endswith("position_ids")}
        count = sum(leaf.size for leaf in flat.values())
        print(part, count)
        assert ours == named and count == counts[part]


def broken(one, tmp_path, name, **changes):
    """A copy of the model with values changed in one of its configs."""
    folder = tmp_path / "model"
    shutil.copytree(one.folder, folder, dirs_exist_ok=True)
    config = {**json.loads((folder / name).read_text()), **changes}
    (folder / name).write_text(json.dumps(config))
    return Zero123(weights=str(folder))


def test_a_model_whose_parts_do_not_fit_is_refused(one, tmp_path):
    for name, changes, says in (
        ("unet/config.json", {"in_channels": 4}, "maps 4 channels to 4; expected 8 and 4"),
        ("unet/config.json", {"cross_attention_dim": 20}, "projection_dim is 24"),
        ("unet/config.json", {"sample_size": 9}, "must divide by 2"),
        ("vae/config.json", {"in_channels": 1}, "pictures have 1 channels"),
        ("image_encoder/config.json", {"projection_dim": "x"}, "image_encoder.*projection_dim"),
        ("image_encoder/config.json", {"model_type": "clip"}, "image_encoder.*model_type"),
        ("scheduler/scheduler_config.json", {"beta_schedule": "odd"}, "beta_schedule"),
    ):
        with pytest.raises(UserError, match=says):
            broken(one, tmp_path, name, **changes).load()
        shutil.rmtree(tmp_path / "model")


def test_parts_that_are_missing_are_named(one, tmp_path):
    prior = broken(one, tmp_path, "unet/config.json")
    params = prior.load()
    folder = tmp_path / "model" / "clip_camera_projection"
    folder = folder if folder.exists() else tmp_path / "model" / "cc_projection"
    (tensors,) = folder.glob("*.safetensors")
    tensors.rename(folder / "diffusion_pytorch_model.bin")
    with pytest.raises(UserError, match="a pickle, which may run any code"):
        prior.embed(params, Prompt("", image=picture()))
    (folder / "diffusion_pytorch_model.bin").unlink()
    with pytest.raises(UserError, match="holds no .safetensors file"):
        prior.embed(params, Prompt("", image=picture()))
