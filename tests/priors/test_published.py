"""Reading model folders as Hugging Face publishes them, and refusing the broken ones."""

import json
from unittest.mock import MagicMock

import flax.linen as nn
import huggingface_hub
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from huggingface_hub.errors import RepositoryNotFoundError
from safetensors.numpy import save_file

from dreamjax.errors import UserError
from dreamjax.priors import published


class Block(nn.Module):
    """What a published block is made of: a list of layers, one whose name ends in a number."""

    @nn.compact
    def __call__(self, ids, x):
        h = nn.Embed(5, 3, name="token_embedding")(ids)
        h = nn.Dense(4, name="linear_1")(h)
        h = nn.LayerNorm(name="norm1")(h)
        return nn.Conv(2, (3, 1), name="to_out_0")(x), h


class Net(nn.Module):
    @nn.compact
    def __call__(self, ids, x):
        self.param("class_embedding", nn.initializers.ones, (7,))
        return Block(name="down_blocks_1")(ids, x)


SHAPES = {
    "class_embedding": (7,),
    "down_blocks.1.token_embedding.weight": (5, 3),
    "down_blocks.1.linear_1.weight": (4, 3),
    "down_blocks.1.linear_1.bias": (4,),
    "down_blocks.1.norm1.weight": (4,),
    "down_blocks.1.norm1.bias": (4,),
    "down_blocks.1.to_out.0.weight": (2, 6, 3, 1),
    "down_blocks.1.to_out.0.bias": (2,),
}
WANTED = jax.eval_shape(
    Net().init, jax.random.key(0), jnp.zeros(1, int), jnp.zeros((1, 8, 8, 6))
)["params"]  # fmt: skip


@pytest.fixture
def tensors():
    rng = np.random.default_rng(0)
    return {name: rng.normal(size=shape).astype(np.float16) for name, shape in SHAPES.items()}


def fails(folder, says):
    with pytest.raises(UserError, match=says):
        published.load(folder, WANTED)


def test_every_tensor_lands_in_its_place(tmp_path, tensors):
    save_file(tensors, tmp_path / "diffusion_pytorch_model.safetensors")
    flat = flatten_dict(published.load(tmp_path, WANTED), sep=".")
    assert len(flat) == len(SHAPES) and all(v.dtype == jnp.float32 for v in flat.values())
    dense = flat["down_blocks_1.linear_1.kernel"]
    np.testing.assert_array_equal(dense, tensors["down_blocks.1.linear_1.weight"].T)
    conv, theirs = flat["down_blocks_1.to_out_0.kernel"], tensors["down_blocks.1.to_out.0.weight"]
    assert conv.shape == (3, 1, 6, 2)
    for o, i, h in np.ndindex(2, 6, 3):
        assert conv[h, 0, i, o] == theirs[o, i, h, 0]
    for ours, name in (("norm1.scale", "norm1.weight"), ("linear_1.bias", "linear_1.bias")):
        np.testing.assert_array_equal(
            flat["down_blocks_1." + ours], tensors["down_blocks.1." + name]
        )


def test_former_names_prefixes_and_buffers(tmp_path, tensors):
    old = {
        "text_model." + name.replace("linear_1", "query"): value for name, value in tensors.items()
    }
    old["text_model.embeddings.position_ids"] = np.arange(77)
    save_file(old, tmp_path / "model.safetensors")
    wanted = {**WANTED, "down_blocks_1": dict(WANTED["down_blocks_1"])}
    wanted["down_blocks_1"]["to_q"] = wanted["down_blocks_1"].pop("linear_1")
    params = published.load(tmp_path, wanted, strip="text_model.")
    kernel = params["down_blocks_1"]["to_q"]["kernel"]
    np.testing.assert_array_equal(kernel, tensors["down_blocks.1.linear_1.weight"].T)


@pytest.mark.parametrize("variant, dotted", [("", ""), (".fp16", ".fp16")])
def test_shards(tmp_path, tensors, variant, dotted):
    names = sorted(tensors)
    files = [f"model{dotted}-0000{i}-of-00002.safetensors" for i in (1, 2)]
    weight_map = {name: files[i % 2] for i, name in enumerate(names)}
    for file in files:
        save_file({n: tensors[n] for n in names if weight_map[n] == file}, tmp_path / file)
    index = tmp_path / f"model.safetensors.index{variant}.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    whole = published.load(tmp_path, WANTED)
    np.testing.assert_array_equal(whole["class_embedding"], tensors["class_embedding"])
    (tmp_path / files[1]).unlink()
    fails(tmp_path, f"names {files[1]}, which is not there")


def test_full_precision_comes_first(tmp_path, tensors):
    save_file(tensors, tmp_path / "model.fp16.safetensors")
    ones = {name: np.ones_like(value) for name, value in tensors.items()}
    assert float(published.load(tmp_path, WANTED)["class_embedding"][0]) != 1.0
    save_file(ones, tmp_path / "model.safetensors")
    assert float(published.load(tmp_path, WANTED)["class_embedding"][0]) == 1.0


def test_what_does_not_fit_is_listed_by_name(tmp_path, tensors):
    tensors["down_blocks.1.norm2.bias"] = tensors.pop("down_blocks.1.norm1.bias")
    tensors["class_embedding"] = np.zeros(8, np.float16)
    save_file(tensors, tmp_path / "model.safetensors")
    fails(tmp_path, r"missing down_blocks.1.norm1.bias; left over down_blocks.1.norm2.bias; class")
    fails(tmp_path, r"class_embedding is \[8\], not \[7\]")


def test_broken_files(tmp_path, tensors):
    fails(tmp_path / "none", "no folder")
    tensors["class_embedding"][3] = np.nan
    save_file(tensors, tmp_path / "model.safetensors")
    fails(tmp_path, "class_embedding is not finite")
    (tmp_path / "model.safetensors").write_bytes((tmp_path / "model.safetensors").read_bytes()[:-8])
    fails(tmp_path, r"cannot read weights .*model.safetensors")
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    fails(tmp_path, "only as pytorch_model.bin, a pickle")


def test_what_is_fetched_of_a_repository():
    half = [
        "unet/config.json", "unet/diffusion_pytorch_model.bin",
        "unet/diffusion_pytorch_model.fp16.bin", "unet/diffusion_pytorch_model.fp16.safetensors",
        "unet/diffusion_pytorch_model.non_ema.safetensors",
        "unet/diffusion_pytorch_model.safetensors", "v1-5-pruned.safetensors",
    ]  # fmt: skip
    pattern = published._chosen("a/b", half, "unet")
    assert pattern == "unet/diffusion_pytorch_model.fp16*.safetensors"
    root = ["config.json", "model.safetensors", "pytorch_model.bin", "flax_model.msgpack"]
    assert published._chosen("a/b", root, "") == "model*.safetensors"
    shards = ["unet/model-00001-of-00002.safetensors", "unet/model-00002-of-00002.safetensors"]
    assert published._chosen("a/b", shards, "unet") == "unet/model*.safetensors"
    with pytest.raises(UserError, match="a/b/unet has its weights only as x.bin, a pickle"):
        published._chosen("a/b", ["unet/x.bin"], "unet")


def test_only_an_id_may_use_the_network():
    with pytest.raises(UserError, match="neither a folder nor a repository id"):
        published.find("no/such/folder", ["unet"])


@pytest.mark.slow
def test_no_network(monkeypatch, tmp_path):
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    with pytest.raises(UserError, match="has not been fetched before, and cannot be now: .+"):
        published.find("dreamjax-nobody/nothing", ["unet"])


@pytest.mark.parametrize("error", [ConnectionError("no network"), "404"], ids=["offline", "gone"])
def test_what_was_fetched_before_works_without_the_network(monkeypatch, tmp_path, error):
    if error == "404":
        error = RepositoryNotFoundError("no such\nrepository", response=MagicMock(headers={}))

    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr(huggingface_hub, "list_repo_files", fail)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UserError, match="a/b has not been fetched before, and cannot be now: no "):
        published.find("a/b", ["unet"])
    model = tmp_path / "models--a--b"
    kept = model / "snapshots" / ("0" * 40)
    kept.mkdir(parents=True)
    (model / "refs").mkdir()
    (model / "refs" / "main").write_text("0" * 40)
    (kept / "model_index.json").write_text("{}")
    assert published.find("a/b", ["unet"]) == kept
