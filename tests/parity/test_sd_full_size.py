"""The full-size networks of SD 1.5 and SD 2.1-base, random weights: counts, one forward each.

Each needs about 12 GB of memory and a few minutes; `-m slow` runs them.
"""

import gc

import jax
import jax.numpy as jnp
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

from . import sd_configs  # noqa: E402

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning"),
]
COUNTS = {"sd15": (859_520_964, 123_060_480), "sd21": (865_910_724, 340_387_840)}
VAE_COUNT = 83_653_863


def count(tree):
    return sum(x.size for x in jax.tree.leaves(tree))


def torch_count(module):
    return sum(p.numel() for p in module.parameters())


def saved(module, folder):
    """Saved in shards; the zeros that networks start with are replaced, so that all is seen."""
    with torch.no_grad():
        for parameter in module.parameters():
            if not parameter.any():
                parameter.normal_(std=0.02)
    module.eval().save_pretrained(folder, max_shard_size="1GB")
    return module


def check(net, module, folder, inputs, theirs):
    wanted = jax.eval_shape(net.init, jax.random.key(0), *inputs)["params"]
    params = published.load(folder, wanted)
    assert count(params) == torch_count(module)
    del module
    gc.collect()
    ours = np.asarray(jax.jit(net.apply)({"params": params}, *inputs))
    assert np.max(np.abs(ours - theirs)) < 1e-4 * np.max(np.abs(theirs))
    return count(params)


@pytest.mark.parametrize("name", sd_configs.UNETS)
def test_unet(name, tmp_path):
    config = sd_configs.UNETS[name]
    torch.manual_seed(0)
    module = saved(diffusers.UNet2DConditionModel(**config), tmp_path)
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    rng = np.random.default_rng(0)
    z_t = rng.normal(size=(1, 64, 64, 4)).astype(np.float32)
    tokens = rng.normal(size=(1, 77, config["cross_attention_dim"])).astype(np.float32)
    with torch.no_grad():
        x = torch.from_numpy(z_t.transpose(0, 3, 1, 2).copy())
        theirs = module(x, torch.tensor([501]), torch.from_numpy(tokens)).sample
    net = SDUNet(SDUNetConfig.from_json(published.read_json(tmp_path / "config.json")))
    inputs = (jnp.asarray(z_t), jnp.array([501]), jnp.asarray(tokens))
    found = check(net, module, tmp_path, inputs, theirs.numpy().transpose(0, 2, 3, 1))
    assert found == COUNTS[name][0]


def test_vae(tmp_path):
    torch.manual_seed(0)
    module = saved(diffusers.AutoencoderKL(**sd_configs.VAE), tmp_path)
    x = np.random.default_rng(0).uniform(-1, 1, (1, 256, 256, 3)).astype(np.float32)
    with torch.no_grad():
        pixels = torch.from_numpy(x.transpose(0, 3, 1, 2).copy())
        theirs = module.decode(module.encode(pixels).latent_dist.mean).sample
    net = AutoencoderKL(VAEConfig.from_json(published.read_json(tmp_path / "config.json")))
    theirs = theirs.numpy().transpose(0, 2, 3, 1)
    assert check(net, module, tmp_path, (jnp.asarray(x),), theirs) == VAE_COUNT


@pytest.mark.parametrize("name", sd_configs.TEXTS)
def test_text_encoder(name, tmp_path):
    torch.manual_seed(0)
    module = saved(CLIPTextModel(TorchTextConfig(**sd_configs.TEXTS[name])), tmp_path)
    ids = np.random.default_rng(0).integers(0, 49405, (2, 77))
    ids[:, 9] = 49407
    with torch.no_grad():
        theirs = module(torch.from_numpy(ids)).last_hidden_state.numpy()
    net = CLIPText(CLIPTextConfig.from_json(published.read_json(tmp_path / "config.json")))
    wanted = jax.eval_shape(net.init, jax.random.key(0), jnp.asarray(ids, jnp.int32))["params"]
    params = published.load(tmp_path, wanted, strip="text_model.")
    assert count(params) == torch_count(module) == COUNTS[name][1]
    ours = jax.jit(net.apply)({"params": params}, jnp.asarray(ids, jnp.int32)).last
    assert np.max(np.abs(np.asarray(ours) - theirs)) < 1e-4 * np.max(np.abs(theirs))
