"""MVDream's UNet against one put together from diffusers' parts: names, shapes, outputs.

The reference is diffusers' UNet of Stable Diffusion 2.x in float64. Its attention among places is
given those of all views of a group, its class embedding is the camera's, and diffusers' own
converter of latent diffusion's files reads its weights.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from safetensors.numpy import save_file

from dreamjax.errors import UserError
from dreamjax.nets.stable_diffusion.unet import SDUNet
from dreamjax.priors import published
from dreamjax.priors.mvdream import MVDreamNets, their_name

from ..tiny_mvdream import UNET, random_tensors

pytestmark = pytest.mark.usefixtures("quick_compilation")
# With and without attention at the lowest level, where files number the way up differently.
SMALL = {**UNET, "channel_mult": [1, 2], "model_channels": 32, "num_head_channels": 16,
         "context_dim": 20, "image_size": 8, "num_res_blocks": 1}  # fmt: skip
FLAVOURS = {
    "attends everywhere": {**SMALL, "attention_resolutions": [2, 1]},
    "attends above": {**SMALL, "attention_resolutions": [1]},
}
CAMERA_PARAMETERS = 16 * 1280 + 1280 + 1280 * 1280 + 1280


def wanted_shapes(config, size=8):
    x = jnp.zeros((4, size, size, config.in_channels))
    tokens, camera = jnp.zeros((4, 1, config.cross_attention_dim)), jnp.zeros((4, 16))
    init = SDUNet(config).init
    return jax.eval_shape(init, jax.random.key(0), x, jnp.zeros(4), tokens, camera)["params"]


def inputs():
    """Two groups of four views: latents that are not square, t, tokens, cameras."""
    rng = np.random.default_rng(1)
    shapes = ((8, 4, 6, 4), (8, 7, 20), (8, 16))
    x, tokens, camera = (rng.standard_normal(shape).astype(np.float32) for shape in shapes)
    return x, np.repeat([13, 900], 4), tokens, camera


def torch_unet(given, tensors):
    """The reference, with its weights converted by diffusers."""
    torch = pytest.importorskip("torch")
    diffusers = pytest.importorskip("diffusers")
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint
    from diffusers.models.attention_processor import AttnProcessor
    from diffusers.models.embeddings import TimestepEmbedding

    class AmongViews(AttnProcessor):
        """Self-attention of the places of four views."""

        def __call__(self, attn, hidden_states, encoder_hidden_states=None, *args, **kwargs):
            places = hidden_states.shape[1]
            if encoder_hidden_states is None:
                hidden_states = hidden_states.unflatten(0, (-1, 4)).flatten(1, 2)
            out = super().__call__(attn, hidden_states, encoder_hidden_states, *args, **kwargs)
            return out.unflatten(1, (-1, places)).flatten(0, 1)

    widths = [given["model_channels"] * mult for mult in given["channel_mult"]]
    attends = [2**i in given["attention_resolutions"] for i in range(len(widths))]
    down = ["CrossAttnDownBlock2D" if a else "DownBlock2D" for a in attends]
    up = ["CrossAttnUpBlock2D" if a else "UpBlock2D" for a in attends[::-1]]
    module = diffusers.UNet2DConditionModel(
        sample_size=given["image_size"], block_out_channels=widths, down_block_types=down,
        up_block_types=up, cross_attention_dim=given["context_dim"],
        attention_head_dim=[w // given["num_head_channels"] for w in widths],
        layers_per_block=given["num_res_blocks"], use_linear_projection=True,
    )  # fmt: skip
    if tensors is None:
        return module
    ldm = {f"model.diffusion_model.{k}": torch.from_numpy(v) for k, v in tensors.items()}
    module.load_state_dict(convert_ldm_unet_checkpoint(ldm, dict(module.config)), strict=True)
    module.class_embedding = TimestepEmbedding(16, 4 * given["model_channels"])
    names = {"linear_1": "camera_embed.0", "linear_2": "camera_embed.2"}
    embedding = {
        f"{ours}.{leaf}": torch.from_numpy(tensors[f"{theirs}.{leaf}"])
        for ours, theirs in names.items()
        for leaf in ("weight", "bias")
    }
    module.class_embedding.load_state_dict(embedding)
    module.set_attn_processor(AmongViews())
    return module.double().eval()


@pytest.mark.slow
@pytest.mark.parametrize("flavour", FLAVOURS)
def test_the_output_agrees_with_diffusers_parts(flavour, tmp_path):
    torch = pytest.importorskip("torch")
    from ..parity.torch_random import agree, nchw, nhwc

    given = FLAVOURS[flavour]
    config = MVDreamNets.read_unet(given)
    shapes = wanted_shapes(config)
    tensors = random_tensors(shapes, config)
    save_file(tensors, tmp_path / "diffusion_pytorch_model.safetensors")
    params = load_unet(tmp_path, config, shapes)
    x, t, tokens, camera = inputs()
    module = torch_unet(given, tensors)
    with torch.no_grad():
        told = torch.from_numpy(tokens).double(), torch.from_numpy(camera).double()
        wanted = nhwc(module(nchw(x), torch.from_numpy(t), told[0], class_labels=told[1]).sample)
    got = np.asarray(SDUNet(config).apply({"params": params}, x, t, tokens, camera))
    assert agree(got, wanted, "float32")


def load_unet(folder, config, shapes):
    """Through the class that knows the files' names."""
    nets = MVDreamNets(config, None, None, None, "eps", "")
    return nets.load_unet(folder, shapes)


@pytest.mark.slow
def test_the_published_network_has_the_published_parameters():
    """Names and shapes by diffusers' converter, the count by Stable Diffusion 2.1's UNet."""
    torch = pytest.importorskip("torch")
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint

    config = MVDreamNets.read_unet(UNET)
    assert (config.heads, config.attends) == ((5, 10, 20, 20), (True, True, True, False))
    ours = flatten_dict(wanted_shapes(config), sep=".")
    assert sum(leaf.size for leaf in ours.values()) == 865_910_724 + CAMERA_PARAMETERS
    named = {
        published.published_name(their_name(name, config)): published.published_shape(name, x.shape)
        for name, x in ours.items()
    }
    assert len(named) == len(ours) == 686 + 4
    with torch.device("meta"):
        module = torch_unet(UNET, None)
        ldm = {f"model.diffusion_model.{name}": torch.zeros(s) for name, s in named.items()}
    converted = convert_ldm_unet_checkpoint(ldm, dict(module.config))
    theirs = {name: tuple(value.shape) for name, value in module.state_dict().items()}
    assert {name: tuple(value.shape) for name, value in converted.items()} == theirs
    cameras = {name: shape for name, shape in named.items() if name.startswith("camera_embed")}
    assert cameras == {
        "camera_embed.0.weight": (1280, 16), "camera_embed.0.bias": (1280,),
        "camera_embed.2.weight": (1280, 1280), "camera_embed.2.bias": (1280,),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("name", "theirs"),
    [
        ("time_embedding.linear_2.bias", "time_embed_2.bias"),
        ("conv_in.kernel", "input_blocks_0.0.kernel"),
        ("down_blocks_0.resnets_1.norm2.scale", "input_blocks_2.0.out_layers_0.scale"),
        ("down_blocks_1.downsamplers_0.conv.bias", "input_blocks_6.0.op.bias"),
        ("down_blocks_3.resnets_1.conv2.kernel", "input_blocks_11.0.out_layers_3.kernel"),
        ("mid_block.attentions_0.proj_in.kernel", "middle_block_1.proj_in.kernel"),
        ("up_blocks_0.upsamplers_0.conv.kernel", "output_blocks_2.1.conv.kernel"),
        ("up_blocks_1.upsamplers_0.conv.kernel", "output_blocks_5.2.conv.kernel"),
        ("up_blocks_3.attentions_2.norm.bias", "output_blocks_11.1.norm.bias"),
        ("conv_out.bias", "out_2.bias"),
    ],
)
def test_names_in_the_original_release(name, theirs):
    assert their_name(name, MVDreamNets.read_unet(UNET)) == theirs


@pytest.mark.slow
def test_views_see_their_own_group_alone():
    # Two channels in each group of a norm, or no camera would be heard.
    small = {**SMALL, "channel_mult": [1], "attention_resolutions": [1], "model_channels": 64}
    config = MVDreamNets.read_unet(small)
    x, t, tokens, camera = inputs()
    params = jax.jit(SDUNet(config).init)(jax.random.key(0), x, t, tokens, camera)
    ask = jax.jit(SDUNet(config).apply)
    out = np.asarray(ask(params, x, t, tokens, camera))
    changed = np.asarray(ask(params, x.copy() + (np.arange(8) == 1)[:, None, None, None], t,
                             tokens, camera))  # fmt: skip
    moved = np.abs(changed - out).max(axis=(1, 2, 3))
    assert (moved[:4] > 1e-4).all() and (moved[4:] == 0).all()
    # The order of the views in a group does not matter, the cameras do.
    order = np.array([2, 0, 3, 1, 4, 5, 6, 7])
    again = np.asarray(ask(params, x[order], t, tokens[order], camera[order]))
    np.testing.assert_allclose(again, out[order], rtol=1e-4, atol=1e-5)
    turned = np.asarray(ask(params, x, t, tokens, camera[order]))
    assert np.abs(turned - out)[:4].max() > 1e-3
    with pytest.raises(UserError, match="sees 4 views together; 6 are no multiple"):
        SDUNet(config).apply(params, x[:6], t[:6], tokens[:6], camera[:6])


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"_class_name": "UNet2DConditionModel"}, "_class_name 'UNet2DConditionModel'"),
        ({"camera_dim": 12}, "camera_dim 12; this network has 16"),
        ({"transformer_depth": 2}, "transformer_depth 2"),
        ({"ip_dim": 16}, "ip_dim 16; this network has no such option"),
        ({"num_head_channels": 60}, "num_head_channels 60"),
        ({"num_res_blocks": 10**6}, "layers_per_block 1000000"),
        ({"channel_mult": "1224"}, "channel_mult '1224'"),
        ({"channel_mult": [2, 4]}, "1 at its finest level"),
        ({"model_channels": 0}, "model_channels 0"),
        ({"attention_resolutions": None}, "attention_resolutions None"),
    ],
)
def test_another_network_is_refused(change, says):
    with pytest.raises(UserError, match=says):
        MVDreamNets.read_unet({**UNET, **change})
