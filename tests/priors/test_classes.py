"""The class-conditional prior and the noisy classifier: files, labels, what a network predicts."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamjax.diffusion.process import eps_from_v, eps_from_x0
from dreamjax.diffusion.reverse import predicted_eps
from dreamjax.diffusion.schedule import Schedule, linear
from dreamjax.errors import UserError
from dreamjax.nets.adm import ADMConfig
from dreamjax.priors import classes, classifier
from dreamjax.priors.base import Prompt
from dreamjax.scene.camera import orbit
from dreamjax.scene.views import Views

LAYOUT = dict(
    image_size=4, in_channels=1, channels=32, channel_mults=(1,), res_blocks=1, attention_sizes=()
)
SCHEDULE = Schedule(np.linspace(0.013, 0.31, 7))
NET = classes.ClassNet(
    ADMConfig(**LAYOUT, num_classes=3, learns_variance=True),
    SCHEDULE,
    variance="learned_range",
    classes=("cat", "dog"),
    levels=17,
)
PLAIN = classes.ClassNet(ADMConfig(**LAYOUT), SCHEDULE)


def drawn(model):
    """Random parameters of a model, those that start at zero too."""
    rng = np.random.default_rng(1)
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    return jax.tree.map(lambda x: jnp.float32(0.2 * rng.standard_normal(x.shape)), shapes)


@pytest.fixture(scope="module")
def params():
    return drawn(NET)


def test_names_become_labels(params):
    np.testing.assert_array_equal(NET.embed_texts(params, ["dog", "", "cat"]), [1, 2, 0])
    assert NET.null_class == 2 and PLAIN.embed_texts({}, ["", ""]) is None
    with pytest.raises(UserError, match="no class 'cow'; it has cat, dog"):
        NET.embed_texts(params, ["cow"])
    with pytest.raises(UserError, match="has no classes"):
        PLAIN.embed_texts({}, ["cat"])
    without_null = dataclasses.replace(NET, net=dataclasses.replace(NET.net, num_classes=2))
    assert without_null.null_class is None
    with pytest.raises(UserError, match="no class ''"):
        without_null.embed_texts(params, [""])


@pytest.fixture
def saved(params, tmp_path):
    path = tmp_path / "model.safetensors"
    classes.save(path, NET, params)
    return str(path)


def test_a_prior_of_classes_is_told_the_class_and_no_view(params, saved):
    prior = classes.Classes(weights=saved)
    assert prior.net == NET and prior.shape == (4, 4, 1) and prior.levels == 17
    jax.tree.map(np.testing.assert_array_equal, prior.load(), params)
    camera = jax.vmap(lambda a: orbit(a, 0.0, 3.0, 1.2))(jnp.array([0.0, 90.0, 180.0]))
    views = Views(camera, jnp.arange(3), jnp.ones(3), jnp.array([0.0, 1.0, 0.0]))
    for prompt, other in ((Prompt(" dog "), 2), (Prompt("dog", "cat"), 0)):
        found = jax.jit(prior.condition)(prior.embed(params, prompt), views)
        np.testing.assert_array_equal(found.cond, [1, 1, 1])
        np.testing.assert_array_equal(found.uncond, [other] * 3)
        assert found.negatives == ()
    output = prior.predict(params, jnp.ones((3, 4, 4, 1)), jnp.zeros(3, int), found.cond)
    assert output.shape == (3, 4, 4, 2)
    for prompt in ("", "!!!", "🦊"):
        with pytest.raises(UserError, match="has no word in it"):
            prior.embed(params, Prompt(prompt))
    with pytest.raises(UserError, match="no class 'a dog'"):
        prior.embed(params, Prompt("a dog"))


def test_guidance_needs_something_to_go_away_from(params, tmp_path):
    net = dataclasses.replace(NET, net=dataclasses.replace(NET.net, num_classes=2))
    classes.save(tmp_path / "m.safetensors", net, drawn(net))
    prior = classes.Classes(weights=str(tmp_path / "m.safetensors"))
    with pytest.raises(UserError, match="without the null class, which guidance needs"):
        prior.embed(prior.load(), Prompt("dog"))
    found = prior.embed(prior.load(), Prompt("dog", "cat"))
    np.testing.assert_array_equal([found.cond, found.uncond], [[1], [0]])


def test_missing_weights_are_told_as_that():
    with pytest.raises(UserError, match="Classes needs weights: .*--config.prior.weights="):
        classes.Classes().load()
    with pytest.raises(UserError, match="Classifier needs weights: .*--config.classifier.weights="):
        classifier.Classifier().load()


def test_a_file_is_read_back_exactly(params, tmp_path):
    path = tmp_path / "model.safetensors"
    classes.save(path, NET, params)
    prior, back = classes.load(path)
    assert prior == NET
    np.testing.assert_array_equal(prior.schedule.betas, SCHEDULE.betas)
    jax.tree.map(np.testing.assert_array_equal, back, params)


def test_files_of_another_kind_or_architecture(params, tmp_path):
    path = tmp_path / "model.safetensors"
    wider = dataclasses.replace(NET, net=dataclasses.replace(NET.net, channels=64))
    classes.save(path, wider, params)
    with pytest.raises(UserError, match="does not fit the network: .* is "):
        classes.load(path)
    with pytest.raises(UserError, match="format 'dreamjax-classes-1', not 'dreamjax-classifier-1'"):
        classifier.load(path)
    broken = dataclasses.replace(NET, prediction="eps")
    object.__setattr__(broken, "levels", "many")
    object.__setattr__(broken, "prediction", "colour")
    classes.save(path, broken, params)
    with pytest.raises(UserError, match="cannot make sense .*prediction is 'colour': expected"):
        classes.load(path)


def test_parts_that_disagree():
    with pytest.raises(UserError, match="4 classes are named; net.num_classes is 3"):
        dataclasses.replace(NET, classes=tuple("abcd"))
    with pytest.raises(UserError, match="variance is fixed_small, but net.learns_variance True"):
        dataclasses.replace(NET, variance="fixed_small")


@pytest.mark.parametrize(
    "prediction, expected",
    [
        ("eps", lambda x_t, t, out: out),
        ("v", lambda x_t, t, out: eps_from_v(SCHEDULE, x_t, t, out)),
        ("x0", lambda x_t, t, out: eps_from_x0(SCHEDULE, x_t, t, out)),
    ],
)
def test_eps_is_that_of_the_prediction(params, prediction, expected):
    prior = dataclasses.replace(NET, prediction=prediction)
    x_t = jax.random.normal(jax.random.key(2), (3, 4, 4, 1))
    t, label = jnp.array([0, 3, 6]), jnp.array([0, 1, 2])
    output = prior.predict(params, x_t, t, label)
    assert output.shape == (3, 4, 4, 2) and float(jnp.abs(output).max()) > 0.1
    found = predicted_eps(SCHEDULE, prior.parameterisation, x_t, t, output)
    np.testing.assert_allclose(found, expected(x_t, t, output[..., :1]), rtol=1e-5, atol=1e-6)


def test_the_classifier(tmp_path):
    net = dataclasses.replace(NET.net, num_classes=0, learns_variance=False)
    model = classifier.ClassifierNet(net, linear(20), ("cat", "dog"))
    params = drawn(model)
    x, t = jax.random.normal(jax.random.key(3), (3, 4, 4, 1)), jnp.array([0, 4, 9])
    logits = np.asarray(model.logits(params, x, t), np.float64)
    expected = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    found = model.log_probability(params, x, t, jnp.array([0, 1, 2]))
    np.testing.assert_allclose(found, [expected[0, 0], expected[1, 1], 0.0], rtol=1e-5)
    classifier.save(tmp_path / "c.safetensors", model, params)
    again, back = classifier.load(tmp_path / "c.safetensors")
    assert again == model
    part = classifier.Classifier(weights=str(tmp_path / "c.safetensors"))
    assert (part.schedule, part.classes) == (linear(20), ("cat", "dog"))
    again = part.log_probability(part.load(), x, t, jnp.array([0, 1, 2]))
    np.testing.assert_array_equal(again, found)
    jax.tree.map(np.testing.assert_array_equal, back, params)
