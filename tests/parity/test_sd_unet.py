"""Stable Diffusion's UNet against diffusers': files, names, shapes and outputs.

The reference is diffusers in float64, on weights that are all random.
"""

import dataclasses
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from dreamjax.errors import UserError
from dreamjax.nets.stable_diffusion import unet
from dreamjax.nets.stable_diffusion.blocks import attend
from dreamjax.nets.stable_diffusion.unet import SDUNet, SDUNetConfig
from dreamjax.priors import published

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")
from diffusers import UNet2DConditionModel  # noqa: E402

from .torch_random import agree, nchw, nhwc, randomised  # noqa: E402

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("quick_compilation")]
CROSS_DOWN, CROSS_UP = "CrossAttnDownBlock2D", "CrossAttnUpBlock2D"
# The published config.json files, but for the version that wrote them.
SD15 = {
    "_class_name": "UNet2DConditionModel",
    "_diffusers_version": "0.6.0",
    "act_fn": "silu",
    "attention_head_dim": 8,
    "block_out_channels": [320, 640, 1280, 1280],
    "center_input_sample": False,
    "cross_attention_dim": 768,
    "down_block_types": [CROSS_DOWN, CROSS_DOWN, CROSS_DOWN, "DownBlock2D"],
    "downsample_padding": 1,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "in_channels": 4,
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "norm_eps": 1e-05,
    "norm_num_groups": 32,
    "out_channels": 4,
    "sample_size": 64,
    "up_block_types": ["UpBlock2D", CROSS_UP, CROSS_UP, CROSS_UP],
}
SD21 = {
    **SD15,
    "attention_head_dim": [5, 10, 20, 20],
    "cross_attention_dim": 1024,
    "dual_cross_attention": False,
    "use_linear_projection": True,
    "class_embed_type": None,
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "num_class_embeds": None,
    "only_cross_attention": False,
    "resnet_time_scale_shift": "default",
    "sample_size": 96,
    "upcast_attention": True,
}
COMMON = {
    "block_out_channels": [16, 32],
    "cross_attention_dim": 20,
    "down_block_types": [CROSS_DOWN, "DownBlock2D"],
    "norm_num_groups": 8,
    "sample_size": 8,
    "up_block_types": ["UpBlock2D", CROSS_UP],
}
FLAVOURS = {
    "1.x": {**SD15, **COMMON, "attention_head_dim": 4},
    "2.x": {**SD21, **COMMON, "attention_head_dim": [1, 4], "layers_per_block": 1},
}


def wanted_shapes(net, size=(8, 8)):
    """The tree of parameters' shapes, of a network that is not made."""
    x = jnp.zeros((1, *size, net.config.in_channels))
    tokens = jnp.zeros((1, 1, net.config.cross_attention_dim))
    return jax.eval_shape(net.init, jax.random.key(0), x, jnp.zeros(1), tokens)["params"]


def inputs():
    """Latents that are not square, timesteps, tokens."""
    rng = np.random.default_rng(1)
    x = rng.standard_normal((3, 8, 12, 4)).astype(np.float32)
    tokens = rng.standard_normal((3, 7, COMMON["cross_attention_dim"])).astype(np.float32)
    return x, np.array([0, 13, 999]), tokens


@pytest.fixture(scope="module", params=FLAVOURS)
def flavour(request, tmp_path_factory):
    """Our config, the weights, and what diffusers makes of the inputs."""
    folder = tmp_path_factory.mktemp("unet")
    module = randomised(UNet2DConditionModel.from_config(FLAVOURS[request.param]))
    module.save_pretrained(folder)
    config = SDUNetConfig.from_json(published.read_json(folder / "config.json"))
    params = published.load(folder, wanted_shapes(SDUNet(config)))
    x, t, tokens = inputs()
    with torch.no_grad():
        t, tokens = torch.from_numpy(t), torch.from_numpy(tokens).double()
        out = module.double()(nchw(x), t, tokens).sample
    return config, params, nhwc(out)


@pytest.mark.parametrize(
    ("dtype", "remat"), [("float32", True), ("float16", False), ("bfloat16", False)]
)
def test_the_output_agrees_with_diffusers(flavour, dtype, remat):
    config, params, wanted = flavour
    net = SDUNet(dataclasses.replace(config, dtype=dtype, remat=remat))
    got = jax.jit(net.apply)({"params": params}, *inputs())
    assert agree(got, wanted, dtype)


def test_rematerialisation_is_by_config():
    plain = SDUNetConfig(16, block_out_channels=(32,), attends=(False,), heads=(1,))
    assert not plain.remat
    for config in (plain, dataclasses.replace(plain, remat=True)):
        net = SDUNet(config)
        x, tokens = jnp.zeros((1, 8, 8, 4)), jnp.zeros((1, 1, 1280))
        traced = jax.make_jaxpr(net.init)(jax.random.key(0), x, jnp.zeros(1), tokens)
        assert ("remat" in str(traced)) == config.remat


@pytest.mark.parametrize(("given", "count"), [(SD15, 859_520_964), (SD21, 865_910_724)])
def test_the_published_networks_have_the_published_parameters(given, count):
    ours = flatten_dict(wanted_shapes(SDUNet(SDUNetConfig.from_json(given))), sep=".")
    with torch.device("meta"):
        theirs = UNet2DConditionModel.from_config(given)
    assert sum(leaf.size for leaf in ours.values()) == count == theirs.num_parameters()
    named = {
        published.published_name(name): published.published_shape(name, leaf.shape)
        for name, leaf in ours.items()
    }
    assert named == {name: tuple(value.shape) for name, value in theirs.state_dict().items()}


def test_what_a_file_leaves_out_is_as_diffusers_has_it():
    config = SDUNetConfig.from_json({})
    theirs = inspect.signature(UNet2DConditionModel.__init__).parameters
    assert config == SDUNetConfig()
    for name in (*unet.WHOLES, "block_out_channels", "norm_eps", "use_linear_projection"):
        if name != "sample_size":
            assert getattr(config, name) == theirs[name].default
    assert config.heads == (theirs["attention_head_dim"].default,) * 4
    for name in set(unet.FIXED) - {"_class_name"}:
        assert unet.FIXED[name] == theirs[name].default
    # All other options are off unless they are named.
    others = set(theirs) - set(unet.FIXED) - set(unet.READ) - {"self", "up_block_types"}
    assert not any(theirs[name].default for name in others)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("_class_name", "UNet2DModel"),
        ("act_fn", "gelu"),
        ("addition_embed_type", "text_time"),
        ("attention_head_dim", None),
        ("attention_head_dim", [8, 8, 8, 0]),
        ("block_out_channels", 320),
        ("class_embed_type", "projection"),
        ("cross_attention_dim", [768, 768, 768, 768]),
        ("down_block_types", [CROSS_DOWN, CROSS_DOWN, "AttnDownBlock2D", "DownBlock2D"]),
        ("down_block_types", "DownBlock2D"),
        ("dual_cross_attention", True),
        ("encoder_hid_dim_type", "text_proj"),
        ("flip_sin_to_cos", False),
        ("freq_shift", 1),
        ("layers_per_block", [2, 2, 2, 2]),
        ("mid_block_type", "UNetMidBlock2D"),
        ("norm_eps", 0),
        ("norm_num_groups", None),
        ("num_class_embeds", 1000),
        ("only_cross_attention", True),
        ("resnet_time_scale_shift", "scale_shift"),
        ("sample_size", "64"),
        ("transformer_layers_per_block", [1, 2, 10]),
        ("up_block_types", [CROSS_UP, CROSS_UP, CROSS_UP, "UpBlock2D"]),
        ("use_linear_projection", "yes"),
    ],
)
def test_another_network_is_refused_by_key_and_value(key, value):
    with pytest.raises(UserError) as error:
        SDUNetConfig.from_json({**SD15, key: value})
    assert key in str(error.value) and repr(value)[:60] in str(error.value)


def test_sizes_that_do_not_fit_are_refused():
    for wrong in (
        {"block_out_channels": [320, 640, 1280]},
        {"block_out_channels": [320, 640, 1280, 1290]},
        {"attention_head_dim": [8, 8, 8]},
        {"attention_head_dim": 7},
    ):
        with pytest.raises(UserError):
            SDUNetConfig.from_json({**SD15, **wrong})
    with pytest.raises(UserError, match="half precision"):
        SDUNetConfig(fused=True)
    with pytest.raises(UserError, match="5 x 8"):
        wanted_shapes(SDUNet(SDUNetConfig.from_json(FLAVOURS["2.x"])), (5, 8))


@pytest.mark.skipif(jax.default_backend() != "gpu", reason="cuDNN's attention needs a GPU")
def test_fused_attention_agrees_with_xlas():
    shape = (2, 64, 4, 40)
    q, k, v = jax.random.normal(jax.random.key(0), (3, *shape), jnp.bfloat16)
    fused = attend(q, k[:, :31], v[:, :31], fused=True)
    plain = attend(q, k[:, :31], v[:, :31])
    assert agree(fused.astype(jnp.float32), plain.astype(jnp.float32), "bfloat16")
