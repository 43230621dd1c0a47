"""Score distillation against float64 arithmetic and the closed form of a Gaussian prior."""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamjax.diffusion.schedule import linear
from dreamjax.distill.prompts import negative_weights, view_prompts
from dreamjax.distill.sds import SdsConfig, SdsParams, make_sds, sds_params, t_range_at
from dreamjax.distill.views import Views
from dreamjax.errors import UserError
from dreamjax.priors.analytic import AnalyticParams, AnalyticPrior
from dreamjax.priors.base import PAPER_VIEWS
from dreamjax.scene.camera import orbit

pytestmark = pytest.mark.usefixtures("quick_compilation")

SIZE = 4
SCHEDULE = linear(1000)
PROMPTS = ("", *view_prompts("a ball", PAPER_VIEWS))
KEY = jax.random.key(7)
CONFIG = SdsConfig(guidance_scale=7.0, t_range_end=(0.02, 0.6))


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
    """Views from the middle of what front, side, back and overhead name."""
    words = np.asarray(words)
    views = views_at(np.where(words == 3, 0.0, 90.0 * words), np.where(words == 3, 80.0, 0.0))
    return views._replace(index=first + jnp.arange(len(words)))


def words_of(views):
    """Overhead above 60 degrees, front or back within 45, else side."""
    off = np.abs((np.asarray(views.camera.azimuth) + 180.0) % 360.0 - 180.0)
    around = np.where(off <= 45.0, 0, np.where(off >= 135.0, 2, 1))
    return np.where(np.asarray(views.camera.elevation) > 60.0, 3, around)


def make_run(prior, objective):
    """All there is to see of a step: the loss, its gradients, the metrics and what the spy saw."""

    def loss_of(rgb, prior_params, tokens, null_tokens, params, views, key, step):
        params = params._replace(
            prior=prior_params,
            text=params.text._replace(tokens=tokens),
            null=params.null._replace(tokens=null_tokens),
        )
        prior.asked.clear()
        loss, metrics = objective(params, rgb, views, key, step)
        (asked,) = prior.asked  # one call for all views, with and without text
        return loss, (metrics, asked)

    gradients_of = jax.value_and_grad(loss_of, argnums=(0, 1, 2, 3), has_aux=True)

    def run(params, rgb, views, key=KEY, step=0):
        (loss, (metrics, asked)), (gradient, *others) = gradients_of(
            rgb, params.prior, params.text.tokens, params.null.tokens, params, views, key, step
        )
        return Seen(loss, metrics, asked, gradient, others)

    return run


class Seen(NamedTuple):
    """Loss, metrics, (z_t, t, text), gradient in rgb and gradients in the parameters."""

    loss: jax.Array
    metrics: dict
    asked: tuple
    gradient: jax.Array
    others: list


def float64_residual(asked, params, views, rgb, guidance):
    """w (eps_hat - eps) from the draws the spy saw, eps solved from z_t; alpha_bar, eps and t."""
    z_t, t, _ = asked
    count = len(views.index)
    z_t, t = np.float64(z_t)[:count], np.asarray(t)[:count]
    alpha_bar = np.cumprod(1.0 - SCHEDULE.betas)[t].reshape(-1, 1, 1, 1)
    z_0 = 2.0 * np.float64(rgb) - 1.0
    eps = (z_t - np.sqrt(alpha_bar) * z_0) / np.sqrt(1 - alpha_bar)
    mu, var = np.float64(params.prior.mu), np.float64(params.prior.var)
    gain = np.sqrt(1 - alpha_bar) / (alpha_bar * var + 1 - alpha_bar)
    cond = gain * (z_t - np.sqrt(alpha_bar) * mu[1 + words_of(views)])
    uncond = gain * (z_t - np.sqrt(alpha_bar) * mu[0])
    eps_hat = (1 + (guidance - 1)) * cond - (guidance - 1) * uncond
    return (1 - alpha_bar) * (eps_hat - eps), alpha_bar, eps, t


class Case(NamedTuple):
    """Renderings of 4 views that are linear in a theta [5], and the jitted step on them."""

    prior: SpyPrior
    params: SdsParams
    views: Views
    basis: np.ndarray
    rgb: jax.Array
    run: Callable


@pytest.fixture(scope="module")
def case():
    prior, prior_params = make_prior(kind=SpyPrior)
    rng = np.random.default_rng(1)
    basis = np.float32(rng.uniform(0.0, 0.3, (4, SIZE, SIZE, 3, 5)))
    rgb = jnp.asarray(basis @ np.float32(rng.uniform(0.2, 0.6, 5)))
    params = sds_params(prior, prior_params, "a ball")
    run = jax.jit(make_run(prior, make_sds(prior, CONFIG, 100)))
    return Case(prior, params, make_views([0, 1, 2, 3]), basis, rgb, run)


@pytest.mark.parametrize("jit", [False, True])
def test_gradient_is_the_papers(case, jit):
    run = case.run if jit else make_run(case.prior, make_sds(case.prior, CONFIG, 100))
    seen = run(case.params, case.rgb, case.views)
    assert len(seen.asked[0]) == len(seen.asked[1]) == len(seen.asked[2].tokens) == 8
    residual, alpha_bar, eps, t = float64_residual(
        seen.asked, case.params, case.views, case.rgb, 7.0
    )
    np.testing.assert_allclose(seen.gradient, 2.0 * residual / 4, rtol=1e-4, atol=1e-5)
    basis = np.float64(case.basis)
    theta_gradient = np.einsum("vhwc,vhwcd->d", seen.gradient, basis)
    expected = np.einsum("vhwc,vhwcd->d", residual, 2.0 * basis) / 4
    np.testing.assert_allclose(theta_gradient, expected, rtol=1e-4, atol=1e-5)

    squares = np.sum(residual**2, axis=(1, 2, 3))
    np.testing.assert_allclose(seen.loss, 0.5 * squares.mean(), rtol=1e-4)
    assert seen.metrics.keys() == {"loss", "residual_norm", "t"}
    np.testing.assert_allclose(seen.metrics["loss"], seen.loss)
    np.testing.assert_allclose(seen.metrics["residual_norm"], np.sqrt(squares).mean(), rtol=1e-4)
    np.testing.assert_allclose(seen.metrics["t"], t.mean(), rtol=1e-6)

    # Controls: the draws look like draws, and the network's Jacobian is not in the gradient.
    assert abs(eps.mean()) < 5 / np.sqrt(eps.size) and abs(eps.std() - 1) < 0.2
    assert len(set(t.tolist())) == 4
    jacobian = np.sqrt(alpha_bar * (1 - alpha_bar)) / (alpha_bar * 0.04 + 1 - alpha_bar)
    through = np.einsum("vhwc,vhwcd->d", residual * jacobian, 2.0 * basis) / 4
    assert np.abs(through - expected).max() > 1e-2


def test_gradient_goes_through_a_resizing_encode(case):
    rgb = jnp.float32(np.random.default_rng(2).uniform(size=(4, 2, 2, 3)))

    def encode(rgb):
        return case.prior.encode(case.params.prior, rgb, KEY)

    seen = case.run(case.params, rgb, case.views)
    large = 0.5 * np.float64(encode(rgb)) + 0.5
    residual, *_ = float64_residual(seen.asked, case.params, case.views, large, 7.0)
    zero = encode(jnp.zeros_like(rgb))
    for index in [(0, 0, 0, 0), (0, 1, 0, 2), (1, 1, 1, 1)]:
        column = encode(jnp.zeros_like(rgb).at[index].set(1.0)) - zero  # encode is affine
        expected = np.sum(residual * np.float64(column)) / 4
        np.testing.assert_allclose(seen.gradient[index], expected, rtol=1e-4, atol=1e-5)


def test_uniform_weighting_drops_w(case):
    seen = case.run(case.params, case.rgb, case.views)
    objective = make_sds(case.prior, dataclasses.replace(CONFIG, weighting="uniform"), 100)
    plain = make_run(case.prior, objective)(case.params, case.rgb, case.views)
    np.testing.assert_array_equal(plain.asked[1], seen.asked[1])
    variance = SCHEDULE.variance[np.asarray(seen.asked[1])[:4]].reshape(-1, 1, 1, 1)
    np.testing.assert_allclose(plain.gradient * variance, seen.gradient, rtol=1e-4, atol=1e-6)


def test_a_view_draws_the_same_wherever_it_is_shown(case):
    first = case.run(case.params, case.rgb, case.views)
    order = jnp.array([2, 3, 0, 0])
    shuffled = jax.tree.map(lambda x: x[order], case.views)
    second = case.run(case.params, case.rgb[order], shuffled)
    np.testing.assert_allclose(second.gradient, first.gradient[order], rtol=1e-6, atol=1e-8)
    # Controls: another number of the view or another key is another draw.
    moved = case.run(case.params, case.rgb, case.views._replace(index=case.views.index + 4))
    again = case.run(case.params, case.rgb, case.views, jax.random.key(8))
    for other in (moved, again):
        assert (np.abs(other.gradient - first.gradient).max(axis=(1, 2, 3)) > 1e-2).all()


def test_halves_average_to_the_whole(case):
    """Two devices with half the views each, their gradients averaged."""
    whole = case.run(case.params, case.rgb, case.views)
    run = jax.jit(make_run(case.prior, make_sds(case.prior, CONFIG, 100)))
    halves = [
        run(case.params, case.rgb[i], jax.tree.map(lambda x, i=i: x[i], case.views))
        for i in (slice(0, 2), slice(2, 4))
    ]
    gradient = np.concatenate([half.gradient for half in halves]) / 2
    np.testing.assert_allclose(gradient, whole.gradient, rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose((halves[0].loss + halves[1].loss) / 2, whole.loss, rtol=1e-5)


def test_nothing_reaches_the_prior(case):
    seen = case.run(case.params, case.rgb, case.views)
    for gradient in jax.tree.leaves(seen.others):
        np.testing.assert_array_equal(gradient, 0.0)
    assert np.abs(seen.gradient).max() > 1e-2
    # Control: the text does decide what the loss is.
    for name in ("text", "null"):
        text = getattr(case.params, name)
        changed = case.params._replace(**{name: text._replace(tokens=text.tokens + 0.1)})
        assert abs(case.run(changed, case.rgb, case.views).loss - seen.loss) > 1e-3


def test_each_view_is_told_its_own_word(case):
    views = make_views([3, 0, 2, 2])
    _, _, text = case.run(case.params, case.rgb, views).asked
    expected = np.asarray(case.params.prior.mu)[[4, 1, 3, 3, 0, 0, 0, 0]].reshape(8, 1, -1)
    np.testing.assert_array_equal(text.tokens, expected)
    assert text.mask.shape == (8, 1) and text.mask.dtype == bool


def test_a_broken_rendering_is_not_hidden(case):
    seen = case.run(case.params, case.rgb.at[0, 0, 0, 0].set(jnp.inf), case.views)
    assert not np.isfinite(seen.loss) and not np.isfinite(seen.metrics["residual_norm"])


def test_t_is_drawn_per_view_from_the_range_of_the_step(case):
    for step, low, high in [(0, 20, 980), (50, 20, 790), (100, 20, 600), (500, 20, 600)]:
        drawn = []
        for i in range(50):
            views = case.views._replace(index=4 * i + jnp.arange(4))
            _, t, _ = case.run(case.params, case.rgb, views, KEY, step).asked
            np.testing.assert_array_equal(t[:4], t[4:])
            drawn += t[:4].tolist()
        assert low <= min(drawn) < low + 0.05 * (high - low)
        assert high > max(drawn) >= high - 0.05 * (high - low)


def test_expected_gradient_is_the_closed_form():
    """E over eps: w sigma sqrt(alpha_bar) (z_0 - mu) / (alpha_bar var + sigma^2), mean over t."""
    prior, prior_params = make_prior(size=1, kind=SpyPrior)
    params = sds_params(prior, prior_params, "a ball")
    config = SdsConfig(guidance_scale=1.0, t_range=(0.1, 0.4))
    count = 20000
    rgb, views = jnp.full((count, 1, 1, 3), 0.8), make_views(np.full(count, 2))
    seen = jax.jit(make_run(prior, make_sds(prior, config, 1)))(params, rgb, views)
    gradient = np.float64(seen.gradient).reshape(count, 3) * count / 2  # d z_0 / d rgb = 2
    alpha_bar = np.cumprod(1.0 - SCHEDULE.betas)[100:400]
    sigma = np.sqrt(1 - alpha_bar)
    pull = sigma**3 * np.sqrt(alpha_bar) / (alpha_bar * 0.04 + sigma**2)
    expected = pull.mean() * (0.6 - np.float64(prior_params.mu[3]).ravel())
    error = 5 * gradient.std(0) / np.sqrt(count)
    assert (np.abs(gradient.mean(0) - expected) < error).all()
    assert (np.abs(expected) > 3 * error).any()


@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_optimum_is_where_the_closed_form_says(guidance):
    """With equal variances the guided optimum is mu_null + s (mu - mu_null); mu for s = 1."""
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


def test_half_precision_network_is_guided_in_float32(case):
    outputs = []

    class Half(SpyPrior):
        def predict_eps(self, params, z_t, t, text):
            outputs.append(super().predict_eps(params, z_t, t, text).astype(jnp.bfloat16))
            return outputs[-1]

    half = Half(SCHEDULE, SIZE, PROMPTS)
    loss, metrics = make_sds(half, CONFIG, 100)(case.params, case.rgb, case.views, KEY, 0)
    assert loss.dtype == metrics["residual_norm"].dtype == jnp.float32
    _, alpha_bar, eps, _ = float64_residual(half.asked[0], case.params, case.views, case.rgb, 7.0)
    cond, uncond = np.split(np.asarray(outputs[0]).astype(np.float64), 2)
    residual = (1 - alpha_bar) * (7.0 * cond - 6.0 * uncond - eps)
    np.testing.assert_allclose(loss, 0.5 * np.sum(residual**2) / 4, rtol=1e-4)


def test_t_range_moves():
    fixed = SdsConfig(t_range=(0.1, 0.9))
    assert t_range_at(fixed, 50, 100) == (0.1, 0.9)
    moving = SdsConfig(t_range=(0.02, 0.98), t_range_end=(0.1, 0.5))
    for step, expected in [(0, (0.02, 0.98)), (50, (0.06, 0.74)), (100, (0.1, 0.5))]:
        found = jax.jit(lambda s: t_range_at(moving, s, 100))(step)
        np.testing.assert_allclose(found, expected, rtol=1e-6)
    np.testing.assert_allclose(t_range_at(moving, 500, 100), (0.1, 0.5), rtol=1e-6)


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
        ({"perp_neg": -1.0}, "perp_neg must be 0 or more; got -1.0"),
        ({"clip_residual": float("nan")}, "clip_residual must be 0 or more"),
    ],
)
def test_wrong_config(changes, words):
    with pytest.raises(UserError, match=words):
        SdsConfig(**changes)


def test_several_draws_a_view_are_averaged(case):
    config = dataclasses.replace(CONFIG, draws=3)
    run = make_run(case.prior, make_sds(case.prior, config, 100))
    seen = run(case.params, case.rgb, case.views)
    z_t, t, _ = seen.asked
    assert len(z_t) == len(t) == 2 * 3 * 4
    thrice = jax.tree.map(lambda x: np.repeat(x, 3, axis=0), case.views)
    rgb = np.repeat(case.rgb, 3, axis=0)
    residual, _, _, t = float64_residual(seen.asked, case.params, thrice, rgb, 7.0)
    expected = 2.0 * residual.reshape(4, 3, *residual.shape[1:]).mean(1) / 4
    np.testing.assert_allclose(seen.gradient, expected, rtol=1e-4, atol=1e-5)
    # One t in each third of the range.
    thirds = np.linspace(20, 980, 4)
    assert (np.digitize(t.reshape(4, 3), thirds) == [1, 2, 3]).all()


AZIMUTHS, ELEVATIONS = np.array([20.0, -70.0, 160.0, 100.0]), np.array([0.0, 30.0, 10.0, 70.0])


def views_at(azimuth, elevation):
    azimuth, elevation = jnp.float32(azimuth), jnp.float32(elevation)
    camera = jax.vmap(lambda a, e: orbit(a, e, 3.0, 1.2))(azimuth, elevation)
    return Views(camera, jnp.arange(len(azimuth)), jnp.zeros(len(azimuth)))


def step_with(case, views, **changes):
    """What a step sees and does under CONFIG with these changes."""
    objective = make_sds(case.prior, dataclasses.replace(CONFIG, **changes), 100)
    return make_run(case.prior, objective)(case.params, case.rgb, views)


def pushes(seen):
    """Each view's residual as the gradient shows it: V = 4, d z_0 / d rgb = 2."""
    return 2.0 * np.float64(seen.gradient)


@pytest.mark.parametrize("interpolate", [False, True])
def test_textureless_views_are_told_a_text_of_their_own(case, interpolate):
    prior, prior_params = make_prior(kind=SpyPrior)
    prior = dataclasses.replace(prior, prompts=(*PROMPTS, *view_prompts("clay", PAPER_VIEWS)))
    mu = np.random.default_rng(2).uniform(-0.6, 0.6, (9, SIZE, SIZE, 3))
    params = sds_params(prior, prior_params._replace(mu=jnp.float32(mu)), "a ball", "", "clay")
    config = dataclasses.replace(CONFIG, perp_neg=1.0, interpolate_views=interpolate)
    run = make_run(prior, make_sds(prior, config, 100))
    # Each view is seen from the middle of what its word names, so that mixed and nearest agree.
    views = views_at([0.0, 90.0, 180.0, 0.0], [0.0, 0.0, 0.0, 80.0])
    views = views._replace(textureless=jnp.array([0.0, 1.0, 0.0, 1.0]))
    tokens = run(params, case.rgb, views).asked[2].tokens
    # Its own text, null, and the front's and the side's, from which Perp-Neg guides away.
    expected = mu[[1, 6, 3, 8, 0, 0, 0, 0, 1, 5, 1, 5, 2, 6, 2, 6]].reshape(16, 1, -1)
    np.testing.assert_allclose(tokens, expected, atol=1e-6)
    # Without a text of their own they are told everyone's.
    same = sds_params(prior, params.prior, "a ball")
    tokens = run(same, case.rgb, views).asked[2].tokens
    np.testing.assert_allclose(tokens[:4], mu[[1, 2, 3, 4]].reshape(4, 1, -1), atol=1e-6)


def test_interpolated_views_ask_for_mixed_texts(case):
    views = views_at(AZIMUTHS, ELEVATIONS)
    seen = step_with(case, views, interpolate_views=True)
    shares = np.array([[7, 2, 0, 0], [2, 7, 0, 0], [0, 2, 7, 0], [0, 0, 0, 9]]) / 9
    mu = np.float64(case.params.prior.mu)
    mixed = np.einsum("vn,nhwc->vhwc", shares, mu[1:])
    np.testing.assert_allclose(seen.asked[2].tokens[:4], mixed.reshape(4, 1, -1), atol=1e-6)
    # The prior's answer is affine in the text, so the mixed text's residual is its own mean's.
    as_words = case.params.prior._replace(mu=jnp.float32(np.concatenate([mu[:1], mixed])))
    params, words = case.params._replace(prior=as_words), make_views([0, 1, 2, 3])
    residual, *_ = float64_residual(seen.asked, params, words, case.rgb, 7.0)
    np.testing.assert_allclose(pushes(seen), residual, rtol=1e-4, atol=1e-4)


def test_interpolated_is_nearest_in_the_middle_of_a_view(case):
    views = views_at([0.0, -90.0, 180.0, 12.0], [0.0, 20.0, -10.0, 80.0])
    nearest, interpolated = (step_with(case, views, interpolate_views=i) for i in (False, True))
    np.testing.assert_array_equal(interpolated.gradient, nearest.gradient)
    # Control: elsewhere it is not.
    views = views_at(AZIMUTHS, ELEVATIONS)
    nearest, interpolated = (step_with(case, views, interpolate_views=i) for i in (False, True))
    differs = np.abs(interpolated.gradient - nearest.gradient).max(axis=(1, 2, 3)) > 1e-3
    np.testing.assert_array_equal(differs, [True, True, True, False])


def test_perp_neg_takes_away_what_is_perpendicular(case):
    draws, count = 2, 8
    views = views_at(AZIMUTHS, ELEVATIONS)
    seen = step_with(case, views, perp_neg=1.5, draws=draws)
    assert len(seen.asked[0]) == 4 * count  # text, null, front, side
    mu = np.float64(case.params.prior.mu)
    expected = np.repeat(mu[[1, 2, 3, 4, 0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2]], draws, axis=0)
    np.testing.assert_allclose(seen.asked[2].tokens, expected.reshape(4 * count, 1, -1), atol=1e-6)

    repeated = jax.tree.map(lambda x: np.repeat(x, draws, axis=0), views)
    rgb = np.repeat(case.rgb, draws, axis=0)
    plain, alpha_bar, _, _ = float64_residual(seen.asked, case.params, repeated, rgb, 7.0)
    sigma = np.sqrt(1 - alpha_bar)
    # Two predictions differ by gain sqrt(alpha_bar) times the difference of their means.
    slope = sigma / (alpha_bar * 0.04 + 1 - alpha_bar) * np.sqrt(alpha_bar)
    away = np.zeros_like(plain)
    weights = np.repeat(negative_weights(AZIMUTHS, ELEVATIONS), draws, axis=1)
    for i in range(count):
        d = slope[i] * (mu[0] - mu[1 + words_of(repeated)[i]])
        for word, weight in zip((0, 1), weights[:, i], strict=True):
            d_n = slope[i] * (mu[0] - mu[1 + word])
            away[i] += 1.5 * weight * (d_n - np.sum(d_n * d) / np.sum(d * d) * d)
    residual = (plain - sigma**2 * 7.0 * away).reshape(4, draws, SIZE, SIZE, 3).mean(1)
    np.testing.assert_allclose(pushes(seen), residual, rtol=1e-4, atol=2e-4)


def test_perp_neg_needs_a_side(case):
    prior = dataclasses.replace(case.prior, view_names=((90.0, ("front view", "back view")),))
    with pytest.raises(UserError, match="half-way between front and back"):
        make_sds(prior, dataclasses.replace(CONFIG, perp_neg=1.0), 100)
    make_sds(prior, CONFIG, 100)


def test_perp_neg_is_plain_guidance_where_its_weights_are_nothing(case):
    """Overhead; elsewhere it grows from there in proportion to its strength."""
    views = views_at([10.0, 200.0, 90.0, 180.0], [70.0, 61.0, 0.0, 0.0])
    plain, away = (pushes(step_with(case, views, perp_neg=strength)) for strength in (0.0, 1.0))
    np.testing.assert_allclose(away[:2], plain[:2], rtol=1e-5, atol=1e-5)
    assert (np.abs(away - plain)[2:].max(axis=(1, 2, 3)) > 1e-2).all()  # control
    faint = pushes(step_with(case, views, perp_neg=1e-4))
    np.testing.assert_allclose(faint - plain, 1e-4 * (away - plain), rtol=0, atol=1e-4)


def test_clipping_shortens_the_residual_of_a_view(case):
    free = step_with(case, case.views)
    norms = np.sqrt(np.sum(pushes(free) ** 2, axis=(1, 2, 3)))
    bound = float(np.sort(norms)[1:3].mean())  # two views are over it
    clipped = step_with(case, case.views, clip_residual=bound)
    scale = np.minimum(1.0, bound / norms).reshape(-1, 1, 1, 1)
    assert (scale < 1).sum() == 2
    np.testing.assert_allclose(clipped.gradient, scale * free.gradient, rtol=1e-5, atol=1e-7)
    found = np.sqrt(np.sum(pushes(clipped) ** 2, axis=(1, 2, 3)))
    np.testing.assert_allclose(found, np.minimum(norms, bound), rtol=1e-5)
    # What is shown is what there was before.
    jax.tree.map(np.testing.assert_array_equal, clipped.metrics, free.metrics)
    broken = make_sds(case.prior, dataclasses.replace(CONFIG, clip_residual=bound), 100)
    gradient = jax.grad(lambda rgb: broken(case.params, rgb, case.views, KEY, 0)[0])(
        case.rgb.at[0, 0, 0, 0].set(jnp.inf)
    )
    assert not np.isfinite(gradient[0]).all()  # not hidden either


def test_another_encoder_takes_the_priors_place(case):
    """z_0 = 0.5 rgb + noise of its own key: the gradient is a quarter of the prior's way there."""

    def encode(params, rgb, key):
        assert params.mu.shape == case.params.prior.mu.shape and rgb.shape[0] == 1
        return 0.5 * rgb + 0.1 * jax.random.normal(key, rgb.shape)

    objective = make_sds(case.prior, CONFIG, 100, encode)
    seen = make_run(case.prior, objective)(case.params, case.rgb, case.views)
    keys = [jax.random.split(jax.random.fold_in(KEY, i), 3)[0] for i in range(4)]
    noise = jnp.stack([jax.random.normal(k, case.rgb.shape[1:]) for k in keys])
    z_0 = 0.5 * case.rgb + 0.1 * noise
    as_rgb = 0.5 * np.float64(z_0) + 0.5
    residual, *_ = float64_residual(seen.asked, case.params, case.views, as_rgb, 7.0)
    np.testing.assert_allclose(seen.gradient, 0.5 * residual / 4, rtol=1e-4, atol=1e-5)
