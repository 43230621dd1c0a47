"""CLIP in Flax against transformers' own, from folders that transformers saved.

Every tensor is random, norms' and biases' too, so that none can be left out unseen; references are
float64.
"""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from PIL import Image
from safetensors.numpy import load_file, save_file

from dreamjax.errors import UserError
from dreamjax.nets.stable_diffusion.clip import (
    CLIP,
    CLIPConfig,
    CLIPText,
    CLIPTextConfig,
    CLIPVision,
    CLIPVisionConfig,
)
from dreamjax.priors import published
from dreamjax.priors.base import Prompt
from dreamjax.priors.clip import Clip, token_ids

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytest.importorskip("diffusers")
from .tiny_sd import END, START, WORDS, save_tokenizer  # noqa: E402

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("quick_compilation")]
WIDTHS = dict(hidden_size=24, intermediate_size=56, num_attention_heads=3)
TEXT = dict(vocab_size=len(WORDS), max_position_embeddings=11, bos_token_id=START, **WIDTHS)
# Stable Diffusion 1.x and 2.x: activation, layers, and an end token as configs had it before 2023.
TEXTS = {
    "1.x": dict(hidden_act="quick_gelu", num_hidden_layers=2, eos_token_id=END, **TEXT),
    "2.x": dict(hidden_act="gelu", num_hidden_layers=3, eos_token_id=2, **TEXT),
    "one_layer": dict(hidden_act="gelu", num_hidden_layers=1, eos_token_id=END, **TEXT),
}
VISION = dict(image_size=20, patch_size=6, num_hidden_layers=2, **WIDTHS)  # 2 pixels left over
PUBLISHED_MEAN, PUBLISHED_STD = (
    [0.48145466, 0.4578275, 0.40821073],
    [0.26862954, 0.26130258, 0.27577711],
)


def randomised(module):
    """The module, float64, with random weights under which a layer keeps the size of its input."""
    rng = torch.Generator().manual_seed(0)
    module = module.double().eval()
    with torch.no_grad():
        for name, value in module.named_parameters():
            value.normal_(generator=rng)
            if "embedding" in name:
                value.mul_(0.7)
            elif value.ndim >= 2:
                value.div_(value[0].numel() ** 0.5)
            else:
                value.mul_(0.3).add_(1.0 if "norm" in name and name.endswith("weight") else 0.0)
        module.double()
    return module


def save(module, folder):
    module.float().save_pretrained(folder)  # float32 on disk, and what is compared below
    return module.double()


def load(folder, cls, config, *inputs, strip):
    """The network's config and parameters from a folder."""
    config = config.from_json(published.read_json(folder / "config.json"))
    shapes = jax.eval_shape(cls(config).init, jax.random.key(0), *inputs)["params"]
    return config, published.load(folder, shapes, strip=strip)


def assert_close(got, wanted, tolerance):
    """Relative to each example's largest value."""
    got, wanted = np.asarray(got, np.float64), wanted.detach().double().numpy()
    assert got.shape == wanted.shape
    each = tuple(range(1, wanted.ndim))
    assert (np.abs(got - wanted).max(each) < tolerance * np.abs(wanted).max(each)).all()


def ids_of(flavour):
    """Texts with their end in the middle, at the end, twice, and padded with it and with 0."""
    rng = np.random.default_rng(1)
    ids = rng.integers(3, START, (5, 11))
    ids[:, 0] = START
    for row, end in enumerate([1, 4, 10, 6, 4]):
        ids[row, end] = END
        ids[row, end + 1 :] = END if flavour == "1.x" else 0
    ids[4, 7] = END
    return ids


@pytest.mark.parametrize("flavour", TEXTS)
def test_text(flavour, tmp_path):
    config = transformers.CLIPTextConfig(**TEXTS[flavour])
    module = save(randomised(transformers.CLIPTextModel(config)), tmp_path)
    ids = ids_of(flavour)
    with torch.no_grad():
        wanted = module(torch.from_numpy(ids), output_hidden_states=True)
    config, params = load(tmp_path, CLIPText, CLIPTextConfig, ids, strip="text_model.")
    for dtype, tolerance in (("float32", 1e-5), ("bfloat16", 2e-2)):
        net = CLIPText(dataclasses.replace(config, dtype=dtype))
        got = jax.jit(net.apply)({"params": params}, ids)
        assert all(leaf.dtype == jnp.float32 for leaf in got)
        assert_close(got.last, wanted.last_hidden_state, tolerance)
        assert_close(got.penultimate, wanted.hidden_states[-2], tolerance)
        assert_close(got.pooled, wanted.pooler_output, tolerance)


def test_names_with_and_without_a_prefix(tmp_path):
    """Published text encoders have one, and `position_ids`; transformers 5 writes neither."""
    config = transformers.CLIPTextConfig(**TEXTS["1.x"])
    save(randomised(transformers.CLIPTextModel(config)), tmp_path)
    path = tmp_path / "model.safetensors"
    bare = {name.removeprefix("text_model."): value for name, value in load_file(path).items()}
    found = []
    for prefix, more in (("", {}), ("text_model.", {"embeddings.position_ids": np.arange(11)})):
        save_file({prefix + name: value for name, value in (bare | more).items()}, path)
        _, params = load(tmp_path, CLIPText, CLIPTextConfig, ids_of("1.x"), strip="text_model.")
        found.append(params)
    jax.tree.map(np.testing.assert_array_equal, *found)


def test_vision(tmp_path):
    config = transformers.CLIPVisionConfig(layer_norm_eps=1e-3, **VISION)
    module = save(randomised(transformers.CLIPVisionModel(config)), tmp_path)
    images = np.random.default_rng(2).standard_normal((3, 20, 20, 3)).astype(np.float32)
    with torch.no_grad():
        wanted = module(torch.from_numpy(images).double().permute(0, 3, 1, 2)).pooler_output
    config, params = load(tmp_path, CLIPVision, CLIPVisionConfig, images, strip="vision_model.")
    for dtype, tolerance in (("float32", 1e-5), ("bfloat16", 2e-2)):
        net = CLIPVision(dataclasses.replace(config, dtype=dtype))
        got = jax.jit(net.apply)({"params": params}, images)
        assert got.dtype == jnp.float32
        assert_close(got, wanted, tolerance)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A whole CLIP: its folder with a tokenizer, and transformers' module."""
    folder = tmp_path_factory.mktemp("clip")
    config = transformers.CLIPConfig(
        text_config=TEXTS["1.x"], vision_config=VISION, projection_dim=10
    )
    module = save(randomised(transformers.CLIPModel(config)), folder)
    save_tokenizer(folder, "<|endoftext|>")
    return folder, module


def test_whole_clip(whole):
    folder, module = whole
    clip = Clip(weights=str(folder))
    params = clip.load()
    ids = ids_of("1.x")
    images = np.random.default_rng(3).standard_normal((2, 20, 20, 3)).astype(np.float32)
    pixels = torch.from_numpy(images).double().permute(0, 3, 1, 2)
    with torch.no_grad():
        wanted = module(input_ids=torch.from_numpy(ids), pixel_values=pixels)
        text = module.get_text_features(torch.from_numpy(ids)).pooler_output
        image = module.get_image_features(pixels).pooler_output
    for dtype, tolerance in (("float32", 1e-5), ("float16", 5e-3), ("bfloat16", 2e-2)):
        net = CLIP(Clip(weights=str(folder), dtype=dtype).config)
        run = jax.jit(net.apply, static_argnames="method")
        variables = {"params": params}
        assert_close(run(variables, ids, method="text_features"), text, tolerance)
        assert_close(run(variables, images, method="image_features"), image, tolerance)
        assert_close(run(variables, images, ids), wanted.logits_per_image, tolerance)
    # Control: the scale is not the one that it starts from.
    assert abs(float(params["logit_scale"]) - 2.6592) > 0.1
    assert clip.image_size == 20


def test_image_gradient_and_remat(whole):
    folder, module = whole
    images = np.random.default_rng(4).standard_normal((2, 20, 20, 3)).astype(np.float32)
    pull = np.random.default_rng(5).standard_normal((2, 10)).astype(np.float32)
    pixels = torch.from_numpy(images).double().requires_grad_()
    features = module.get_image_features(pixels.permute(0, 3, 1, 2)).pooler_output
    (features * torch.from_numpy(pull)).sum().backward()
    for remat in (False, True):
        clip = Clip(weights=str(folder), remat=remat)
        params = clip.load()

        def loss(images, clip=clip, params=params):
            seen = CLIP(clip.config).apply({"params": params}, images, method="image_features")
            return jnp.sum(pull * seen)

        assert_close(jax.jit(jax.grad(loss))(images), pixels.grad, 1e-5)


def test_clip_reads_texts(whole):
    folder, module = whole
    clip = Clip(weights=str(folder))
    params = clip.load()
    prompts = ["a red ball", "", "  RÉD\u3000🦊 ", "red " * 30]
    got = np.asarray(clip.embed_texts(params, prompts))
    tokenizer = transformers.CLIPTokenizer.from_pretrained(folder)
    ids = tokenizer(
        prompts, padding="max_length", max_length=11, truncation=True, return_tensors="pt"
    ).input_ids
    with torch.no_grad():
        text = module.get_text_features(ids).pooler_output
    assert_close(got, text / text.norm(dim=-1, keepdim=True), 1e-5)
    np.testing.assert_allclose(np.linalg.norm(got, axis=-1), 1.0, rtol=1e-6)
    one = clip.embed(params, Prompt("a red\n ball "))
    assert one.shape == (10,)
    np.testing.assert_allclose(one, got[0], atol=1e-6)


@pytest.mark.parametrize("size", [13, 20, 50])
def test_clip_sees_pictures(whole, size):
    """Resized as PIL does (float, as it rounds pictures of 8 bits), then as the module sees it."""
    folder, module = whole
    rgb = np.random.default_rng(6).uniform(size=(2, size, size, 3)).astype(np.float32)
    clip = Clip(weights=str(folder))
    params = clip.load()
    got = jax.jit(clip.image_features)(params, rgb)
    small = np.stack([pil_resize(image, 20) for image in rgb])
    pixels = (small - np.array(PUBLISHED_MEAN)) / np.array(PUBLISHED_STD)
    with torch.no_grad():
        wanted = module.get_image_features(
            torch.from_numpy(pixels).permute(0, 3, 1, 2)
        ).pooler_output
    assert_close(got, wanted / wanted.norm(dim=-1, keepdim=True), 1e-5)
    np.testing.assert_allclose(np.linalg.norm(got, axis=-1), 1.0, rtol=1e-6)


def pil_resize(image, size):
    channels = [Image.fromarray(image[..., c]) for c in range(3)]
    resized = [np.asarray(c.resize((size, size), Image.Resampling.BICUBIC)) for c in channels]
    return np.float64(np.stack(resized, axis=-1))


def test_pictures_are_normalised_as_the_folder_says(whole, tmp_path):
    folder, _ = whole
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).symlink_to(folder / name)
    path = tmp_path / "preprocessor_config.json"
    path.write_text(json.dumps(dict(image_mean=[0.5, 0.25, 0], image_std=[0.5, 0.5, 1])))
    clip = Clip(weights=str(tmp_path))
    params = clip.load()
    rgb = np.random.default_rng(7).uniform(size=(1, 20, 20, 3)).astype(np.float32)
    plain = Clip(weights=str(folder))
    same = np.float32(PUBLISHED_STD) * (rgb - [0.5, 0.25, 0]) / [0.5, 0.5, 1] + PUBLISHED_MEAN
    got = jax.jit(clip.image_features)(params, rgb)
    see = jax.jit(plain.image_features)
    np.testing.assert_allclose(got, see(params, np.float32(same)), atol=1e-5)
    assert np.abs(got - see(params, rgb)).max() > 1e-2
    for wrong in ([1, 2], [1, 0, 1], "abc", 3, [1, 2, None]):
        path.write_text(json.dumps(dict(image_std=wrong)))
        with pytest.raises(UserError, match="image_std is"):
            Clip(weights=str(tmp_path)).load()


def test_pictures_must_be_square(whole):
    clip = Clip(weights=str(whole[0]))
    params = clip.load()
    with pytest.raises(ValueError, match="4 x 5"):
        clip.image_features(params, jnp.zeros((1, 4, 5, 3)))


@pytest.mark.parametrize("pad, padding", [("<|endoftext|>", END), ("!", 0)])
def test_tokens_are_padded_and_cut_off(tmp_path, pad, padding):
    save_tokenizer(tmp_path, pad)
    a, b = (WORDS.index(letter + "</w>") for letter in "ab")
    found = token_ids(tmp_path, ["a Red\n b", "", "red " * 9, "red " * 4], 6)
    red = WORDS.index("red</w>")
    expected = [
        [START, a, red, b, END, padding],
        [START, END, *[padding] * 4],
        [START, *[red] * 4, END],
        [START, *[red] * 4, END],
    ]
    np.testing.assert_array_equal(found, expected)
    assert found.dtype == np.int32


def test_no_tokenizer_or_a_broken_one(whole, tmp_path):
    with pytest.raises(UserError, match="holds no tokenizer.json"):
        token_ids(tmp_path, ["a"], 5)
    (tmp_path / "vocab.json").write_text("{")
    (tmp_path / "merges.txt").write_text("")
    with pytest.raises(UserError, match="holds no tokenizer_config.json, nor special_tokens_map"):
        token_ids(tmp_path, ["a"], 5)
    (tmp_path / "tokenizer_config.json").write_text("{}")
    with pytest.raises(UserError, match="cannot read "):
        token_ids(tmp_path, ["a"], 5)
    clip = Clip(weights=str(whole[0]))
    params = clip.load()
    other = tmp_path / "other"
    other.mkdir()
    save_tokenizer(other, "<|endoftext|>")
    config = json.loads((whole[0] / "config.json").read_text())
    config["text_config"]["vocab_size"] = END
    (other / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="more than vocab_size"):
        Clip(weights=str(other)).embed_texts(params, ["a"])


def test_texts_and_images_of_a_wrong_size():
    text, vision = CLIPTextConfig(**shape(TEXTS["1.x"])), CLIPVisionConfig(**VISION)
    with pytest.raises(ValueError, match="texts of 12 tokens; the network has 11"):
        CLIPText(text).init(jax.random.key(0), jnp.zeros((1, 12), jnp.int32))
    with pytest.raises(ValueError, match="20 x 20"):
        CLIPVision(vision).init(jax.random.key(0), jnp.zeros((1, 20, 21, 3)))


def shape(settings):
    return {name: value for name, value in settings.items() if name != "bos_token_id"}


OLD_TEXT = dict(hidden_size=768, num_attention_heads=12)
CONFIGS = {
    "defaults": dict(),
    "written out": dict(text_config=TEXTS["2.x"], vision_config=VISION, projection_dim=10),
    # As openai/clip-vit-large-patch14: the older key beside the newer one wins.
    "older keys": dict(
        text_config=dict(eos_token_id=2, hidden_size=512),
        text_config_dict=OLD_TEXT,
        vision_config=VISION,
        vision_config_dict=dict(patch_size=14, hidden_size=1024, num_attention_heads=16),
        projection_dim=768,
    ),
    "no older keys": dict(
        text_config=OLD_TEXT, text_config_dict=None, vision_config=VISION, vision_config_dict=None
    ),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_configs_mean_what_transformers_makes_of_them(name):
    given = {"text_config": {}, "vision_config": {}} | CONFIGS[name]
    theirs = transformers.CLIPConfig(**json.loads(json.dumps(given)))
    ours = CLIPConfig.from_json(given)
    for part in ("text", "vision"):
        made, mine = getattr(theirs, f"{part}_config"), getattr(ours, part)
        for field in dataclasses.fields(mine):
            if field.name not in ("dtype", "remat"):
                assert getattr(mine, field.name) == getattr(made, field.name), field.name
    assert ours.projection_dim == theirs.projection_dim


FULL = {
    "B/32": dict(text_config={}, vision_config={}),
    "B/16": dict(text_config={}, vision_config=dict(patch_size=16)),
    "L/14": dict(
        text_config=dict(OLD_TEXT, intermediate_size=3072),
        vision_config=dict(
            hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16,
            patch_size=14,
        ),
        projection_dim=768,
    ),
}  # fmt: skip
COUNTS = {"B/32": 151_277_313, "B/16": 149_620_737, "L/14": 427_616_513}  # as published


@pytest.mark.parametrize("name", FULL)
def test_names_and_shapes_of_the_published_networks(name):
    with torch.device("meta"):
        module = transformers.CLIPModel(transformers.CLIPConfig(**FULL[name]))
    wanted = {name: tuple(value.shape) for name, value in module.state_dict().items()}
    config = CLIPConfig.from_json(FULL[name])
    size = config.vision.image_size
    images, ids = jnp.zeros((1, size, size, 3)), jnp.zeros((1, 77), jnp.int32)
    shapes = jax.eval_shape(CLIP(config).init, jax.random.key(0), images, ids)["params"]
    flat = flatten_dict(shapes, sep=".")
    found = {
        published.published_name(name): published.published_shape(name, leaf.shape)
        for name, leaf in flat.items()
    }
    assert found == wanted
    assert sum(leaf.size for leaf in flat.values()) == COUNTS[name]


@pytest.mark.parametrize(
    "part, changes, says",
    [
        ("text_config", dict(hidden_act="gelu_new"), "hidden_act 'gelu_new'"),
        ("text_config", dict(hidden_size=25), "num_attention_heads 3"),
        ("text_config", dict(eos_token_id=[1, 2]), "eos_token_id"),
        ("text_config", dict(vocab_size="many"), "vocab_size 'many'"),
        ("text_config", dict(layer_norm_eps=0.0), "layer_norm_eps"),
        ("text_config", dict(model_type="bert"), "model_type 'bert'"),
        ("vision_config", dict(num_channels=4), "num_channels 4"),
        ("vision_config", dict(image_size=[20, 20]), "image_size"),
        ("vision_config", dict(patch_size=21), "patch_size 21"),
        ("vision_config", dict(model_type="siglip_vision_model"), "model_type"),
        ("", dict(model_type="siglip"), "model_type 'siglip'"),
        ("", dict(text_config=3), "text_config 3"),
        ("", dict(projection_dim=0), "projection_dim 0"),
    ],
)
def test_what_cannot_be_represented_is_refused(whole, tmp_path, part, changes, says):
    settings = json.loads((whole[0] / "config.json").read_text())
    (settings[part] if part else settings).update(changes)
    (tmp_path / "config.json").write_text(json.dumps(settings))
    with pytest.raises(UserError, match=says) as error:
        Clip(weights=str(tmp_path)).load()
    assert str(tmp_path / "config.json") in str(error.value)
