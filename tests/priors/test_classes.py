"""The class-conditional prior and the noisy classifier: files, labels, what a network predicts."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamjax.diffusion.process import eps_from_v, eps_from_x0
from dreamjax.diffusion.schedule import Schedule, linear
from dreamjax.errors import UserError
from dreamjax.nets.adm import ADMConfig
from dreamjax.priors import classes, classifier

NET = dict(
    image_size=4, in_channels=1, channels=32, channel_mults=(1,), res_blocks=1, attention_sizes=()
)
SCHEDULE = Schedule(np.linspace(0.013, 0.31, 7))
PRIOR = classes.ClassPrior(
    ADMConfig(**NET, num_classes=3, learns_variance=True),
    SCHEDULE,
    variance="learned_range",
    classes=("cat", "dog"),
    levels=17,
)
PLAIN = classes.ClassPrior(ADMConfig(**NET), SCHEDULE)


def drawn(model):
    """Random parameters of a model, those that start at zero too."""
    rng = np.random.default_rng(1)
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    return jax.tree.map(lambda x: jnp.float32(0.2 * rng.standard_normal(x.shape)), shapes)


@pytest.fixture(scope="module")
def params():
    return drawn(PRIOR)


def test_names_become_labels(params):
    np.testing.assert_array_equal(PRIOR.embed(params, ["dog", "", "cat"]), [1, 2, 0])
    assert PRIOR.null_class == 2 and PLAIN.embed({}, ["", ""]) is None
    with pytest.raises(UserError, match="no class 'cow'; it has cat, dog"):
        PRIOR.embed(params, ["cow"])
    with pytest.raises(UserError, match="has no classes"):
        PLAIN.embed({}, ["cat"])
    without_null = dataclasses.replace(PRIOR, net=dataclasses.replace(PRIOR.net, num_classes=2))
    assert without_null.null_class is None
    with pytest.raises(UserError, match="no class ''"):
        without_null.embed(params, [""])


def test_a_file_is_read_back_exactly(params, tmp_path):
    path = tmp_path / "model.safetensors"
    classes.save(path, PRIOR, params)
    prior, back = classes.load(path)
    assert prior == PRIOR
    np.testing.assert_array_equal(prior.schedule.betas, SCHEDULE.betas)
    jax.tree.map(np.testing.assert_array_equal, back, params)


def test_files_of_another_kind_or_architecture(params, tmp_path):
    path = tmp_path / "model.safetensors"
    wider = dataclasses.replace(PRIOR, net=dataclasses.replace(PRIOR.net, channels=64))
    classes.save(path, wider, params)
    with pytest.raises(UserError, match="does not fit the network: .* is "):
        classes.load(path)
    with pytest.raises(UserError, match="format 'dreamjax-classes-1', not 'dreamjax-classifier-1'"):
        classifier.load(path)
    broken = dataclasses.replace(PRIOR, prediction="eps")
    object.__setattr__(broken, "levels", "many")
    object.__setattr__(broken, "prediction", "colour")
    classes.save(path, broken, params)
    with pytest.raises(UserError, match="cannot make sense .*prediction must be one of"):
        classes.load(path)


def test_parts_that_disagree():
    with pytest.raises(UserError, match="4 classes are named; net.num_classes is 3"):
        dataclasses.replace(PRIOR, classes=tuple("abcd"))
    with pytest.raises(UserError, match="variance is fixed_small, but net.learns_variance True"):
        dataclasses.replace(PRIOR, variance="fixed_small")


@pytest.mark.parametrize(
    "prediction, expected",
    [
        ("eps", lambda x_t, t, out: out),
        ("v", lambda x_t, t, out: eps_from_v(SCHEDULE, x_t, t, out)),
        ("x0", lambda x_t, t, out: eps_from_x0(SCHEDULE, x_t, t, out)),
    ],
)
def test_eps_is_that_of_the_prediction(params, prediction, expected):
    prior = dataclasses.replace(PRIOR, prediction=prediction)
    x_t = jax.random.normal(jax.random.key(2), (3, 4, 4, 1))
    t, label = jnp.array([0, 3, 6]), jnp.array([0, 1, 2])
    output = prior.output(params, x_t, t, label)
    assert output.shape == (3, 4, 4, 2) and float(jnp.abs(output).max()) > 0.1
    found = prior.predict_eps(params, x_t, t, label)
    np.testing.assert_allclose(found, expected(x_t, t, output[..., :1]), rtol=1e-5, atol=1e-6)


def test_the_classifier(tmp_path):
    net = dataclasses.replace(PRIOR.net, num_classes=0, learns_variance=False)
    model = classifier.NoisyClassifier(net, linear(20), ("cat", "dog"))
    params = drawn(model)
    x, t = jax.random.normal(jax.random.key(3), (3, 4, 4, 1)), jnp.array([0, 4, 9])
    logits = np.asarray(model.logits(params, x, t), np.float64)
    expected = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    found = model.log_probability(params, x, t, jnp.array([0, 1, 2]))
    np.testing.assert_allclose(found, [expected[0, 0], expected[1, 1], 0.0], rtol=1e-5)
    classifier.save(tmp_path / "c.safetensors", model, params)
    again, back = classifier.load(tmp_path / "c.safetensors")
    assert again == model
    jax.tree.map(np.testing.assert_array_equal, back, params)
