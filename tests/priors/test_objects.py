"""The prior that is told the camera: words, views, and its file."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamjax.errors import UserError
from dreamjax.main import load_config
from dreamjax.nets.text import TextConfig
from dreamjax.nets.unet import UNetConfig
from dreamjax.nets.view import ToldView, size_features
from dreamjax.priors import objects
from dreamjax.priors.base import Prompt
from dreamjax.scene.camera import orbit
from dreamjax.scene.views import Views

WORDS = ("a", "box", "cherries", "cow", "fire", "fish", "gold", "of", "pine", "tree", "truck")
VOCABULARY = ("", objects.PLURAL, *WORDS)


def tiny() -> objects.ObjectsNet:
    return objects.ObjectsNet(
        unet=UNetConfig(
            channels=8,
            channel_mults=(1, 2),
            down_blocks=(1,),
            middle_blocks=1,
            up_blocks=(1,),
            attention_levels=(1,),
            head_dim=8,
            text_dim=16,
        ),
        text=TextConfig(len(VOCABULARY), length=6, dim=16, layers=0),
        vocabulary=VOCABULARY,
        image_size=8,
    )


@pytest.fixture(scope="module")
def net_and_params(quick_compilation):
    """A network that is not zero at its output, as it is before training."""
    net = tiny()
    rng = np.random.default_rng(1)
    params = jax.device_get(jax.jit(net.init)(jax.random.key(0)))
    # In numbers that float16 can hold, so that a file holds them too.
    noisy = jax.tree.map(lambda x: x + 0.2 * rng.normal(size=x.shape), params)
    return net, jax.tree.map(lambda x: x.astype(np.float16).astype(np.float32), noisy)


@partial(jax.jit, static_argnums=0)
def output(net, params, ids, view):
    text = net.condition(params, ids, view)
    z_t = jax.random.normal(jax.random.key(2), (1, *net.shape))
    return net.predict(params, z_t, jnp.array([500]), text)


def told(net, params, prompt="a cow", azimuth=0.0, elevation=10.0, size=0.4, look=0, camera=True):
    """The network's output when told these."""
    ids = jnp.asarray(net.tokenise(prompt))[None]
    view = ToldView(*(jnp.array([x]) for x in (azimuth, elevation, size, look, camera)))
    return np.asarray(output(net, params, ids, view))


@pytest.mark.parametrize(
    "change",
    [
        {"azimuth": 180.0},
        {"azimuth": -90.0},
        {"elevation": 60.0},
        {"size": 0.45},
        {"look": 2},
        {"camera": False},
        {"prompt": "a truck"},
        {"prompt": ""},
    ],
)
def test_every_thing_that_it_is_told_counts(net_and_params, change):
    net, params = net_and_params
    base = told(net, params)
    assert np.abs(told(net, params, **change) - base).max() > 1e-3


def test_left_is_told_from_right_and_a_turn_is_no_change(net_and_params):
    net, params = net_and_params
    left, right = (told(net, params, azimuth=a) for a in (90.0, -90.0))
    assert np.abs(left - right).max() > 1e-3
    np.testing.assert_allclose(told(net, params, azimuth=450.0), left, atol=1e-4)


def test_a_camera_that_is_not_told_does_not_count(net_and_params):
    net, params = net_and_params
    a, b = (told(net, params, "a cow", a, a, a / 100, camera=False) for a in (30.0, 70.0))
    np.testing.assert_array_equal(a, b)


def test_text_may_be_embedded_once_and_told_the_view_later(net_and_params):
    net, params = net_and_params
    ids = net.ids(["a cow", "fire truck"])
    angles = jnp.array([0.0, 90.0]), jnp.array([0.0, 20.0])
    view = ToldView(*angles, jnp.array([0.4, 0.5]), jnp.array([0, 1]), jnp.array([True, True]))
    whole = jax.jit(net.condition)(params, ids, view)
    later = jax.jit(net.with_view)(params["view"], jax.jit(net.embed_ids)(params, ids), view)
    np.testing.assert_allclose(whole.tokens, later.tokens, atol=1e-5)
    np.testing.assert_array_equal(whole.mask, later.mask)
    assert whole.tokens.shape == (2, 6 + 3, 16) and whole.mask[:, -3:].all()
    assert not jax.jit(net.condition)(params, 0 * ids, view).mask[:, :-3].any()


def test_words_and_view_are_mixed_and_padding_is_not(net_and_params):
    net, params = net_and_params
    ids = jnp.concatenate([net.ids(["a cow"]), net.ids(["a truck"])]).repeat(2, axis=0)
    nothing = jnp.zeros(4)
    azimuth, look = jnp.array([0.0, 90.0, 0.0, 90.0]), jnp.zeros(4, int)
    view = ToldView(azimuth, nothing, nothing, look, nothing == 0)
    seen = jax.jit(net.condition)(params, ids, view)
    words, camera, padding = seen.tokens[:, :2], seen.tokens[:, -3], seen.tokens[:, 2:-3]
    assert jnp.abs(words[0] - words[1]).max() > 1e-3  # the same word from another side
    assert jnp.abs(camera[0] - camera[2]).max() > 1e-3  # the same side of another thing
    assert not padding.any()
    short = dataclasses.replace(net, text=dataclasses.replace(net.text, length=2))
    text = params["text"] | {"place": params["text"]["place"][:2]}
    bare = jax.jit(short.condition)(params | {"text": text}, ids[:, :2], view)
    np.testing.assert_allclose(bare.tokens[:, :2], words, atol=1e-5)
    np.testing.assert_allclose(bare.tokens[:, 2:], seen.tokens[:, -3:], atol=1e-5)


def test_sizes_are_told_between_minus_one_and_one():
    found = size_features(jnp.array([0.35, 0.425, 0.5]))
    np.testing.assert_allclose(found, [[-1, 1, -1], [0, 0, 0], [1, 1, 1]], atol=1e-5)


def test_nothing_is_mixed_before_training():
    net = tiny()
    params = jax.jit(net.init)(jax.random.key(3))
    ids, nothing = net.ids(["a cow"]), jnp.zeros(1)
    view = ToldView(nothing, nothing, nothing, jnp.zeros(1, int), nothing == 0)
    seen = net.condition(params, ids, view)
    np.testing.assert_array_equal(seen.tokens[:, :-3], net.embed_ids(params, ids).tokens)


@pytest.mark.parametrize(
    "text, pieces",
    [
        ("A fire-truck.", ["a", "fire", "truck"]),
        ("an firetruck", ["a", "fire", "truck"]),
        ("pine trees", ["pine", "tree", "##s"]),
        ("firetrucks", ["fire", "truck", "##s"]),
        ("boxes of goldfish", ["box", "##s", "of", "gold", "fish"]),
        ("a cherry", ["a", "cherries"]),
        ("", []),
    ],
)
def test_words_are_read_as_pieces(text, pieces):
    ids = objects.tokenise(text, VOCABULARY, 6)
    assert [VOCABULARY[i] for i in ids if i] == pieces and ids.shape == (6,)


@pytest.mark.parametrize(
    "text, says",
    [
        ("a pine tre", "'tre'; the nearest it knows: tree"),
        ("a zebu", "'zebu'"),
        ("a cow of a cow of a cow", "8 words; the prior reads 6"),
    ],
)
def test_what_it_cannot_read_is_told(text, says):
    with pytest.raises(UserError, match=says):
        tiny().tokenise(text)


def test_a_saved_prior_is_the_same_again(tmp_path, net_and_params):
    net, params = net_and_params
    objects.save(tmp_path / "p.safetensors", net, params)
    found, loaded = objects.load(tmp_path / "p.safetensors")
    assert found == net
    np.testing.assert_array_equal(told(found, loaded), told(net, params))


def test_another_kind_of_file_is_refused(tmp_path):
    (tmp_path / "p.safetensors").write_bytes(b"nothing")
    with pytest.raises(UserError, match="cannot read weights"):
        objects.load(tmp_path / "p.safetensors")


def test_sizes_that_do_not_fit_are_refused():
    net = tiny()
    with pytest.raises(UserError, match="13 pieces"):
        objects.ObjectsNet(net.unet, TextConfig(5, dim=16), VOCABULARY)
    with pytest.raises(UserError, match="text_dim is 16, text.dim 32"):
        objects.ObjectsNet(net.unet, TextConfig(len(VOCABULARY), dim=32), VOCABULARY)


def views(azimuth, elevation, lit, textureless) -> Views:
    azimuth, elevation = jnp.array(azimuth), jnp.array(elevation)
    count = len(azimuth)
    focal = jnp.linspace(1.2, 1.4, count)
    camera = jax.vmap(orbit)(azimuth, elevation, jnp.full(count, 3.2), focal)
    return Views(camera, jnp.arange(count), jnp.array(lit), jnp.array(textureless))


def test_as_a_prior_it_tells_the_network_each_view(tmp_path, net_and_params):
    net, params = net_and_params
    objects.save(tmp_path / "p.safetensors", net, params)
    prior = objects.Objects(str(tmp_path / "p.safetensors"), image_size=8)
    params = prior.load()
    embedded = prior.embed(params, Prompt("a cow", "a truck"))
    seen = views([0.0, 120.0, 10.0], [5.0, 40.0, 80.0], [0.0, 1.0, 1.0], [0.0, 0.0, 1.0])
    found = jax.jit(prior.condition)(embedded, seen)
    ids = net.ids(["a cow"] * 3)
    angles, size = (seen.camera.azimuth, seen.camera.elevation), jnp.linspace(1.2, 1.4, 3) / 3.2
    view = ToldView(*angles, size, jnp.arange(3), jnp.ones(3, bool))
    condition = jax.jit(net.condition)
    cond = condition(params, ids, view)
    nothing = objects.untold(view.look)
    uncond = condition(params, net.ids(["a truck"] * 3), nothing)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves((cond, uncond)), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)  # sizes are rounded apart
    assert prior.image_size == 8 and prior.shape == (8, 8, 3)


def test_the_shipped_prior_knows_its_things_and_their_sides():
    net, params = objects.load()
    assert objects.shipped().stat().st_size < 16e6
    phrases = load_config("hundred_prior").data.phrases
    net.ids(phrases)

    @jax.jit
    def picture(ids, azimuth):
        camera = jax.tree.map(lambda x: x[None], orbit(azimuth, 15.0, 3.1, 1.3))
        view = objects.tell(camera, jnp.zeros(1, int), jnp.ones(1, bool))
        return net.mean_picture(params, net.condition(params, ids, view))[0]

    def mean(text, azimuth):
        return np.asarray(picture(net.ids([text]), azimuth))

    # Long from the side, narrow from the front; and of its colour.
    for text in ("a fire truck", "a cow", "a viking ship"):
        front, side = ((mean(text, azimuth)[..., 3] > 0.5).any(0).sum() for azimuth in (0.0, 90.0))
        assert side > 1.3 * front, text
    for text, channel in (("a red couch", 0), ("a frog", 1), ("a blue whale", 2)):
        seen = mean(text, 45.0)
        inside = seen[seen[..., 3] > 0.7][:, :3].mean(0)
        assert inside.argmax() == channel, (text, inside)


def test_words_that_are_not_known_are_told(tmp_path, net_and_params):
    net, params = net_and_params
    objects.save(tmp_path / "p.safetensors", net, params)
    prior = objects.Objects(str(tmp_path / "p.safetensors"))
    with pytest.raises(UserError, match="no word in it"):
        prior.embed(params, Prompt("?"))
    with pytest.raises(UserError, match="'zebu'"):
        prior.embed(params, Prompt("a zebu"))
