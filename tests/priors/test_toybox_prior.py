"""The shipped prior's interface, its words, and its file."""

import dataclasses
import json
import subprocess

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from dreamjax.diffusion.process import q_sample, v_from_x0_eps
from dreamjax.diffusion.reverse import predicted_eps
from dreamjax.errors import UserError
from dreamjax.nets.text import TextConfig, TextEncoder
from dreamjax.nets.unet import UNet, UNetConfig
from dreamjax.priors import toybox
from dreamjax.priors.base import Prompt
from dreamjax.priors.toybox import Toybox, ToyboxNet, colorless, load, save, tokenise
from dreamjax.priors.words import PAPER_VIEWS
from dreamjax.scene.camera import orbit
from dreamjax.scene.views import Views, all_names
from dreamjax.toybox.captions import VIEW_NAMES
from dreamjax.toybox.kinds import COLORS

pytestmark = pytest.mark.usefixtures("quick_compilation")

VOCABULARY = ("", "a", "ball", "blue", "on", "red", "view")
NET = ToyboxNet(
    unet=UNetConfig(
        channels=16, channel_mults=(1, 2), down_blocks=(1,), middle_blocks=1, up_blocks=(1,),
        attention_levels=(1,), head_dim=8, text_dim=16,
    ),
    text=TextConfig(vocabulary_size=7, length=6, dim=16, layers=1, heads=2),
    vocabulary=VOCABULARY,
    image_size=8,
    schedule_steps=100,
)  # fmt: skip


@pytest.fixture(scope="module")
def params():
    leaves, tree = jax.tree.flatten(jax.jit(NET.init)(jax.random.key(0)))
    keys = jax.random.split(jax.random.key(1), len(leaves))
    noisy = [x + 0.1 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)]
    return jax.tree.unflatten(tree, noisy)


@pytest.fixture
def saved(params, tmp_path):
    path = tmp_path / "prior.safetensors"
    save(path, NET, params)
    return path


def rewrite(path, change):
    """Save the file again with `change(tensors, metadata)` applied in place."""
    tensors = load_file(path)
    metadata = toybox_metadata(path)
    change(tensors, metadata)
    save_file(tensors, path, metadata)


def toybox_metadata(path):
    raw = path.read_bytes()
    return json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])["__metadata__"]


def test_members():
    assert NET.parameterisation.prediction == "v"
    assert NET.schedule.num_steps == 100
    assert NET.schedule is NET.schedule
    assert hash(NET) == hash(NET)  # static under jit


@pytest.mark.parametrize(
    "text, numbers",
    [
        ("a red ball", [1, 5, 2, 0, 0, 0]),
        ("A Red, BALL!", [1, 5, 2, 0, 0, 0]),
        ("an red-ball", [1, 5, 2, 0, 0, 0]),
        ("", [0] * 6),
        ("a a a a a a", [1] * 6),
    ],
)
def test_tokenise(text, numbers):
    ids = tokenise(text, VOCABULARY, 6)
    assert ids.dtype == np.int32
    np.testing.assert_array_equal(ids, numbers)


def test_an_unknown_word_is_named_with_its_nearest():
    with pytest.raises(UserError) as error:
        tokenise("a blu dragon", VOCABULARY, 6)
    message = str(error.value)
    assert "'blu'" in message and "blue" in message and "\n" not in message
    with pytest.raises(UserError, match="'zzz'; nothing it knows is near"):
        tokenise("a blue zzz", VOCABULARY, 6)


SD = "--config.prior.weights=stable-diffusion-v1-5/stable-diffusion-v1-5"


@pytest.mark.parametrize(
    "text, words",
    [
        ("a zebra", ["--config.prompt=a zebra", "--workdir=runs/zebra"]),
        ('a "big"\n $HOME `cat`', ['--config.prompt=a "big" $HOME `cat`', "--workdir=runs/big"]),
    ],
)
def test_an_unknown_word_is_told_with_the_command_that_understands_it(text, words):
    """The command is complete: a shell reads it as the very prompt."""
    with pytest.raises(UserError) as error:
        Toybox().embed({}, Prompt(text))
    start = ["python", "-m", "dreamjax.main", "--config=sd15", SD]
    assert read_by_a_shell(error.value) == [*start, *words]


def read_by_a_shell(error):
    """The words of the command at the end of the message."""
    message = str(error)
    assert "\n" not in message
    command = message.partition("understands free text: ")[2]
    shell = ["bash", "-c", f"printf '%s\\n' {command}"]
    return subprocess.run(shell, capture_output=True, text=True, check=True).stdout.splitlines()


def test_pictures_of_an_unknown_word_are_told_with_another_command():
    with pytest.raises(UserError) as error:
        NET.embed_texts({}, ["a ball", "a zebra"])
    *start, prompts, workdir = read_by_a_shell(error.value)
    assert start == ["python", "-m", "dreamjax.main", "--config=sd_sample", SD]
    assert prompts == "--config.prompts=('a zebra',)" and workdir == "--workdir=runs/zebra"


def test_too_many_words():
    with pytest.raises(UserError, match="7 words.* 6"):
        tokenise("a a a a a a a", VOCABULARY, 6)


def test_embed(params):
    text = NET.embed_texts(params, ["a red ball", "", "a blue ball"])
    assert text.tokens.shape == (3, 6, 16)
    np.testing.assert_array_equal(text.mask.sum(1), [3, 0, 3])
    assert jnp.abs(text.tokens[0] - text.tokens[2]).max() > 1e-3
    np.testing.assert_array_equal(text.tokens[1], 0.0)


def test_encode(params):
    key = jax.random.key(0)
    rgb = jax.random.uniform(key, (2, 8, 8, 3))
    for cheap in (False, True):
        keys = jax.random.split(key)
        np.testing.assert_allclose(NET.encode(params, rgb, keys, cheap), 2 * rgb - 1, atol=1e-6)
    for size in (4, 16):
        flat = NET.encode(params, jnp.full((1, size, size, 3), 0.75), key[None])
        np.testing.assert_allclose(flat, np.full((1, 8, 8, 3), 0.5), atol=1e-6)
    # Shrinking smooths: every pixel counts, so none has a gradient of zero.
    grad = jax.grad(lambda rgb: NET.encode(params, rgb, key[None]).sum())(jnp.zeros((1, 32, 32, 3)))
    assert grad.min() > 0
    np.testing.assert_allclose(grad.sum(), 2 * 8 * 8 * 3, rtol=1e-5)


def test_eps_is_that_of_the_networks_v(params):
    """Where the network's v is exact, so is eps; checked by the definition of v."""
    x_0, eps = jax.random.normal(jax.random.key(2), (2, 3, 8, 8, 3))
    t = jnp.array([0, 50, 99])
    x_t = q_sample(NET.schedule, x_0, t, eps)
    text = NET.embed_texts(params, ["a red ball", "", "a blue ball"])
    v = jax.jit(NET.predict)(params, x_t, t, text)
    got = predicted_eps(NET.schedule, NET.parameterisation, x_t, t, v)
    assert got.dtype == jnp.float32
    v_true = v_from_x0_eps(NET.schedule, x_0, t, eps)
    scale = np.sqrt(NET.schedule.alpha_bar)[np.asarray(t)].reshape(3, 1, 1, 1)
    np.testing.assert_allclose(got - eps, scale * (v - v_true), atol=2e-5)


def test_the_shipped_prior_has_not_changed():
    """What it predicted for this noise and these texts before priors became settings."""
    prior = Toybox()
    params = prior.load()
    texts = ["a red ball, front view", "", "a purple chair made of clay, side view"]
    z_t = jnp.float32(np.random.default_rng(0).normal(size=(3, 32, 32, 3)))
    t = jnp.array([5, 500, 990])
    got = jax.jit(prior.predict)(params, z_t, t, prior.embed_texts(params, texts))
    stored = [
        [0.8225085139274597, 0.19359605014324188, -1.3521463871002197],
        [1.6323410272598267, 0.3750461935997009, -1.03389310836792],
        [-0.14069373905658722, 0.012962687760591507, -0.14474618434906006],
    ]
    np.testing.assert_allclose(got[:, 3, 7], stored, rtol=0, atol=1e-4)
    np.testing.assert_allclose([got.std(), got.mean()], [1.2733854, -0.04067497], atol=1e-4)
    # And bit for bit what the network's module says.
    net = prior.net
    ids = jnp.stack([tokenise(text, net.vocabulary, net.text.length) for text in texts])
    text = TextEncoder(net.text).apply({"params": params["text"]}, ids)
    wanted = jax.jit(UNet(net.unet).apply)({"params": params["unet"]}, z_t, t, text)
    np.testing.assert_array_equal(got, wanted)


def test_half_precision_is_asked_for_by_name(saved, params):
    x = jnp.zeros((1, 8, 8, 3))
    found = {}
    for dtype in ("float32", "bfloat16", "float16"):
        prior = Toybox(weights=str(saved), dtype=dtype)
        assert prior.net.unet.dtype == dtype and prior.net.text == NET.text
        text = prior.embed_texts(params, ["a red ball"])
        found[dtype] = jax.jit(prior.predict)(params, x, jnp.array([50]), text)
    scale = np.abs(found["float32"]).max()
    for dtype, tolerance in (("bfloat16", 5e-2), ("float16", 5e-3)):
        error = np.abs(found[dtype].astype(jnp.float32) - found["float32"]).max() / scale
        assert 1e-6 < error < tolerance
    with pytest.raises(UserError, match="dtype is 'int8'"):
        Toybox(dtype="int8")


def test_colours_are_left_out():
    assert toybox.COLORS == tuple(COLORS)
    assert colorless("a red mug with a Blue  handle") == "a mug with a handle"
    assert colorless("a redwood tree, whiteboard") == "a redwood tree, whiteboard"
    every = " ".join(COLORS)
    assert colorless(f"a {every} ball") == "a ball"


def views_at(azimuth, elevation, textureless):
    azimuth, elevation = jnp.float32(azimuth), jnp.float32(elevation)
    camera = jax.vmap(lambda a, e: orbit(a, e, 3.0, 1.2))(azimuth, elevation)
    return Views(camera, jnp.arange(len(azimuth)), azimuth * 0 + 1, jnp.float32(textureless))


def test_a_view_is_told_by_its_own_name_and_without_colours_where_it_shows_shape_alone():
    prior = Toybox()
    params = prior.load()
    embedded = prior.embed(params, Prompt("a red Ball", "a blue cube"))
    views = views_at([0.0, 50.0, 180.0, -90.0], [0.0, 20.0, 70.0, 5.0], [0.0, 1.0, 0.0, 1.0])
    found = jax.jit(prior.condition)(embedded, views)
    said = [
        "a red ball, front view",
        "a ball made of clay, front and side view from above",
        "a red ball, back overhead view",
        "a ball made of clay, side view",
    ]
    assert all(text.split(", ")[1] in all_names(VIEW_NAMES) for text in said)

    def is_of(text, texts):
        wanted = prior.embed_texts(params, texts)
        np.testing.assert_array_equal(text.mask, wanted.mask)
        np.testing.assert_allclose(text.tokens, wanted.tokens, atol=1e-5)

    is_of(found.cond, said)
    is_of(found.uncond, ["a blue cube"] * 4)
    is_of(found.negatives[0][0], [f"{s.split(', ')[0]}, front view" for s in said])
    is_of(found.negatives[1][0], [f"{s.split(', ')[0]}, side view" for s in said])
    np.testing.assert_allclose(found.negatives[0][1][0], 0.0, atol=1e-6)  # the front is seen
    plain = Toybox(textureless_words="")
    bare = plain.condition(plain.embed(params, Prompt("a red ball")), views)
    is_of(bare.cond, [f"a red ball, {s.split(', ')[1]}" for s in said])


@pytest.mark.parametrize("prompt", ["", "!!!", "🦊"])
def test_a_prompt_without_a_word(prompt):
    with pytest.raises(UserError, match="has no word in it") as error:
        Toybox().embed({}, Prompt(prompt))
    assert "\n" not in str(error.value)


def test_save_and_load(params, saved):
    prior, loaded = load(saved)
    assert prior == NET
    assert [p.name for p in saved.parent.iterdir()] == [saved.name]
    assert jax.tree.structure(loaded) == jax.tree.structure(params)
    for got, want in zip(jax.tree.leaves(loaded), jax.tree.leaves(params), strict=True):
        assert got.dtype == jnp.float32
        np.testing.assert_array_equal(got, np.asarray(want, np.float16).astype(np.float32))
        np.testing.assert_allclose(got, want, rtol=2e-3, atol=1e-6)
    assert all(tensor.dtype == np.float16 for tensor in load_file(saved).values())


def test_view_names_are_kept(params, tmp_path):
    names = ((20.0, ("front view", "back view")), (90.0, ("overhead view",)))
    save(tmp_path / "p.safetensors", dataclasses.replace(NET, view_names=names), params)
    assert load(tmp_path / "p.safetensors")[0].view_names == names
    assert load()[0].view_names == VIEW_NAMES  # the shipped one's, as its training captions


def test_a_file_from_before_view_names_has_the_papers(saved):
    def forget(tensors, metadata):
        description = json.loads(metadata["prior"])
        del description["view_names"]
        metadata["prior"] = json.dumps(description)

    rewrite(saved, forget)
    assert load(saved)[0].view_names == PAPER_VIEWS


def test_a_failed_save_leaves_the_old_file(params, saved):
    before = saved.read_bytes()
    broken = {**params, "text": jax.tree.map(lambda x: x + 1e6, params["text"])}
    with pytest.raises(UserError, match="not finite in float16"):
        save(saved, NET, broken)
    assert saved.read_bytes() == before
    with pytest.raises(UserError, match="cannot write"):
        save(saved / "inside_a_file", NET, params)


def test_no_file_and_no_weights(tmp_path):
    cases = {"missing": None, "directory": "dir", "empty": b"", "text": b"not weights at all" * 9}
    for name, content in cases.items():
        path = tmp_path / name
        if content == "dir":
            path.mkdir()
        elif content is not None:
            path.write_bytes(content)
        with pytest.raises(UserError, match="cannot read weights") as error:
            load(path)
        assert "\n" not in str(error.value) and str(path) in str(error.value)


def test_a_truncated_file(saved):
    saved.write_bytes(saved.read_bytes()[:-100])
    with pytest.raises(UserError, match="cannot read weights"):
        load(saved)


def drop(tensors, metadata):
    del tensors["unet.conv_in.bias"]


def add(tensors, metadata):
    tensors["unet.extra"] = np.zeros(3, np.float16)


def reshape(tensors, metadata):
    tensors["unet.conv_in.bias"] = np.zeros(3, np.float16)


def spoil(tensors, metadata):
    tensors["unet.conv_in.bias"][2] = np.nan


def other_format(tensors, metadata):
    metadata["format"] = "pt"


def no_json(tensors, metadata):
    metadata["prior"] = "{"


def unknown_field(tensors, metadata):
    fields = json.loads(metadata["prior"])
    fields["unet"]["colour"] = 3
    metadata["prior"] = json.dumps(fields)


def missing_field(tensors, metadata):
    fields = json.loads(metadata["prior"])
    del fields["text"]
    metadata["prior"] = json.dumps(fields)


def short_vocabulary(tensors, metadata):
    fields = json.loads(metadata["prior"])
    fields["vocabulary"] = fields["vocabulary"][:-1]
    metadata["prior"] = json.dumps(fields)


@pytest.mark.parametrize(
    "change, message",
    [
        (drop, "missing unet.conv_in.bias"),
        (add, "left over unet.extra"),
        (reshape, r"unet.conv_in.bias is \[3\], not \[16\]"),
        (spoil, "unet.conv_in.bias is not finite"),
        (other_format, "of format 'pt', not 'dreamjax-toybox-1'"),
        (no_json, "cannot make sense"),
        (unknown_field, "cannot make sense.*colour"),
        (missing_field, "cannot make sense.*text"),
        (short_vocabulary, "cannot make sense.*6 words"),
    ],
)
def test_a_file_that_does_not_fit(saved, change, message):
    rewrite(saved, change)
    with pytest.raises(UserError, match=message) as error:
        load(saved)
    assert "\n" not in str(error.value)


def test_a_file_of_another_kind(tmp_path):
    path = tmp_path / "other.safetensors"
    save_file({"a": np.zeros(3, np.float32)}, path)
    with pytest.raises(UserError, match="of format None, not 'dreamjax-toybox-1'$"):
        load(path)
    save_file({"a": np.zeros(3, np.float32)}, path, {"format": "dreamjax-classes-1"})
    with pytest.raises(UserError, match=r"not 'dreamjax-toybox-1' \(read it as prior=classes\)"):
        Toybox(weights=str(path)).load()


def test_a_path_that_cannot_be(tmp_path):
    for path, says in (("~nouser/x", "home directory"), ("x" * 5000, r"\(5000 characters\)")):
        with pytest.raises(UserError, match=says) as error:
            Toybox(weights=path).load()
        assert "\n" not in str(error.value) and len(str(error.value)) < 300


def test_configs_that_disagree():
    with pytest.raises(UserError, match="7 words.*vocabulary_size is 8"):
        ToyboxNet(NET.unet, TextConfig(vocabulary_size=8, dim=16), VOCABULARY)
    with pytest.raises(UserError, match="unet.text_dim is 16, text.dim 32"):
        ToyboxNet(NET.unet, TextConfig(vocabulary_size=7, dim=32), VOCABULARY)


def test_without_a_path_it_is_the_file_in_the_package(monkeypatch, tmp_path, params):
    save(tmp_path / "weights" / "toybox.safetensors", NET, params)
    monkeypatch.setattr(toybox.resources, "files", lambda package: tmp_path)
    assert load()[0] == NET
