"""The prior interface and the Gaussian prior whose eps_hat is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamjax.diffusion.reverse import predicted_eps, unclipped
from dreamjax.diffusion.samplers import ddim_sample
from dreamjax.errors import UserError
from dreamjax.nets.text import Text
from dreamjax.priors.analytic import Analytic, AnalyticParams
from dreamjax.priors.base import Prior, Prompt, Sampled, encode_pixels
from dreamjax.priors.classes import Classes
from dreamjax.priors.guided_diffusion import GuidedDiffusion
from dreamjax.priors.stable_diffusion import StableDiffusion
from dreamjax.priors.toybox import Toybox

SIZE = 4
PROMPTS = ("", "a red ball", "a blue cube")


def make(noise="linear", **settings):
    """A prior with its parameters."""
    rng = np.random.default_rng(0)
    mu = rng.uniform(-0.8, 0.8, (len(PROMPTS), SIZE, SIZE, 3))
    var = rng.uniform(0.01, 0.5, (SIZE, SIZE, 3))
    prior = Analytic(texts=PROMPTS, image_size=SIZE, noise=noise, **settings)
    return prior, AnalyticParams(jnp.float32(mu), jnp.float32(var))


@pytest.mark.parametrize("cls", [Analytic, Toybox, StableDiffusion, Classes, GuidedDiffusion])
def test_every_prior_has_every_member_of_the_interface(cls):
    members = {
        name
        for protocol in (*Prior.__mro__, Sampled)
        for name in vars(protocol)
        if not name.startswith("_") and getattr(protocol, "_is_protocol", False)
    }
    assert {"schedule", "load", "embed", "condition", "encode", "predict", "levels"} <= members
    for name in members:
        assert hasattr(cls, name), name
    assert cls() == cls() and hash(cls()) == hash(cls())  # static under jit


def test_load_draws_by_the_seed():
    prior = make()[0]
    params = prior.load()
    assert params.mu.shape == (3, SIZE, SIZE, 3) and params.var.shape == (SIZE, SIZE, 3)
    assert np.abs(params.mu).max() <= 0.8 and params.var.min() >= 0.01
    jax.tree.map(np.testing.assert_array_equal, params, prior.load())
    other = Analytic(texts=PROMPTS, image_size=SIZE, seed=1).load()
    assert np.abs(params.mu - other.mu).max() > 0.1


def test_embed():
    prior, params = make()
    text = prior.embed_texts(params, ["a blue cube", "", "a blue cube"])
    assert isinstance(text, Text)
    assert text.tokens.shape == (3, 1, SIZE * SIZE * 3) and text.mask.shape == (3, 1)
    np.testing.assert_array_equal(text.tokens[0], text.tokens[2])
    np.testing.assert_array_equal(text.tokens[1].reshape(SIZE, SIZE, 3), params.mu[0])
    assert np.abs(text.tokens[0] - text.tokens[1]).max() > 0.1
    with pytest.raises(UserError, match="'a green cone'"):
        prior.embed_texts(params, ["a green cone"])
    with pytest.raises(UserError, match="'a red ball, front view'"):
        prior.embed(params, Prompt("a red ball"))


@pytest.mark.parametrize("noise", ["linear", "cosine"])
def test_eps_is_the_conditional_expectation(noise):
    """E[eps | x_t] by quadrature over x_0 in float64, at t = 0, 1, middle, T-1."""
    prior, params = make(noise)
    schedule = prior.schedule
    t = np.array([0, 1, 500, 999])
    text = prior.embed_texts(params, ["a red ball", "", "a blue cube", "a red ball"])
    rng = np.random.default_rng(1)
    mu = np.float64(params.mu)[[1, 0, 2, 1]]
    var = np.float64(params.var)
    alpha_bar = np.cumprod(1.0 - schedule.betas)[t].reshape(4, 1, 1, 1)
    x_0 = mu + np.sqrt(var) * rng.standard_normal(mu.shape)
    noise = rng.standard_normal(mu.shape)
    z_t = np.float32(np.sqrt(alpha_bar) * x_0 + np.sqrt(1 - alpha_bar) * noise)
    grid = np.linspace(-9, 9, 40001)
    arguments = params, jnp.asarray(z_t), jnp.asarray(t), text
    for function in (prior.predict, jax.jit(prior.predict)):
        found = function(*arguments)
        assert found.dtype == jnp.float32
        for index in [(i, *p) for i in range(4) for p in [(0, 0, 0), (1, 3, 2), (2, 2, 1)]]:
            a = alpha_bar[index[0], 0, 0, 0]
            x = mu[index] + np.sqrt(var[index[1:]]) * grid
            eps = (np.float64(z_t[index]) - np.sqrt(a) * x) / np.sqrt(1 - a)
            log_p = -0.5 * grid**2 - 0.5 * eps**2
            p = np.exp(log_p - log_p.max())
            expected, error = np.sum(p * eps) / np.sum(p), 2e-6 + 4e-8 / np.sqrt(1 - a)
            np.testing.assert_allclose(found[index], expected, rtol=0, atol=error)


@pytest.mark.parametrize("prediction", ["x0", "v"])
def test_other_predictions_are_of_the_same_eps(prediction):
    prior, params = make("cosine", prediction=prediction)
    plain, _ = make("cosine")
    t = jnp.array([0, 300, 700, 990])
    z_t = jax.random.normal(jax.random.key(1), (4, SIZE, SIZE, 3))
    text = prior.embed_texts(params, ["a red ball", "", "a blue cube", "a red ball"])
    output = prior.predict(params, z_t, t, text)
    found = predicted_eps(prior.schedule, prior.parameterisation, z_t, t, output)
    wanted = plain.predict(params, z_t, t, text)
    assert np.abs(output - wanted).max() > 0.1
    # eps from x_0 divides rounding errors of z_t by sigma_t, which is 0.0064 at t = 0.
    error = np.abs(found - wanted) * np.asarray(prior.schedule.sigma)[t].reshape(4, 1, 1, 1)
    assert error.max() < 1e-6


def test_sampling_the_prior_gives_its_gaussian():
    prior, params = make("cosine", steps=300)
    n = 2000
    text = prior.embed_texts(params, ["a blue cube"])
    text = jax.tree.map(lambda x: jnp.repeat(x, n, axis=0), text)

    def predict(x_t, t):
        return prior.predict(params, x_t, t, text)

    shape = (n, SIZE, SIZE, 3)
    x_0 = ddim_sample(predict, prior.schedule, jax.random.key(0), shape, 300, 0.0, unclipped)
    deviation = (x_0.mean(0) - params.mu[2]) / jnp.sqrt(params.var / n)
    assert np.abs(deviation).max() < 5.0
    np.testing.assert_allclose(x_0.var(0), params.var, rtol=0.25)


def test_encode():
    prior, params = make()
    key = jax.random.key(0)
    rgb = jax.random.uniform(key, (2, SIZE, SIZE, 3))
    for cheap in (False, True):
        keys = jax.random.split(key)
        np.testing.assert_array_equal(prior.encode(params, rgb, keys, cheap), 2 * rgb - 1)
    np.testing.assert_allclose(prior.decode(params, 2 * rgb - 1), rgb, atol=1e-6)
    for size in (2, 9):
        flat = jnp.full((1, size, size, 3), 0.75)
        z_0, pull = jax.vjp(lambda x: prior.encode(params, x, key[None]), flat)
        assert z_0.shape == (1, SIZE, SIZE, 3)
        np.testing.assert_allclose(z_0, 0.5, rtol=1e-5)
        (gradient,) = pull(jnp.ones_like(z_0))
        np.testing.assert_allclose(gradient.sum(), 2 * SIZE * SIZE * 3, rtol=1e-5)
        assert (gradient > 0).all()


def test_encode_pixels_shrinks_without_aliasing():
    stripes = jnp.tile(jnp.array([0.0, 1.0]), 8)[None, None, :, None] * jnp.ones((1, 16, 1, 3))
    z_0 = encode_pixels(stripes, 4)
    np.testing.assert_allclose(z_0[:, :, 1:-1], 0.0, atol=1e-6)
