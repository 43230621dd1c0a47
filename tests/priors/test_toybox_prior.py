"""The shipped prior's interface, its words, and its file."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from dreamjax.diffusion.process import q_sample, v_from_x0_eps
from dreamjax.errors import UserError
from dreamjax.nets.text import TextConfig
from dreamjax.nets.unet import UNetConfig
from dreamjax.priors import toybox
from dreamjax.priors.base import PAPER_VIEWS
from dreamjax.priors.toybox import ToyboxPrior, load, save, tokenise
from dreamjax.toybox.captions import VIEW_NAMES

pytestmark = pytest.mark.usefixtures("quick_compilation")

VOCABULARY = ("", "a", "ball", "blue", "on", "red", "view")
PRIOR = ToyboxPrior(
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
    leaves, tree = jax.tree.flatten(jax.jit(PRIOR.init)(jax.random.key(0)))
    keys = jax.random.split(jax.random.key(1), len(leaves))
    noisy = [x + 0.1 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)]
    return jax.tree.unflatten(tree, noisy)


@pytest.fixture
def saved(params, tmp_path):
    path = tmp_path / "prior.safetensors"
    save(path, PRIOR, params)
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
    assert PRIOR.prediction == "v"
    assert PRIOR.schedule.num_steps == 100
    assert PRIOR.schedule is PRIOR.schedule
    assert hash(PRIOR) == hash(PRIOR)  # static under jit


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
    assert "'blu'" in message and "blue" in message and "configs/sd15.py" in message
    assert "\n" not in message
    with pytest.raises(UserError, match="'dragon'.*configs/sd15.py"):
        tokenise("a blue dragon", VOCABULARY, 6)


def test_too_many_words():
    with pytest.raises(UserError, match="7 words.* 6"):
        tokenise("a a a a a a a", VOCABULARY, 6)


def test_embed(params):
    text = PRIOR.embed(params, ["a red ball", "", "a blue ball"])
    assert text.tokens.shape == (3, 6, 16)
    np.testing.assert_array_equal(text.mask.sum(1), [3, 0, 3])
    assert jnp.abs(text.tokens[0] - text.tokens[2]).max() > 1e-3
    np.testing.assert_array_equal(text.tokens[1], 0.0)


def test_encode(params):
    key = jax.random.key(0)
    rgb = jax.random.uniform(key, (2, 8, 8, 3))
    np.testing.assert_allclose(PRIOR.encode(params, rgb, key), 2 * rgb - 1, atol=1e-6)
    for size in (4, 16):
        flat = PRIOR.encode(params, jnp.full((1, size, size, 3), 0.75), key)
        np.testing.assert_allclose(flat, np.full((1, 8, 8, 3), 0.5), atol=1e-6)
    # Shrinking smooths: every pixel counts, so none has a gradient of zero.
    grad = jax.grad(lambda rgb: PRIOR.encode(params, rgb, key).sum())(jnp.zeros((1, 32, 32, 3)))
    assert grad.min() > 0
    np.testing.assert_allclose(grad.sum(), 2 * 8 * 8 * 3, rtol=1e-5)


def test_predict_eps_is_that_of_the_networks_v(params):
    """Where the network's v is exact, so is eps; checked by the definition of v."""
    x_0, eps = jax.random.normal(jax.random.key(2), (2, 3, 8, 8, 3))
    t = jnp.array([0, 50, 99])
    x_t = q_sample(PRIOR.schedule, x_0, t, eps)
    text = PRIOR.embed(params, ["a red ball", "", "a blue ball"])
    v, got = jax.jit(lambda *args: (PRIOR.output(*args), PRIOR.predict_eps(*args)))(
        params, x_t, t, text
    )
    assert got.dtype == jnp.float32
    v_true = v_from_x0_eps(PRIOR.schedule, x_0, t, eps)
    scale = np.sqrt(PRIOR.schedule.alpha_bar)[np.asarray(t)].reshape(3, 1, 1, 1)
    np.testing.assert_allclose(got - eps, scale * (v - v_true), atol=2e-5)


def test_save_and_load(params, saved):
    prior, loaded = load(saved)
    assert prior == PRIOR
    assert [p.name for p in saved.parent.iterdir()] == [saved.name]
    assert jax.tree.structure(loaded) == jax.tree.structure(params)
    for got, want in zip(jax.tree.leaves(loaded), jax.tree.leaves(params), strict=True):
        assert got.dtype == jnp.float32
        np.testing.assert_array_equal(got, np.asarray(want, np.float16).astype(np.float32))
        np.testing.assert_allclose(got, want, rtol=2e-3, atol=1e-6)
    assert all(tensor.dtype == np.float16 for tensor in load_file(saved).values())


def test_view_names_are_kept(params, tmp_path):
    names = ((20.0, ("front view", "back view")), (90.0, ("overhead view",)))
    save(tmp_path / "p.safetensors", dataclasses.replace(PRIOR, view_names=names), params)
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
        save(saved, PRIOR, broken)
    assert saved.read_bytes() == before
    with pytest.raises(UserError, match="cannot write"):
        save(saved / "inside_a_file", PRIOR, params)


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
    with pytest.raises(UserError, match="of format None, not 'dreamjax-toybox-1'"):
        load(path)


def test_configs_that_disagree():
    with pytest.raises(UserError, match="7 words.*vocabulary_size is 8"):
        ToyboxPrior(PRIOR.unet, TextConfig(vocabulary_size=8, dim=16), VOCABULARY)
    with pytest.raises(UserError, match="unet.text_dim is 16, text.dim 32"):
        ToyboxPrior(PRIOR.unet, TextConfig(vocabulary_size=7, dim=32), VOCABULARY)


def test_without_a_path_it_is_the_file_in_the_package(monkeypatch, tmp_path, params):
    save(tmp_path / "weights" / "toybox.safetensors", PRIOR, params)
    monkeypatch.setattr(toybox.resources, "files", lambda package: tmp_path)
    assert load()[0] == PRIOR
