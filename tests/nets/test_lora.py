"""LoRA: the merged kernels, and published files against diffusers' own reading of them.

The reference merges in PyTorch, in float64, by diffusers' names of modules.
"""

import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from safetensors.numpy import save_file

from dreamjax.errors import UserError
from dreamjax.nets import lora
from dreamjax.nets.stable_diffusion.unet import SDUNet, SDUNetConfig
from dreamjax.priors import lora_files, published
from dreamjax.priors.stable_diffusion import StableDiffusion, _in_attention

from ..tiny_models import write_tiny_models

pytestmark = pytest.mark.usefixtures("quick_compilation")
RANK = 3
ATTENTION = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1"
KOHYA = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1"


def leaves(tree):
    return flatten_dict(tree, sep=".")


def random_like(params, seed=0):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: jnp.float32(rng.normal(size=x.shape)), params)


def test_merging_is_the_papers():
    rng = np.random.default_rng(0)
    shapes = {"dense": (4, 6), "conv": (3, 3, 4, 6), "other": (4, 6)}
    params = {name: {"kernel": jnp.float32(rng.normal(size=s))} for name, s in shapes.items()}
    factors = lora.init(jax.random.key(0), params, RANK, lambda module: module != ("other",))
    assert {name: value.shape for name, value in leaves(factors).items()} == {
        "dense.down": (4, RANK), "dense.up": (RANK, 6),
        "conv.down": (3, 3, 4, RANK), "conv.up": (RANK, 6),
    }  # fmt: skip
    # Nothing has changed yet, and `down` has the spread of diffusers' layers.
    jax.tree.map(np.testing.assert_array_equal, lora.merge(params, factors), params)
    assert abs(np.std(factors["conv"]["down"]) - 1 / RANK) < 0.35 / RANK
    factors = random_like(factors)
    got = lora.merge(params, factors, 0.5)
    for name in ("dense", "conv"):
        down, up = (np.float64(factors[name][leaf]) for leaf in ("down", "up"))
        wanted = np.float64(params[name]["kernel"]) + 0.5 * np.einsum("...ir,ro->...io", down, up)
        np.testing.assert_allclose(got[name]["kernel"], wanted, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(got["other"]["kernel"], params["other"]["kernel"])


def test_a_merged_convolution_is_two_in_a_row():
    """The published form: a convolution to R channels, then one of 1 x 1."""
    rng = np.random.default_rng(1)
    x, kernel, down, up = (
        jnp.float32(rng.normal(size=shape))
        for shape in [(1, 5, 5, 4), (3, 3, 4, 6), (3, 3, 4, RANK), (RANK, 6)]
    )

    def conv(x, kernel):
        axes = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=axes)

    factors = {"c": {"down": down, "up": up}}
    merged = lora.merge({"c": {"kernel": kernel}}, factors, 2.0)["c"]["kernel"]
    wanted = conv(x, kernel) + 2.0 * conv(x, down) @ up
    np.testing.assert_allclose(conv(x, merged), wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_the_published_size():
    """Rank 4 on all attention of Stable Diffusion 1.5 has diffusers' 797,184 numbers."""
    config = SDUNetConfig.from_json({"cross_attention_dim": 768})
    x, tokens = jnp.zeros((1, 64, 64, 4)), jnp.zeros((1, 77, 768))
    shapes = jax.eval_shape(SDUNet(config).init, jax.random.key(0), x, jnp.zeros(1), tokens)

    def make(key, params):
        return lora.init(key, params, 4, _in_attention)

    factors = jax.eval_shape(make, jax.random.key(0), shapes["params"])
    assert len(leaves(factors)) == 2 * 16 * 2 * 4
    assert sum(leaf.size for leaf in jax.tree.leaves(factors)) == 797_184


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sd")
    write_tiny_models(folder)
    return folder


@pytest.fixture(scope="module")
def params(folder):
    return StableDiffusion(weights=str(folder), cheap_encoder=False).load()


def pair(inputs, outputs, seed=0, conv=None):
    """Published down [R, I, ...] and up [O, R, ...]."""
    rng = np.random.default_rng(seed)
    more, one = ((conv, conv), (1, 1)) if conv else ((), ())
    down = np.float32(rng.normal(size=(RANK, inputs, *more)))
    return down, np.float32(rng.normal(size=(outputs, RANK, *one)))


def changed(before, after):
    """The names of our parameters that differ."""
    before, after = leaves(before), leaves(after)
    assert before.keys() == after.keys()
    return {name for name in before if np.abs(before[name] - after[name]).max() > 0}


@pytest.mark.parametrize(
    ("down_name", "up_name", "alpha"),
    [
        (f"{ATTENTION}.to_q.lora_A.weight", f"{ATTENTION}.to_q.lora_B.weight", None),
        (f"{ATTENTION}.to_q.lora.down.weight", f"{ATTENTION}.to_q.lora.up.weight", None),
        (
            f"{ATTENTION}.processor.to_q_lora.down.weight",
            f"{ATTENTION}.processor.to_q_lora.up.weight",
            None,
        ),
        (f"{KOHYA}_to_q.lora_down.weight", f"{KOHYA}_to_q.lora_up.weight", f"{KOHYA}_to_q.alpha"),
    ],
)
def test_every_layout_of_an_attention(params, down_name, up_name, alpha, tmp_path):
    down, up = pair(8, 8)
    tensors = {down_name: down, up_name: up}
    if alpha:
        tensors[alpha] = np.array(1.5, np.float32)
    save_file(tensors, tmp_path / "lora.safetensors")
    got = lora_files.merge_file(tmp_path / "lora.safetensors", params, 0.7)
    ours = "unet.down_blocks_0.attentions_0.transformer_blocks_0.attn1.to_q.kernel"
    assert changed(params, got) == {ours}
    scale = 0.7 * (1.5 / RANK if alpha else 1.0)
    wanted = np.float64(leaves(params)[ours]) + scale * (np.float64(up) @ down).T
    np.testing.assert_allclose(leaves(got)[ours], wanted, rtol=1e-5, atol=1e-5)


def test_peft_settings_hold_alpha(params, tmp_path):
    down, up = pair(8, 8)
    tensors = {f"{ATTENTION}.to_q.lora_A.weight": down, f"{ATTENTION}.to_q.lora_B.weight": up}
    path, found = tmp_path / "lora.safetensors", []
    for alpha in (RANK, 2 * RANK):
        settings = {"unet.r": RANK, "unet.lora_alpha": alpha, "unet.use_dora": False}
        save_file(tensors, path, {"lora_adapter_metadata": json.dumps(settings)})
        found.append(leaves(lora_files.merge_file(path, params, 1.0)["unet"]))
    name = "down_blocks_0.attentions_0.transformer_blocks_0.attn1.to_q.kernel"
    base = leaves(params["unet"])[name]
    np.testing.assert_allclose(found[1][name] - base, 2 * (found[0][name] - base), atol=1e-5)
    settings["unet.use_rslora"] = True
    save_file(tensors, path, {"lora_adapter_metadata": json.dumps(settings)})
    with pytest.raises(UserError, match="unet.use_rslora True, which is not read"):
        lora_files.merge_file(path, params, 1.0)


def test_the_prior_merges_the_file_that_it_names(folder, params, tmp_path):
    down, up = pair(8, 8)
    save_file({f"{KOHYA}_to_q.lora_down.weight": down, f"{KOHYA}_to_q.lora_up.weight": up},
              tmp_path / "lora.safetensors")  # fmt: skip
    path = str(tmp_path / "lora.safetensors")
    prior = StableDiffusion(weights=str(folder), cheap_encoder=False, lora=path, lora_scale=0.7)
    wanted = lora_files.merge_file(path, params, 0.7)
    jax.tree.map(np.testing.assert_array_equal, prior.load(), wanted)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"down": None}, "without its down weight"),
        ({"up": None}, "without its up weight"),
        ({"down": pair(9, 8)[0]}, r"lora_A.weight is \[3, 9\], not \[3, 8\]; was it made for"),
        ({"up": pair(8, 9)[1]}, r"lora_B.weight is \[9, 3\], not \[8, 3\]"),
        ({"down": np.zeros((0, 8), np.float32)}, r"is \[0, 8\], not \[1, 8\]"),
        ({"down": np.ones((), np.float32)}, r"is \[\], not \[1, 8\]"),
        ({"down": np.full((RANK, 8), np.nan, np.float32)}, "lora_A.weight is not finite"),
        ({"down": np.ones((RANK, 8), np.int32)}, "expected real numbers"),
        ({"unet.down_blocks.7.to_q.lora_A.weight": pair(8, 8)[0]}, "no unet.down_blocks.7"),
        ({"something": pair(8, 8)[0]}, "which has no something$"),
        ({"lora_te2_x.lora_down.weight": pair(8, 8)[0]}, "a LoRA for Stable Diffusion XL"),
        ({f"{KOHYA}_to_q.hada_w1_a": pair(8, 8)[0]}, "is a LoHa"),
        ({f"{KOHYA}_to_q.lokr_w1": pair(8, 8)[0]}, "is a LoKr"),
        ({f"{KOHYA}_to_q.dora_scale": pair(8, 8)[0]}, "is a DoRA"),
        ({f"{KOHYA}_to_q.lora_down.weight": pair(8, 8)[0]}, "has both .*: expected one"),
        ({f"{KOHYA}_to_q.alpha": np.ones(2, np.float32)}, "alpha of .* is no number"),
    ],
)
def test_what_does_not_fit_is_named(params, change, says, tmp_path):
    down, up = pair(8, 8)
    names = {"down": f"{ATTENTION}.to_q.lora_A.weight", "up": f"{ATTENTION}.to_q.lora_B.weight"}
    tensors = {names["down"]: down, names["up"]: up}
    for name, value in change.items():
        tensors[names.get(name, name)] = value
    tensors = {name: value for name, value in tensors.items() if value is not None}
    save_file(tensors, tmp_path / "lora.safetensors")
    with pytest.raises(UserError, match=says):
        lora_files.merge_file(tmp_path / "lora.safetensors", params, 1.0)


def test_files_that_are_no_lora(params, tmp_path):
    (tmp_path / "x.safetensors").write_bytes(b"no tensors")
    save_file({}, tmp_path / "empty.safetensors")
    (tmp_path / "x.pt").write_bytes(b"")
    for name, says in [
        ("x.safetensors", "cannot read weights"),
        ("none.safetensors", "cannot read weights .*No such file"),
        ("empty.safetensors", "holds no tensor"),
        ("x.pt", "is a pickle"),
    ]:
        with pytest.raises(UserError, match=says):
            lora_files.merge_file(tmp_path / name, params, 1.0)


KOHYA_MODULES = [
    "lora_unet_conv_in",
    "lora_unet_time_embedding_linear_1",
    "lora_unet_down_blocks_0_resnets_0_conv1",
    "lora_unet_down_blocks_0_resnets_0_time_emb_proj",
    "lora_unet_down_blocks_0_downsamplers_0_conv",
    "lora_unet_down_blocks_0_attentions_0_proj_in",
    "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k",
    "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_out_0",
    "lora_unet_mid_block_attentions_0_transformer_blocks_0_ff_net_0_proj",
    "lora_unet_up_blocks_1_attentions_1_transformer_blocks_0_ff_net_2",
    "lora_te_text_model_encoder_layers_1_self_attn_q_proj",
    "lora_te_text_model_encoder_layers_0_self_attn_out_proj",
    "lora_te_text_model_encoder_layers_1_mlp_fc1",
]


def torch_module(pipeline, name):
    """The module of a name as diffusers has it today."""
    part, _, path = name.partition(".")
    path = path.replace(".processor.", ".").replace("to_out", "to_out.0")
    if part == "text_encoder":
        for letter in "qkv":
            path = path.replace(f"self_attn.to_{letter}", f"self_attn.{letter}_proj")
        path = path.replace("self_attn.to_out.0", "self_attn.out_proj")
    module = getattr(pipeline, part)
    own = dict(module.named_modules())
    return own[path] if path in own else own[path.removeprefix("text_model.")]


@pytest.mark.slow
@pytest.mark.parametrize("flavour", ["1.x", "2.x"])
def test_a_kohya_file_is_what_diffusers_makes_of_it(flavour, tmp_path):
    """Names and alphas by diffusers' converter, merged in PyTorch; both networks' outputs."""
    torch = pytest.importorskip("torch")
    converters = pytest.importorskip("diffusers.loaders.lora_conversion_utils")
    from ..parity import tiny_sd
    from ..parity.torch_random import agree, nchw, nhwc

    pipeline = tiny_sd.make(tmp_path, flavour)
    plain = StableDiffusion(weights=str(tmp_path / "model"), cheap_encoder=False)
    base = plain.load()
    tensors = {}
    for seed, name in enumerate(KOHYA_MODULES):
        part = "text" if name.startswith("lora_te_") else "unet"
        (module,) = {m for key, m in lora_files._modules(part, base[part]).items() if key == name}
        shape = published.published_shape("x.kernel", module.shape)
        rng, ones = np.random.default_rng(seed), [1] * (len(shape) - 2)
        tensors[f"{name}.lora_down.weight"] = np.float32(rng.normal(size=(RANK, *shape[1:])))
        up = np.float32(0.05 * rng.normal(size=(shape[0], RANK, *ones)))
        tensors[f"{name}.lora_up.weight"] = up
        tensors[f"{name}.alpha"] = np.array(1.0 + seed, np.float32)
    path = tmp_path / "lora.safetensors"
    save_file(tensors, path)
    prior = StableDiffusion(
        weights=str(tmp_path / "model"), cheap_encoder=False, lora=str(path), lora_scale=0.8
    )
    params = prior.load()
    assert len(changed(base, params)) == len(KOHYA_MODULES)

    given = {name: torch.from_numpy(value) for name, value in tensors.items()}
    found, alphas = converters._convert_non_diffusers_lora_to_diffusers(given)
    with torch.no_grad():
        downs = [name for name in found if ".down." in name]
        assert len(downs) == len(KOHYA_MODULES)
        for name in downs:
            down, up = found[name], found[name.replace(".down.", ".up.")]
            alpha = alphas[name.split(".lora.")[0] + ".alpha"]
            stem = re.sub(r"[._](lora|lora_linear_layer)\.down\.weight$", "", name)
            weight = torch_module(pipeline, stem).weight
            change = up.flatten(1) @ down.flatten(1)
            weight += 0.8 * alpha / len(down) * change.reshape(weight.shape)
        rng = np.random.default_rng(0)
        x = np.float32(rng.standard_normal((2, 8, 8, 4)))
        t, tokens = np.array([3, 900]), np.float32(rng.standard_normal((2, 77, 24)))
        unet = pipeline.unet.double()
        wanted = unet(nchw(x), torch.from_numpy(t), torch.from_numpy(tokens).double()).sample
        ids = torch.tensor(pipeline.tokenizer(["a red ball"], padding="max_length").input_ids)
        texts = pipeline.text_encoder.double()(ids).last_hidden_state.numpy()

    text = prior.embed_texts(params, ["a red ball"])
    assert agree(np.asarray(text.tokens), texts, "float32")
    told = text._replace(tokens=jnp.asarray(tokens), mask=jnp.ones((2, 77), bool))
    got = np.asarray(prior.predict(params, x, t, told))
    assert agree(got, nhwc(wanted), "float32")
    # Control: without the file it is another network.
    without = np.asarray(prior.predict(base, x, t, told))
    assert np.abs(without - got).max() > 1e-3 * np.abs(got).max()
