"""The full-size networks of SD 1.5 and SD 2.1-base with random weights: counts, a forward each.

The reference is diffusers in float32. The largest needs 11 GB of memory.
"""

import gc
import os

import jax
import numpy as np
import pytest

from dreamjax.nets.stable_diffusion.clip import CLIPText, CLIPTextConfig
from dreamjax.nets.stable_diffusion.unet import SDUNet, SDUNetConfig
from dreamjax.nets.stable_diffusion.vae import AutoencoderKL, VAEConfig
from dreamjax.priors import published

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
from transformers import CLIPTextConfig as TorchTextConfig  # noqa: E402
from transformers import CLIPTextModel  # noqa: E402

from .test_sd_unet import SD15, SD21  # noqa: E402
from .test_sd_vae import SD15 as VAE  # noqa: E402
from .torch_random import randomised  # noqa: E402

MEMORY = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
pytestmark = [
    pytest.mark.slow,
    pytest.mark.large,
    pytest.mark.skipif(
        MEMORY < 14, reason=f"needs 14 GiB of memory; this machine has {MEMORY:.0f}"
    ),
    # diffusers' and transformers' own
    pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning"),
]
UNETS = {"1.5": SD15, "2.1-base": {**SD21, "sample_size": 64}}
UNET_COUNTS = {"1.5": 859_520_964, "2.1-base": 865_910_724}
TEXT = dict(vocab_size=49408, bos_token_id=49406, eos_token_id=49407)
TEXTS = {
    "1.5": TorchTextConfig(
        hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12,
        hidden_act="quick_gelu", **TEXT,
    ),
    "2.1-base": TorchTextConfig(
        hidden_size=1024, intermediate_size=4096, num_hidden_layers=23, num_attention_heads=16,
        hidden_act="gelu", **TEXT,
    ),
}  # fmt: skip
TEXT_COUNTS = {"1.5": 123_060_480, "2.1-base": 340_387_840}


def answer(module, folder, call):
    """What `call(module)` gives, the module with random weights, which are left in `folder`."""
    module = randomised(module)
    module.save_pretrained(folder, max_shard_size="1GB")
    with torch.no_grad():
        out = call(module).numpy()
    return out, sum(p.numel() for p in module.parameters())


def ours(net, folder, inputs, strip=""):
    """Our output with the weights in `folder`, and how many these are."""
    gc.collect()  # PyTorch's network
    wanted = jax.eval_shape(net.init, jax.random.key(0), *inputs)["params"]
    params = published.load(folder, wanted, strip)
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    return jax.jit(net.apply)({"params": params}, *inputs), count


def agree(got, wanted):
    got = np.asarray(got, np.float64)
    error = np.abs(got - wanted).max() / np.abs(wanted).max()
    print(f"relative error {error:.1e}")
    return got.shape == wanted.shape and error < 1e-4


@pytest.mark.parametrize("version", UNETS)
def test_unet(version, tmp_path):
    given = UNETS[version]
    rng = np.random.default_rng(0)
    z_t = rng.normal(size=(1, 64, 64, 4)).astype(np.float32)
    tokens = rng.normal(size=(1, 77, given["cross_attention_dim"])).astype(np.float32)
    theirs, count = answer(
        diffusers.UNet2DConditionModel.from_config(given),
        tmp_path,
        lambda module: (
            module(
                torch.from_numpy(z_t.transpose(0, 3, 1, 2).copy()),
                torch.tensor([501]),
                torch.from_numpy(tokens),
            ).sample
        ),
    )
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    net = SDUNet(SDUNetConfig.from_json(published.read_json(tmp_path / "config.json")))
    got, found = ours(net, tmp_path, (z_t, np.array([501]), tokens))
    assert found == count == UNET_COUNTS[version]
    assert agree(got, theirs.transpose(0, 2, 3, 1))


def test_autoencoder(tmp_path):
    x = np.random.default_rng(0).uniform(-1, 1, (1, 512, 512, 3)).astype(np.float32)
    theirs, count = answer(
        diffusers.AutoencoderKL.from_config(VAE),
        tmp_path,
        lambda module: (
            module.decode(
                module.encode(torch.from_numpy(x.transpose(0, 3, 1, 2).copy())).latent_dist.mean
            ).sample
        ),
    )
    net = AutoencoderKL(VAEConfig.from_json(published.read_json(tmp_path / "config.json")))
    got, found = ours(net, tmp_path, (x,))
    assert found == count == 83_653_863
    assert agree(got, theirs.transpose(0, 2, 3, 1))


@pytest.mark.parametrize("version", TEXTS)
def test_text_encoder(version, tmp_path):
    ids = np.random.default_rng(0).integers(0, 49405, (2, 77))
    ids[:, 9] = 49407
    theirs, count = answer(
        CLIPTextModel(TEXTS[version]),
        tmp_path,
        lambda module: module(torch.from_numpy(ids)).last_hidden_state,
    )
    net = CLIPText(CLIPTextConfig.from_json(published.read_json(tmp_path / "config.json")))
    got, found = ours(net, tmp_path, (ids.astype(np.int32),), strip="text_model.")
    assert found == count == TEXT_COUNTS[version]
    assert agree(got.last, theirs)
