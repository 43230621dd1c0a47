"""Files of published weights that fit and that do not; nothing here needs PyTorch."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from dreamjax.diffusion.schedule import cosine
from dreamjax.errors import UserError
from dreamjax.nets.adm import ADMConfig, imagenet
from dreamjax.priors.guided_diffusion import GuidedDiffusion, load, load_classifier
from dreamjax.priors.guided_diffusion_classifier import GuidedDiffusionClassifier
from dreamjax.priors.sampling import Sampler
from dreamjax.tasks.sample import Sample

CONFIG = ADMConfig(
    8, channels=32, channel_mults=(1,), res_blocks=1, attention_sizes=(8,), heads=2, num_classes=5
)
CLASSIFIER = ADMConfig(
    8, channels=32, channel_mults=(1,), res_blocks=1, attention_sizes=(), head_dim=16
)


def layer(name, *shape):
    return {f"{name}.weight": shape, f"{name}.bias": shape[:1]}


def block(name, c):
    """A residual block from c channels to 32, with time and class in 128."""
    skip = layer(f"{name}.skip_connection", 32, c, 1, 1) if c != 32 else {}
    return (
        layer(f"{name}.in_layers.0", c)
        | layer(f"{name}.in_layers.2", 32, c, 3, 3)
        | layer(f"{name}.emb_layers.1", 64, 128)
        | layer(f"{name}.out_layers.0", 32)
        | layer(f"{name}.out_layers.3", 32, 32, 3, 3)
        | skip
    )


def attention(name):
    return (
        layer(f"{name}.norm", 32)
        | layer(f"{name}.qkv", 96, 32, 1)
        | layer(f"{name}.proj_out", 32, 32, 1)
    )


ENCODER = (
    layer("time_embed.0", 128, 32)
    | layer("time_embed.2", 128, 128)
    | layer("input_blocks.0.0", 32, 3, 3, 3)
    | block("input_blocks.1.0", 32)
    | block("middle_block.0", 32)
    | attention("middle_block.1")
    | block("middle_block.2", 32)
    | layer("out.0", 32)
)
UNET_SHAPES = (
    ENCODER
    | {"label_emb.weight": (5, 128)}
    | attention("input_blocks.1.1")
    | block("output_blocks.0.0", 64)
    | attention("output_blocks.0.1")
    | block("output_blocks.1.0", 64)
    | attention("output_blocks.1.1")
    | layer("out.2", 3, 32, 3, 3)
)
CLASSIFIER_SHAPES = (
    ENCODER
    | {"out.2.positional_embedding": (32, 65)}
    | layer("out.2.qkv_proj", 96, 32, 1)
    | layer("out.2.c_proj", 7, 32, 1)
)


def drawn(shapes, dtype=np.float32):
    rng = np.random.default_rng(0)
    return {name: rng.standard_normal(shape).astype(dtype) for name, shape in shapes.items()}


@pytest.fixture
def tensors():
    return drawn(UNET_SHAPES)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "unet.safetensors"


def test_names_and_layouts(tensors, path):
    save_file(tensors, path)
    params = load(path, CONFIG)
    assert len(jax.tree.leaves(params)) == len(tensors)
    pairs = [
        (params["down_0_0"]["conv_in"]["kernel"], "input_blocks.1.0.in_layers.2.weight"),
        (params["up_0_1"]["skip"]["kernel"], "output_blocks.1.0.skip_connection.weight"),
    ]
    for ours, name in pairs:
        np.testing.assert_array_equal(ours, np.einsum("oihw->hwio", tensors[name]))
    qkv = tensors["output_blocks.0.1.qkv.weight"]
    np.testing.assert_array_equal(params["up_0_0_attention"]["qkv"]["kernel"], qkv[:, :, 0].T)
    time_in = params["cond"]["time_in"]["kernel"]
    np.testing.assert_array_equal(time_in, tensors["time_embed.0.weight"].T)
    np.testing.assert_array_equal(params["cond"]["label"]["embedding"], tensors["label_emb.weight"])
    np.testing.assert_array_equal(params["norm_out"]["scale"], tensors["out.0.weight"])


@pytest.mark.parametrize("dtype", [np.float16, jnp.bfloat16])
def test_narrow_floats_become_float32(dtype, tmp_path):
    tensors = drawn(UNET_SHAPES, dtype)
    save_file(tensors, tmp_path / "half.safetensors")
    params = load(tmp_path / "half.safetensors", CONFIG)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    np.testing.assert_array_equal(params["in"]["bias"], tensors["input_blocks.0.0.bias"])


def test_the_classifiers_pool(tmp_path):
    tensors = drawn(CLASSIFIER_SHAPES)
    save_file(tensors, tmp_path / "classifier.safetensors")
    params = load_classifier(tmp_path / "classifier.safetensors", CLASSIFIER, 7)
    assert len(jax.tree.leaves(params)) == len(tensors)
    np.testing.assert_array_equal(params["place"], tensors["out.2.positional_embedding"].T)
    pool_out = params["pool_out"]["kernel"]
    np.testing.assert_array_equal(pool_out, tensors["out.2.c_proj.weight"][:, :, 0].T)


def drop(tensors):
    del tensors["out.2.bias"]


def rename(tensors):
    tensors["middle_block.1.projection.weight"] = tensors.pop("middle_block.1.proj_out.weight")


def add(tensors):
    tensors["input_blocks.2.0.op.weight"] = np.zeros((32, 32, 3, 3), np.float32)


def turn(tensors):
    tensors["label_emb.weight"] = tensors["label_emb.weight"].T


def flatten(tensors):
    tensors["middle_block.1.qkv.weight"] = tensors["middle_block.1.qkv.weight"][:, :, 0]


def spoil(tensors):
    tensors["time_embed.0.bias"][3] = np.inf


def prefix(tensors):
    for name in list(tensors):
        tensors[f"module.{name}"] = tensors.pop(name)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (drop, "missing out.2.bias$"),
        (
            rename,
            "missing middle_block.1.proj_out.weight; left over middle_block.1.projection.weight$",
        ),
        (add, "left over input_blocks.2.0.op.weight$"),
        (turn, r"label_emb.weight is \[128, 5\], not \[5, 128\]$"),
        (flatten, r"middle_block.1.qkv.weight is \[96, 32\], not \[96, 32, 1\]$"),
        (spoil, "time_embed.0.bias is not finite"),
        (prefix, f"and {2 * len(UNET_SHAPES) - 4} more$"),
    ],
)
def test_tensors_that_do_not_fit_are_named(tensors, path, change, says):
    change(tensors)
    save_file({name: np.ascontiguousarray(value) for name, value in tensors.items()}, path)
    with pytest.raises(UserError, match=says) as error:
        load(path, CONFIG)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_each_network_refuses_the_others_tensors(tensors, path):
    save_file(tensors, path)
    with pytest.raises(UserError, match="left over label_emb|missing out.2"):
        load_classifier(path, CLASSIFIER, 7)
    save_file(drawn(CLASSIFIER_SHAPES), path)
    with pytest.raises(UserError, match=r"c_proj.weight is \[7, 32, 1\], not \[9, 32, 1\]"):
        load_classifier(path, CLASSIFIER, 9)


SMALL = dict(image_size=8, channels=32, channel_mults=(1,), res_blocks=1, noise="linear", steps=50)


def test_pictures_are_drawn_with_such_weights_and_such_a_classifier(tensors, path, tmp_path):
    save_file({name: 0.1 * value for name, value in tensors.items()}, path)
    save_file(drawn(CLASSIFIER_SHAPES), tmp_path / "judge.safetensors")
    prior = GuidedDiffusion(
        weights=str(path), attention_sizes=(8,), heads=2, head_dim=0, split_qkv_first=False,
        resblock_updown=False, num_classes=5, learns_variance=False, **SMALL,
    )  # fmt: skip
    assert prior.net.net == CONFIG and prior.classes == tuple("01234")
    np.testing.assert_allclose(prior.schedule.betas[[0, -1]], [0.1 / 50, 20.0 / 50])
    judge = GuidedDiffusionClassifier(
        weights=str(tmp_path / "judge.safetensors"), attention_sizes=(), head_dim=16,
        resblock_updown=False, num_classes=7, **SMALL,
    )  # fmt: skip
    sampler = Sampler(method="ancestral", steps=3, classifier_scale=1.0)
    task = Sample(prior=prior, classifier=judge, prompts=("4",), per_prompt=2, sampler=sampler)
    with pytest.raises(UserError, match="trained with another classes than the model"):
        task.run(tmp_path / "run")
    narrow = drawn(CLASSIFIER_SHAPES | layer("out.2.c_proj", 5, 32, 1))
    save_file(narrow, tmp_path / "judge.safetensors")
    judge = dataclasses.replace(judge, num_classes=5)
    dataclasses.replace(task, classifier=judge).run(tmp_path / "run")
    names = sorted(p.name for p in (tmp_path / "run" / "images").iterdir())
    assert names == ["4-000.png", "4-001.png"]
    with pytest.raises(UserError, match="no class '7'"):
        dataclasses.replace(task, classifier=judge, prompts=("7",)).run(tmp_path / "other")


def test_the_defaults_are_the_published_ones_of_64_pixels():
    ours = GuidedDiffusion(weights="x").net
    assert ours.net == dataclasses.replace(imagenet(64), dropout=0.0)
    assert ours.variance == "learned_range" and ours.schedule == cosine(1000)
    with pytest.raises(UserError, match="GuidedDiffusionClassifier needs weights"):
        GuidedDiffusionClassifier().load()


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (dict(image_size=0), "image_size is 0: expected at least 1"),
        (dict(image_size=10**6), "image_size is 1000000"),
        (dict(image_size=60), "must divide by 8"),
        (dict(channels=10**9), "channels is 1000000000"),
        (dict(channels=48), "must divide by 32"),
        (dict(head_dim=7), "heads of 7 channels"),
        (dict(channel_mults=()), "expected 1 to 8 factors"),
        (dict(channel_mults=(1,) * 9), "expected 1 to 8 factors"),
        (dict(res_blocks=-1), "res_blocks is -1"),
        (dict(dtype="int8"), "dtype is 'int8'"),
        (dict(noise="zzz"), "noise is 'zzz'"),
        (dict(steps=1), "steps is 1"),
    ],
)
def test_layouts_that_cannot_be(changes, says):
    with pytest.raises(UserError, match=says) as error:
        GuidedDiffusion(**changes)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", ["missing", "directory", "empty", "truncated", "no weights"])
def test_a_file_that_cannot_be_read_is_named(content, tensors, path):
    if content == "directory":
        path.mkdir()
    elif content == "truncated":
        save_file(tensors, path)
        path.write_bytes(path.read_bytes()[:-100])
    elif content != "missing":
        path.write_bytes(b"" if content == "empty" else b"not weights at all" * 9)
    with pytest.raises(UserError, match="cannot read weights") as error:
        load(path, CONFIG)
    assert "\n" not in str(error.value) and str(path) in str(error.value)
