"""Stable Diffusion's autoencoder against diffusers': files, names, shapes, outputs, gradients.

The reference is diffusers in float64, on weights that are all random.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from dreamjax.errors import UserError
from dreamjax.nets.stable_diffusion.vae import LOG_VARIANCE, AutoencoderKL, VAEConfig
from dreamjax.priors import published

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

from .torch_random import agree, nchw, nhwc, randomised  # noqa: E402

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("quick_compilation")]
# The published config.json, but for the version that wrote it.
SD15 = {
    "_class_name": "AutoencoderKL",
    "_diffusers_version": "0.6.0",
    "act_fn": "silu",
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "in_channels": 3,
    "latent_channels": 4,
    "layers_per_block": 2,
    "norm_num_groups": 32,
    "out_channels": 3,
    "sample_size": 512,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
}
TINY = {
    **SD15,
    "block_out_channels": [16, 32],
    "down_block_types": ["DownEncoderBlock2D"] * 2,
    "layers_per_block": 1,
    "norm_num_groups": 8,
    "sample_size": 16,
    "scaling_factor": 0.3,
    "up_block_types": ["UpDecoderBlock2D"] * 2,
}
PRECISIONS = pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])


def wanted_shapes(net, shape=(1, 16, 16, 3)):
    """The tree of parameters' shapes, of a network that is not made."""
    return jax.eval_shape(net.init, jax.random.key(0), jnp.zeros(shape))["params"]


def pictures():
    return np.random.default_rng(1).uniform(-1, 1, (2, 12, 16, 3)).astype(np.float32)


def latents():
    return np.random.default_rng(2).standard_normal((2, 6, 8, 4)).astype(np.float32)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """Our config, the weights, and diffusers' network in float64.

    Two channels of the log variance are beyond where they are clipped.
    """
    folder = tmp_path_factory.mktemp("vae")
    module = randomised(diffusers.AutoencoderKL.from_config(TINY))
    with torch.no_grad():
        module.quant_conv.bias[5] += 2 * LOG_VARIANCE[0]
        module.quant_conv.bias[6] += 2 * LOG_VARIANCE[1]
    module.save_pretrained(folder)
    config = VAEConfig.from_json(published.read_json(folder / "config.json"))
    params = published.load(folder, wanted_shapes(AutoencoderKL(config)))
    return config, params, module.double()


@PRECISIONS
def test_the_encoding_agrees_with_diffusers(tiny, dtype):
    config, params, module = tiny
    net = AutoencoderKL(dataclasses.replace(config, dtype=dtype))
    got = jax.jit(lambda x: net.apply({"params": params}, x, method="encode"))(pictures())
    with torch.no_grad():
        wanted = module.encode(nchw(pictures())).latent_dist
    mean, log_variance = got
    assert agree(mean, nhwc(wanted.mean), dtype)
    wanted = nhwc(wanted.logvar)
    for channel in range(4):
        assert agree(log_variance[..., channel], wanted[..., channel], dtype)
    assert (np.asarray(log_variance[..., 1:3]) == LOG_VARIANCE).all()


@PRECISIONS
def test_the_decoding_agrees_with_diffusers(tiny, dtype):
    config, params, module = tiny
    net = AutoencoderKL(dataclasses.replace(config, dtype=dtype))
    got = jax.jit(lambda z: net.apply({"params": params}, z, method="decode"))(latents())
    with torch.no_grad():
        wanted = nhwc(module.decode(nchw(latents())).sample)
    assert agree(got, wanted, dtype)


@PRECISIONS
def test_the_gradient_of_a_sampled_latent_agrees_with_diffusers(tiny, dtype):
    config, params, module = tiny
    remat = dtype == "float32"
    net = AutoencoderKL(dataclasses.replace(config, dtype=dtype, remat=remat))
    x = pictures()
    noise, weights = np.random.default_rng(3).standard_normal((2, *latents().shape), np.float32)

    def ours(x):
        mean, log_variance = net.apply({"params": params}, x, method="encode")
        return (weights * (mean + noise * jnp.exp(log_variance / 2))).sum()

    assert ("remat" in str(jax.make_jaxpr(jax.grad(ours))(x))) == remat
    theirs = nchw(x).requires_grad_()
    encoded = module.encode(theirs).latent_dist
    sampled = encoded.mean + nchw(noise) * encoded.std
    (nchw(weights) * sampled).sum().backward()
    assert agree(jax.jit(jax.grad(ours))(x), nhwc(theirs.grad), dtype)


def test_init_makes_both_halves():
    net = AutoencoderKL(VAEConfig.from_json(TINY))
    out, variables = jax.eval_shape(net.init_with_output, jax.random.key(0), pictures())
    assert set(variables["params"]) == {"encoder", "decoder", "quant_conv", "post_quant_conv"}
    assert out.shape == pictures().shape


def test_pictures_that_do_not_divide_are_refused():
    with pytest.raises(UserError, match="12 x 15"):
        wanted_shapes(AutoencoderKL(VAEConfig.from_json(TINY)), (1, 12, 15, 3))


def test_the_published_network_has_the_published_parameters():
    config = VAEConfig.from_json(SD15)
    assert config == VAEConfig() and config.scaling_factor == 0.18215
    ours = flatten_dict(wanted_shapes(AutoencoderKL(config)), sep=".")
    with torch.device("meta"):
        theirs = diffusers.AutoencoderKL.from_config(SD15)
    assert sum(leaf.size for leaf in ours.values()) == 83_653_863 == theirs.num_parameters()
    named = {
        published.published_name(name): published.published_shape(name, leaf.shape)
        for name, leaf in ours.items()
    }
    assert named == {name: tuple(value.shape) for name, value in theirs.state_dict().items()}


def test_the_scaling_factor_is_read():
    assert VAEConfig.from_json(TINY).scaling_factor == 0.3


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("_class_name", "AutoencoderTiny"),
        ("act_fn", "gelu"),
        ("block_out_channels", []),
        ("down_block_types", ["DownEncoderBlock2D"] * 3 + ["AttnDownEncoderBlock2D"]),
        ("latent_channels", 0),
        ("latents_mean", [0.0] * 4),
        ("layers_per_block", 2.0),
        ("mid_block_add_attention", False),
        ("scaling_factor", -1),
        ("shift_factor", 0.1159),
        ("up_block_types", ["UpDecoderBlock2D"] * 3),
        ("use_quant_conv", False),
    ],
)
def test_another_network_is_refused_by_key_and_value(key, value):
    with pytest.raises(UserError) as error:
        VAEConfig.from_json({**SD15, key: value})
    assert key in str(error.value) and repr(value)[:60] in str(error.value)


def test_channels_that_do_not_fit_the_norms_are_refused():
    with pytest.raises(UserError, match="100 channels"):
        VAEConfig(block_out_channels=(100,))
