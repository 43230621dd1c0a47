"""The published networks' weights in ours: the same outputs as in PyTorch.

Every tensor is random, those that start at zero too, so that none can be left out unseen.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from dreamjax.nets.adm import ADM, ADMClassifier, ADMConfig
from dreamjax.priors.guided_diffusion import load, load_classifier

torch = pytest.importorskip("torch")
from . import torch_adm  # noqa: E402

pytestmark = pytest.mark.usefixtures("quick_compilation")
COMMON = dict(image_size=8, channels=32, res_blocks=1)
UNETS = {
    # As the 64-pixel network: heads by channels, q k v cut first, blocks that resize.
    "imagenet_64": ADMConfig(
        **COMMON, channel_mults=(1, 3), attention_sizes=(4,), head_dim=16, num_classes=5,
        split_qkv_first=True, resblock_updown=True, learns_variance=True,
    ),
    # As the 128-pixel one: so many heads, heads cut first, two levels of one width.
    "imagenet_128": ADMConfig(
        **COMMON, channel_mults=(1, 1, 2), attention_sizes=(8, 2), heads=4, num_classes=3,
        resblock_updown=True, learns_variance=True,
    ),
    # As the plain ones: convolutions that resize, time added, no classes.
    "convolutions": ADMConfig(
        **{**COMMON, "res_blocks": 2}, channel_mults=(3, 1), attention_sizes=(4,), heads=2,
        scale_shift_norm=False,
    ),
    "everywhere": ADMConfig(
        **COMMON, in_channels=1, channel_mults=(2, 1), attention_sizes=(8, 4), head_dim=8,
        split_qkv_first=True, learns_variance=True,
    ),
    # Two channels a group: what is added to one channel, a norm of its own would take away again.
    "only_in_the_middle": ADMConfig(
        **COMMON, channel_mults=(2,), attention_sizes=(), scale_shift_norm=False, num_classes=2
    ),
}  # fmt: skip
CLASSIFIERS = {
    "imagenet": ADMConfig(
        **COMMON, channel_mults=(1, 3), attention_sizes=(4,), head_dim=16, resblock_updown=True
    ),
    "convolutions": ADMConfig(
        **COMMON, channel_mults=(2, 1), attention_sizes=(8,), head_dim=32, scale_shift_norm=False,
        split_qkv_first=True,
    ),
}  # fmt: skip
OUT_CLASSES = 7


def flags(config):
    """The published arguments of the part that both networks share."""
    return dict(
        in_channels=config.in_channels,
        model_channels=config.channels,
        channel_mult=config.channel_mults,
        num_res_blocks=config.res_blocks,
        attention_resolutions=[config.image_size // side for side in config.attention_sizes],
        num_heads=config.heads,
        num_head_channels=config.head_dim or -1,
        use_new_attention_order=config.split_qkv_first,
        resblock_updown=config.resblock_updown,
        use_scale_shift_norm=config.scale_shift_norm,
    )


def randomised(module):
    """The module with random weights under which every layer keeps about the size of its input."""
    rng = torch.Generator().manual_seed(0)
    norms = {f"{n}.weight" for n, m in module.named_modules() if isinstance(m, torch.nn.GroupNorm)}
    with torch.no_grad():
        for name, value in module.named_parameters():
            value.normal_(generator=rng)
            if value.ndim == 1:
                value.mul_(0.2).add_(1.0 if name in norms else 0.0)
            elif name != "label_emb.weight":
                value /= value[0].numel() ** 0.5
    return module.eval()


def torch_unet(config):
    classes = config.num_classes or None
    return torch_adm.UNetModel(
        out_channels=config.out_channels, num_classes=classes, **flags(config)
    )


def torch_classifier(config):
    return torch_adm.EncoderUNetModel(
        image_size=config.image_size, out_channels=OUT_CLASSES, **flags(config)
    )


def save(module, path):
    save_file({name: value.numpy() for name, value in module.state_dict().items()}, path)


def inputs(config):
    """Images [B, H, W, C], timesteps, labels or None.

    One image is faint: there a norm's epsilon shows, and digits that its mean costs.
    """
    rng = np.random.default_rng(3)
    shape = (3, config.image_size, config.image_size, config.in_channels)
    label = rng.integers(config.num_classes, size=3) if config.num_classes else None
    x = rng.standard_normal(shape).astype(np.float32)
    x[0] *= 0.01
    return x, np.array([0, 13, 999]), label


def run_torch(module, x, *others):
    """The module's float64 output for images [B, H, W, C]; images in it become that too.

    PyTorch's float32 norms on a CPU are no reference: for the faint image they are off by 4e-4.
    """
    others = (None if a is None else torch.from_numpy(a) for a in others)
    with torch.no_grad():
        out = module.double()(torch.from_numpy(x).double().permute(0, 3, 1, 2), *others).numpy()
    return out.transpose(0, 2, 3, 1) if out.ndim == 4 else out


def assert_agree(got, wanted):
    """Within 1e-5 of each example's largest output; what is seen is 3e-6, float32's rounding."""
    assert got.shape == wanted.shape and got.dtype == jnp.float32
    each = tuple(range(1, wanted.ndim))
    assert (np.abs(got - wanted).max(each) < 1e-5 * np.abs(wanted).max(each)).all()


@pytest.mark.parametrize("name", UNETS)
def test_the_unet_agrees_with_pytorch(name, tmp_path):
    config = UNETS[name]
    module = randomised(torch_unet(config))
    save(module, tmp_path / "unet.safetensors")
    params = load(tmp_path / "unet.safetensors", config)
    x, t, label = inputs(config)
    got = jax.jit(ADM(config).apply)({"params": params}, x, t, label)
    assert_agree(got, run_torch(module, x, t, label))


def test_attention_is_a_matter_of_the_level_not_of_the_images_size(tmp_path):
    config = dataclasses.replace(UNETS["everywhere"], attention_sizes=(4,))
    module = randomised(torch_unet(config))
    save(module, tmp_path / "unet.safetensors")
    params = load(tmp_path / "unet.safetensors", config)
    x, t, label = inputs(dataclasses.replace(config, image_size=16))
    got = jax.jit(ADM(config).apply)({"params": params}, x, t, label)
    assert_agree(got, run_torch(module, x, t, label))


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_the_classifier_agrees_with_pytorch(name, tmp_path):
    config = CLASSIFIERS[name]
    module = randomised(torch_classifier(config))
    save(module, tmp_path / "classifier.safetensors")
    params = load_classifier(tmp_path / "classifier.safetensors", config, OUT_CLASSES)
    x, t, _ = inputs(config)
    got = jax.jit(ADMClassifier(config, OUT_CLASSES).apply)({"params": params}, x, t)
    assert_agree(got, run_torch(module, x, t))
