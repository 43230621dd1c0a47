"""DeepFloyd IF's UNet against diffusers': files, names, shapes, counts and outputs."""

import dataclasses
import inspect
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from dreamjax.errors import UserError
from dreamjax.nets import deepfloyd
from dreamjax.nets.deepfloyd import IFUNet, IFUNetConfig
from dreamjax.priors import published

DOWN, CROSS_DOWN = "ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"
UP, CROSS_UP = "ResnetUpsampleBlock2D", "SimpleCrossAttnUpBlock2D"
MEMORY = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
# The published config.json of IF-I-XL, as diffusers' conversion of it writes one.
XL = {
    "_class_name": "UNet2DConditionModel",
    "_diffusers_version": "0.16.0",
    "act_fn": "gelu",
    "addition_embed_type": "text",
    "addition_embed_type_num_heads": 64,
    "attention_head_dim": 64,
    "block_out_channels": [704, 1408, 2112, 2816],
    "center_input_sample": False,
    "class_embed_type": None,
    "class_embeddings_concat": False,
    "conv_in_kernel": 3,
    "conv_out_kernel": 3,
    "cross_attention_dim": 2816,
    "cross_attention_norm": "group_norm",
    "down_block_types": [DOWN, CROSS_DOWN, CROSS_DOWN, CROSS_DOWN],
    "downsample_padding": 1,
    "dual_cross_attention": False,
    "encoder_hid_dim": 4096,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "in_channels": 3,
    "layers_per_block": 3,
    "mid_block_only_cross_attention": None,
    "mid_block_scale_factor": 1,
    "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
    "norm_eps": 1e-05,
    "norm_num_groups": 32,
    "num_class_embeds": None,
    "only_cross_attention": False,
    "out_channels": 6,
    "projection_class_embeddings_input_dim": None,
    "resnet_out_scale_factor": 1.0,
    "resnet_skip_time_act": False,
    "resnet_time_scale_shift": "scale_shift",
    "sample_size": 64,
    "time_cond_proj_dim": None,
    "time_embedding_type": "positional",
    "timestep_post_act": None,
    "up_block_types": [CROSS_UP, CROSS_UP, CROSS_UP, UP],
    "upcast_attention": False,
    "use_linear_projection": False,
}
L = {**XL, "block_out_channels": [320, 640, 960, 1280], "cross_attention_dim": 1280}
M = {**XL, "block_out_channels": [192, 384, 576, 768], "cross_attention_dim": 768}
TINY = {
    **XL, "block_out_channels": [16, 32], "cross_attention_dim": 64, "encoder_hid_dim": 24,
    "addition_embed_type_num_heads": 4, "attention_head_dim": 8, "norm_num_groups": 8,
    "layers_per_block": 2, "sample_size": 8, "down_block_types": [DOWN, CROSS_DOWN],
    "up_block_types": [CROSS_UP, UP],
}  # fmt: skip


def wanted_shapes(net, size=(64, 64)):
    """The tree of parameters' shapes, of a network that is not made."""
    x = jnp.zeros((1, *size, net.config.in_channels))
    tokens = jnp.zeros((1, 1, net.config.encoder_hid_dim))
    return jax.eval_shape(net.init, jax.random.key(0), x, jnp.zeros(1), tokens)["params"]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """Our config, the weights, inputs that are not square, and what diffusers makes of them."""
    torch = pytest.importorskip("torch")
    diffusers = pytest.importorskip("diffusers")
    from ..parity.torch_random import nchw, nhwc, randomised

    folder = tmp_path_factory.mktemp("unet")
    module = randomised(diffusers.UNet2DConditionModel.from_config(TINY))
    module.save_pretrained(folder)
    config = IFUNetConfig.from_json(published.read_json(folder / "config.json"))
    params = published.load(folder, wanted_shapes(IFUNet(config)))
    rng = np.random.default_rng(1)
    x = rng.standard_normal((3, 8, 12, 3)).astype(np.float32)
    tokens = rng.standard_normal((3, 7, 24)).astype(np.float32)
    t = np.array([0, 13, 999])
    with torch.no_grad():
        said = torch.from_numpy(tokens).double()
        out = module.double()(nchw(x), torch.from_numpy(t), said).sample
    return config, params, (x, t, tokens), nhwc(out)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_the_output_agrees_with_diffusers(tiny, dtype, quick_compilation):
    from ..parity.torch_random import agree

    config, params, inputs, wanted = tiny
    net = IFUNet(dataclasses.replace(config, dtype=dtype))
    got = np.asarray(jax.jit(net.apply)({"params": params}, *inputs))
    assert got.shape[-1] == 6
    assert agree(got, wanted, dtype)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("given", "count"),
    [(M, 371_605_830), (L, 935_365_830), (XL, 4_304_695_110)],
    ids=["M", "L", "XL"],
)
def test_the_published_networks_have_the_published_parameters(given, count):
    """The model cards say 400M, 900M and 4.3B."""
    torch = pytest.importorskip("torch")
    diffusers = pytest.importorskip("diffusers")
    ours = flatten_dict(wanted_shapes(IFUNet(IFUNetConfig.from_json(given))), sep=".")
    with torch.device("meta"):
        theirs = diffusers.UNet2DConditionModel.from_config(given)
    assert sum(leaf.size for leaf in ours.values()) == count == theirs.num_parameters()
    named = {
        published.published_name(name): published.published_shape(name, leaf.shape)
        for name, leaf in ours.items()
    }
    assert named == {name: tuple(value.shape) for name, value in theirs.state_dict().items()}


@pytest.mark.slow
@pytest.mark.large
@pytest.mark.skipif(MEMORY < 8, reason=f"needs 8 GiB of memory; this machine has {MEMORY:.0f}")
def test_the_smallest_published_network_at_full_size(tmp_path):
    torch = pytest.importorskip("torch")
    diffusers = pytest.importorskip("diffusers")
    from ..parity.torch_random import randomised

    rng = np.random.default_rng(0)
    x = rng.standard_normal((1, 64, 64, 3)).astype(np.float32)
    tokens = 0.1 * rng.standard_normal((1, 77, 4096)).astype(np.float32)
    module = randomised(diffusers.UNet2DConditionModel.from_config(M))
    module.save_pretrained(tmp_path)
    with torch.no_grad():
        pixels = torch.from_numpy(x.transpose(0, 3, 1, 2).copy())
        out = module(pixels, torch.tensor([501]), torch.from_numpy(tokens)).sample
    theirs = out.numpy().transpose(0, 2, 3, 1).astype(np.float64)
    del module
    net = IFUNet(IFUNetConfig.from_json(published.read_json(tmp_path / "config.json")))
    params = published.load(tmp_path, wanted_shapes(net))
    got = jax.jit(net.apply)({"params": params}, x, np.array([501]), tokens)
    error = np.abs(np.asarray(got) - theirs).max() / np.abs(theirs).max()
    print(f"relative error {error:.1e}")
    assert got.shape == theirs.shape and error < 1e-4


@pytest.mark.slow
def test_what_a_file_leaves_out_is_as_diffusers_has_it():
    diffusers = pytest.importorskip("diffusers")
    theirs = inspect.signature(diffusers.UNet2DConditionModel.__init__).parameters
    for name in set(deepfloyd.FIXED) - {"_class_name"}:
        absent = deepfloyd.ABSENT.get(name, deepfloyd.FIXED[name])
        assert absent == theirs[name].default
    for name in (*deepfloyd.WHOLES, "norm_eps", "encoder_hid_dim_type"):
        absent = deepfloyd.ABSENT.get(name, getattr(IFUNetConfig, name, None))
        assert absent == theirs[name].default
    # All other options are off unless they are named.
    others = set(theirs) - set(deepfloyd.FIXED) - set(deepfloyd.READ) - {"self", "up_block_types"}
    assert not any(theirs[name].default for name in others)


def test_the_defaults_are_xls():
    assert IFUNetConfig.from_json(XL) == IFUNetConfig()
    assert IFUNetConfig.from_json({**XL, "encoder_hid_dim_type": "text_proj"}) == IFUNetConfig()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("_class_name", "UNet2DModel"),
        ("act_fn", "silu"),
        ("addition_embed_type", "text_time"),
        ("attention_head_dim", [64, 64, 64, 64]),
        ("block_out_channels", 320),
        ("class_embed_type", "timestep"),
        ("cross_attention_norm", None),
        ("down_block_types", ["DownBlock2D", CROSS_DOWN, CROSS_DOWN, CROSS_DOWN]),
        ("down_block_types", None),
        ("encoder_hid_dim", None),
        ("encoder_hid_dim_type", "image_proj"),
        ("mid_block_only_cross_attention", True),
        ("only_cross_attention", True),
        ("resnet_skip_time_act", True),
        ("resnet_time_scale_shift", "default"),
        ("sample_size", None),
        ("up_block_types", [CROSS_UP, CROSS_UP, CROSS_UP, CROSS_UP]),
    ],
)
def test_another_network_is_refused_by_key_and_value(key, value):
    with pytest.raises(UserError) as error:
        IFUNetConfig.from_json({**XL, key: value})
    assert key in str(error.value) and repr(value)[:60] in str(error.value)


def test_a_stable_diffusions_file_is_refused():
    with pytest.raises(UserError, match="act_fn 'silu'"):
        IFUNetConfig.from_json({"down_block_types": [DOWN], "block_out_channels": [64]})


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"block_out_channels": [704, 1408, 2112]}, "must be of 3 levels"),
        (
            {"block_out_channels": [700, 1408, 2112, 2816]},
            "a level of 700 channels; they must divide by 2, by 32",
        ),
        ({"attention_head_dim": 60}, "a level of 704 channels; .* into heads of 60"),
        ({"cross_attention_dim": 2800}, "cross_attention_dim is 2800: it must divide by 32"),
        ({"encoder_hid_dim": 4000}, "encoder_hid_dim is 4000: it must divide by the 64 heads"),
        ({"sample_size": 60}, "sample_size is 60: must divide by 8"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(changes, says):
    with pytest.raises(UserError, match=says):
        IFUNetConfig.from_json({**XL, **changes})


def test_pictures_that_do_not_halve_are_refused():
    with pytest.raises(UserError, match="5 x 8 pixels; both must divide by 2"):
        wanted_shapes(IFUNet(IFUNetConfig.from_json(TINY)), (5, 8))
