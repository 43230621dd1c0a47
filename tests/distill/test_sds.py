"""Score distillation against float64 arithmetic and the closed form of a Gaussian prior."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamjax.diffusion.schedule import linear
from dreamjax.distill.prompts import view_prompts
from dreamjax.distill.sds import SdsConfig, make_sds, sds_params, t_range_at
from dreamjax.distill.views import Views
from dreamjax.errors import UserError
from dreamjax.priors.analytic import AnalyticParams, AnalyticPrior
from dreamjax.scene.camera import orbit

SIZE = 4
SCHEDULE = linear(1000)
PROMPTS = ("", *view_prompts("a ball"))
KEY = jax.random.key(7)
CONFIG = SdsConfig(guidance_scale=7.0)


@dataclasses.dataclass(frozen=True)
class SpyPrior(AnalyticPrior):
    """The analytic prior, which notes what `predict_eps` is asked."""

    asked: list = dataclasses.field(default_factory=list, compare=False)

    def predict_eps(self, params, z_t, t, text):
        """Note the arguments, then answer."""
        self.asked.append((z_t, t, text))
        return super().predict_eps(params, z_t, t, text)


def make_prior(size=SIZE, kind=AnalyticPrior):
    rng = np.random.default_rng(0)
    mu = rng.uniform(-0.6, 0.6, (len(PROMPTS), size, size, 3))
    prior = kind(SCHEDULE, size, PROMPTS)
    return prior, AnalyticParams(jnp.float32(mu), jnp.full((size, size, 3), 0.04))


def make_views(words, first=0):
    words = jnp.asarray(words)
    camera = jax.vmap(lambda a: orbit(a, 0.0, 3.0, 1.2))(90.0 * words)
    return Views(camera, first + jnp.arange(len(words)), words)


def gradient_of(objective, params, rgb, views, key=KEY, step=0):
    return jax.grad(lambda x: objective(params, x, views, key, step)[0])(rgb)


def float64_residual(prior, params, views, rgb, guidance):
    """w (eps_hat - eps) from the draws the spy saw, with eps solved from z_t; and the noise level."""
    z_t, t, _ = prior.asked[0]
    count = len(views.word)
    z_t, t = np.float64(z_t)[:count], np.asarray(t)[:count]
    alpha_bar = np.cumprod(1.0 - SCHEDULE.betas)[t].reshape(-1, 1, 1, 1)
    z_0 = 2.0 * np.float64(rgb) - 1.0
    eps = (z_t - np.sqrt(alpha_bar) * z_0) / np.sqrt(1 - alpha_bar)
    mu, var = np.float64(params.prior.mu), np.float64(params.prior.var)
    gain = np.sqrt(1 - alpha_bar) / (alpha_bar * var + 1 - alpha_bar)
    cond = gain * (z_t - np.sqrt(alpha_bar) * mu[1 + np.asarray(views.word)])
    uncond = gain * (z_t - np.sqrt(alpha_bar) * mu[0])
    eps_hat = (1 + (guidance - 1)) * cond - (guidance - 1) * uncond
    return (1 - alpha_bar) * (eps_hat - eps), alpha_bar, eps, t


@pytest.fixture(scope="module")
def case():
    """A low-dimensional theta, its linear renderings of 4 views, and everything the objective needs."""
    prior, prior_params = make_prior(kind=SpyPrior)
    rng = np.random.default_rng(1)
    basis = rng.uniform(0.0, 0.3, (4, SIZE, SIZE, 3, 5))
    theta = rng.uniform(0.2, 0.6, 5)
    params = sds_params(prior, prior_params, "a ball")
    return prior, params, np.float32(basis), np.float32(theta), make_views([0, 1, 2, 3])


def test_gradient_is_the_papers(case):
    prior, params, basis, theta, views = case
    objective = make_sds(prior, CONFIG, 100)

    def render(theta):
        return basis @ theta

    prior.asked.clear()
    loss, metrics = objective(params, render(jnp.asarray(theta)), views, KEY, 0)
    (z_t, t, text), *more = prior.asked
    assert not more and len(z_t) == len(t) == len(text.tokens) == 8  # one call, both passes
    residual, alpha_bar, eps, t = float64_residual(prior, params, views, render(theta), 7.0)
    expected = np.einsum("vhwc,vhwcd->d", residual, 2.0 * np.float64(basis)) / 4

    def loss_of(theta):
        return objective(params, render(theta), views, KEY, 0)[0]

    for gradient in (jax.grad(loss_of), jax.jit(jax.grad(loss_of))):
        np.testing.assert_allclose(gradient(jnp.asarray(theta)), expected, rtol=1e-4, atol=1e-5)
    squares = np.sum(residual**2, axis=(1, 2, 3))
    np.testing.assert_allclose(loss, 0.5 * squares.mean(), rtol=1e-4)
    assert metrics.keys() == {"loss", "residual_norm", "t"}
    np.testing.assert_allclose(metrics["loss"], loss)
    np.testing.assert_allclose(metrics["residual_norm"], np.sqrt(squares).mean(), rtol=1e-4)
    np.testing.assert_allclose(metrics["t"], t.mean(), rtol=1e-6)

    # Controls: the draws look like draws, and the network's Jacobian is not in the gradient.
    assert abs(eps.mean()) < 5 / np.sqrt(eps.size) and abs(eps.std() - 1) < 0.2
    assert len(set(t.tolist())) == 4
    jacobian = np.sqrt(alpha_bar * (1 - alpha_bar)) / (alpha_bar * 0.04 + 1 - alpha_bar)
    through = np.einsum("vhwc,vhwcd->d", residual * jacobian, 2.0 * np.float64(basis)) / 4
    assert np.abs(through - expected).max() > 1e-2


def test_gradient_goes_through_a_resizing_encode():
    prior, prior_params = make_prior(kind=SpyPrior)
    params, views = sds_params(prior, prior_params, "a ball"), make_views([0, 3])
    objective = make_sds(prior, CONFIG, 100)
    rgb = jnp.float32(np.random.default_rng(2).uniform(size=(2, 2, 2, 3)))

    def encode(rgb):
        return prior.encode(prior_params, rgb, KEY)

    prior.asked.clear()
    objective(params, rgb, views, KEY, 0)
    seen = 0.5 * np.float64(encode(rgb)) + 0.5
    residual, *_ = float64_residual(prior, params, views, seen, 7.0)
    found = gradient_of(objective, params, rgb, views)
    zero = encode(jnp.zeros_like(rgb))
    for index in [(0, 0, 0, 0), (0, 1, 0, 2), (1, 1, 1, 1)]:
        column = encode(jnp.zeros_like(rgb).at[index].set(1.0)) - zero  # encode is affine
        expected = np.sum(residual * np.float64(column)) / 2
        np.testing.assert_allclose(found[index], expected, rtol=1e-4, atol=1e-5)


def test_uniform_weighting_drops_w(case):
    prior, params, basis, theta, views = case
    rgb = jnp.asarray(basis @ theta)
    weighted = gradient_of(make_sds(prior, CONFIG, 100), params, rgb, views)
    prior.asked.clear()
    config = dataclasses.replace(CONFIG, weighting="uniform")
    plain = gradient_of(make_sds(prior, config, 100), params, rgb, views)
    variance = SCHEDULE.variance[np.asarray(prior.asked[0][1])[:4]].reshape(-1, 1, 1, 1)
    np.testing.assert_allclose(plain * variance, weighted, rtol=1e-4, atol=1e-6)


def test_any_split_over_devices_draws_the_same(case):
    prior, params, basis, theta, views = case
    objective, rgb = make_sds(prior, CONFIG, 100), jnp.asarray(basis @ theta)
    whole = gradient_of(objective, params, rgb, views)
    halves = [
        gradient_of(objective, params, rgb[i], jax.tree.map(lambda x, i=i: x[i], views)) / 2
        for i in (slice(0, 2), slice(2, 4))
    ]
    np.testing.assert_allclose(np.concatenate(halves), whole, rtol=1e-6, atol=1e-8)
    moved = gradient_of(objective, params, rgb, views._replace(index=views.index + 4))
    assert np.abs(moved - whole).max() > 1e-2
    again = gradient_of(objective, params, rgb, views, jax.random.key(8))
    assert np.abs(again - whole).max() > 1e-2


def test_nothing_reaches_the_prior(case):
    prior, params, basis, theta, views = case
    objective, rgb = make_sds(prior, CONFIG, 100), jnp.asarray(basis @ theta)

    def loss_of(mu, tokens, null):
        changed = params._replace(
            prior=params.prior._replace(mu=mu),
            text=params.text._replace(tokens=tokens),
            null=params.null._replace(tokens=null),
        )
        return objective(changed, rgb, views, KEY, 0)[0]

    arrays = params.prior.mu, params.text.tokens, params.null.tokens
    for gradient in jax.grad(loss_of, argnums=(0, 1, 2))(*arrays):
        np.testing.assert_array_equal(gradient, 0.0)
    # Control: the text does decide what the loss is.
    loss = loss_of(*arrays)
    assert abs(loss_of(arrays[0], arrays[1] + 0.1, arrays[2]) - loss) > 1e-3
    assert abs(loss_of(arrays[0], arrays[1], arrays[2] + 0.1) - loss) > 1e-3


def test_expected_gradient_is_the_closed_form():
    """E over eps: w sigma sqrt(alpha_bar) (z_0 - mu) / (alpha_bar var + sigma^2), averaged over t."""
    prior, prior_params = make_prior(size=1)
    params = sds_params(prior, prior_params, "a ball")
    config = SdsConfig(guidance_scale=1.0, t_range=(0.1, 0.4))
    count = 20000
    rgb = jnp.full((count, 1, 1, 3), 0.8)
    views = make_views(np.full(count, 2))
    gradient = jax.jit(lambda x: gradient_of(make_sds(prior, config, 1), params, x, views))(rgb)
    gradient = np.float64(gradient).reshape(count, 3) * count / 2  # d z_0 / d rgb = 2
    alpha_bar = np.cumprod(1.0 - SCHEDULE.betas)[100:400]
    sigma = np.sqrt(1 - alpha_bar)
    pull = sigma**3 * np.sqrt(alpha_bar) / (alpha_bar * 0.04 + sigma**2)
    expected = pull.mean() * (0.6 - np.float64(prior_params.mu[3]).ravel())
    error = 5 * gradient.std(0) / np.sqrt(count)
    assert (np.abs(gradient.mean(0) - expected) < error).all()
    assert (np.abs(expected) > 3 * error).any()


@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_optimum_is_where_the_closed_form_says(guidance):
    """With equal variances the guided optimum is mu_null + s (mu - mu_null), the mean for s = 1."""
    prior, prior_params = make_prior(size=2)
    params = sds_params(prior, prior_params, "a ball")
    config = SdsConfig(guidance_scale=guidance, t_range=(0.02, 0.5))
    steps, word, count = 400, 1, 32
    objective = make_sds(prior, config, steps)
    views = make_views(np.full(count, word))

    def loss_of(image, step):
        rgb = jnp.broadcast_to(image, (count, 2, 2, 3))
        return objective(params, rgb, views, jax.random.fold_in(KEY, step), step)[0]

    def update(image, step):
        rate = 0.5 / (1.0 + 0.05 * step)
        return image - rate * jax.grad(loss_of)(image, step), None

    start = jnp.full((2, 2, 3), 0.5)
    image = jax.jit(lambda x: jax.lax.scan(update, x, jnp.arange(steps))[0])(start)
    mu, null = prior_params.mu[1 + word], prior_params.mu[0]
    np.testing.assert_allclose(2 * image - 1, null + guidance * (mu - null), rtol=0, atol=0.03)
    # Controls: neither the other guidance's optimum nor the start would pass.
    other = null + (3.0 - guidance) * (mu - null)
    assert np.abs(2 * image - 1 - other).max() > 0.3
    assert np.abs(2 * image - 1).max() > 0.3


def test_each_view_is_told_its_own_word(case):
    prior, params, basis, theta, _ = case
    prior.asked.clear()
    views = make_views([3, 0, 2, 2])
    make_sds(prior, CONFIG, 100)(params, jnp.asarray(basis @ theta), views, KEY, 0)
    text = prior.asked[0][2]
    expected = np.asarray(params.prior.mu)[[4, 1, 3, 3, 0, 0, 0, 0]].reshape(8, 1, -1)
    np.testing.assert_array_equal(text.tokens, expected)
    assert text.mask.shape == (8, 1) and text.mask.dtype == bool


def test_t_range_moves():
    fixed = SdsConfig(t_range=(0.1, 0.9))
    assert t_range_at(fixed, 50, 100) == (0.1, 0.9)
    moving = SdsConfig(t_range=(0.02, 0.98), t_range_end=(0.1, 0.5))
    for step, expected in [(0, (0.02, 0.98)), (50, (0.06, 0.74)), (100, (0.1, 0.5))]:
        found = jax.jit(lambda s: t_range_at(moving, s, 100))(step)
        np.testing.assert_allclose(found, expected, rtol=1e-6)
    np.testing.assert_allclose(t_range_at(moving, 500, 100), (0.1, 0.5), rtol=1e-6)


def test_t_is_drawn_per_view_from_the_range_of_the_step():
    prior, prior_params = make_prior(size=1, kind=SpyPrior)
    params = sds_params(prior, prior_params, "a ball")
    config = SdsConfig(t_range=(0.2, 0.9), t_range_end=(0.2, 0.3))
    objective = make_sds(prior, config, 10)
    views, rgb = make_views(np.zeros(500, int)), jnp.zeros((500, 1, 1, 3))
    for step, low, high in [(0, 200, 900), (10, 200, 300)]:
        prior.asked.clear()
        objective(params, rgb, views, KEY, jnp.int32(step))
        t = np.asarray(prior.asked[0][1])[:500]
        np.testing.assert_array_equal(t, prior.asked[0][1][500:])
        assert low <= t.min() < low + 0.05 * (high - low)
        assert high > t.max() >= high - 0.05 * (high - low)


def test_half_precision_network_keeps_a_float32_residual(case):
    _, params, basis, theta, views = case

    class Half(AnalyticPrior):
        def predict_eps(self, params, z_t, t, text):
            return super().predict_eps(params, z_t, t, text).astype(jnp.bfloat16)

    objective = make_sds(Half(SCHEDULE, SIZE, PROMPTS), CONFIG, 100)
    rgb = jnp.asarray(basis @ theta)
    loss, metrics = objective(params, rgb, views, KEY, 0)
    assert loss.dtype == metrics["residual_norm"].dtype == jnp.float32
    full = make_sds(make_prior()[0], CONFIG, 100)
    np.testing.assert_allclose(
        gradient_of(objective, params, rgb, views),
        gradient_of(full, params, rgb, views),
        atol=0.05 * 7,
    )


def test_a_broken_rendering_is_not_hidden(case):
    prior, params, basis, theta, views = case
    rgb = jnp.asarray(basis @ theta).at[0, 0, 0, 0].set(jnp.inf)
    loss, metrics = make_sds(prior, CONFIG, 100)(params, rgb, views, KEY, 0)
    assert not np.isfinite(loss) and not np.isfinite(metrics["residual_norm"])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"t_range": (0.5, 0.5)}, "t_range must"),
        ({"t_range": (-0.1, 0.5)}, "t_range must"),
        ({"t_range": (0.1, 1.1)}, "t_range must"),
        ({"t_range": (0.1, float("nan"))}, "t_range must"),
        ({"t_range": (0.1,)}, "t_range must"),
        ({"t_range_end": (0.9, 0.1)}, "t_range_end must"),
        ({"guidance_scale": float("inf")}, "guidance_scale"),
        ({"weighting": "none"}, "weighting must be one of.*'none'"),
    ],
)
def test_wrong_config(changes, words):
    with pytest.raises(UserError, match=words):
        SdsConfig(**changes)
