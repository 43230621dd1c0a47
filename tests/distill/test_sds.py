"""Score distillation against float64 arithmetic and the closed form of a Gaussian prior."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamjax.clock import Clock, Ramp
from dreamjax.distill.sds import Sds
from dreamjax.distill.weighting import Uniform
from dreamjax.errors import UserError

from .spy import (
    KEY,
    SCHEDULE,
    SDS,
    SIZE,
    TEXTS,
    Spy,
    float64_residual,
    freeze,
    make_case,
    make_prior,
    make_run,
    make_views,
)

pytestmark = pytest.mark.usefixtures("quick_compilation")


@pytest.fixture(scope="module")
def case():
    return make_case()


@pytest.mark.parametrize("jit", [False, True])
def test_gradient_is_the_papers(case, jit):
    run = case.run if jit else make_run(case.prior, SDS)
    seen = run(case.frozen, case.rgb, case.views)
    assert len(seen.asked[0]) == len(seen.asked[1]) == len(seen.asked[2].tokens) == 8
    residual, alpha_bar, eps, t = float64_residual(
        seen.asked, case.frozen, case.views, case.rgb, 7.0
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
        return case.prior.encode(case.frozen.params, rgb, jax.random.split(KEY, len(rgb)))

    seen = case.run(case.frozen, rgb, case.views)
    large = 0.5 * np.float64(encode(rgb)) + 0.5
    residual, *_ = float64_residual(seen.asked, case.frozen, case.views, large, 7.0)
    zero = encode(jnp.zeros_like(rgb))
    for index in [(0, 0, 0, 0), (0, 1, 0, 2), (1, 1, 1, 1)]:
        column = encode(jnp.zeros_like(rgb).at[index].set(1.0)) - zero  # encode is affine
        expected = np.sum(residual * np.float64(column)) / 4
        np.testing.assert_allclose(seen.gradient[index], expected, rtol=1e-4, atol=1e-5)


def test_uniform_weighting_drops_w(case):
    seen = case.run(case.frozen, case.rgb, case.views)
    objective = dataclasses.replace(SDS, weighting=Uniform())
    plain = make_run(case.prior, objective)(case.frozen, case.rgb, case.views)
    np.testing.assert_array_equal(plain.asked[1], seen.asked[1])
    variance = SCHEDULE.variance[np.asarray(seen.asked[1])[:4]].reshape(-1, 1, 1, 1)
    np.testing.assert_allclose(plain.gradient * variance, seen.gradient, rtol=1e-4, atol=1e-6)


def test_a_view_draws_the_same_wherever_it_is_shown(case):
    first = case.run(case.frozen, case.rgb, case.views)
    order = jnp.array([2, 3, 0, 0])
    shuffled = jax.tree.map(lambda x: x[order], case.views)
    second = case.run(case.frozen, case.rgb[order], shuffled)
    np.testing.assert_allclose(second.gradient, first.gradient[order], rtol=1e-6, atol=1e-8)
    # Controls: another number of the view or another key is another draw.
    moved = case.run(case.frozen, case.rgb, case.views._replace(index=case.views.index + 4))
    again = case.run(case.frozen, case.rgb, case.views, jax.random.key(8))
    for other in (moved, again):
        assert (np.abs(other.gradient - first.gradient).max(axis=(1, 2, 3)) > 1e-2).all()


def test_halves_average_to_the_whole(case):
    """Two devices with half the views each, their gradients averaged."""
    whole = case.run(case.frozen, case.rgb, case.views)
    run = jax.jit(make_run(case.prior, SDS))
    halves = [
        run(case.frozen, case.rgb[i], jax.tree.map(lambda x, i=i: x[i], case.views))
        for i in (slice(0, 2), slice(2, 4))
    ]
    gradient = np.concatenate([half.gradient for half in halves]) / 2
    np.testing.assert_allclose(gradient, whole.gradient, rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose((halves[0].loss + halves[1].loss) / 2, whole.loss, rtol=1e-5)


def test_nothing_reaches_the_prior(case):
    seen = case.run(case.frozen, case.rgb, case.views)
    assert len(seen.others) == 4  # mu, var, the view texts and the null text
    for gradient in seen.others:
        np.testing.assert_array_equal(gradient, 0.0)
    assert np.abs(seen.gradient).max() > 1e-2
    # Control: the text does decide what the loss is.
    for name in ("texts", "null"):
        text = getattr(case.frozen.embedded, name)
        embedded = case.frozen.embedded._replace(**{name: text._replace(tokens=text.tokens + 0.1)})
        changed = case.frozen._replace(embedded=embedded)
        assert abs(case.run(changed, case.rgb, case.views).loss - seen.loss) > 1e-3


def test_each_view_is_told_its_own_word(case):
    views = make_views([3, 0, 2, 2])
    _, _, text = case.run(case.frozen, case.rgb, views).asked
    expected = np.asarray(case.frozen.params.mu)[[4, 1, 3, 3, 0, 0, 0, 0]].reshape(8, 1, -1)
    np.testing.assert_array_equal(text.tokens, expected)
    assert text.mask.shape == (8, 1) and text.mask.dtype == bool


def test_a_broken_rendering_is_not_hidden(case):
    seen = case.run(case.frozen, case.rgb.at[0, 0, 0, 0].set(jnp.inf), case.views)
    assert not np.isfinite(seen.loss) and not np.isfinite(seen.metrics["residual_norm"])


def test_t_is_drawn_per_view_from_the_range_of_the_step(case):
    for step, low, high in [(0, 20, 980), (50, 20, 790), (100, 20, 600), (500, 20, 600)]:
        drawn = []
        for i in range(50):
            views = case.views._replace(index=4 * i + jnp.arange(4))
            _, t, _ = case.run(case.frozen, case.rgb, views, KEY, step).asked
            np.testing.assert_array_equal(t[:4], t[4:])
            drawn += t[:4].tolist()
        assert low <= min(drawn) < low + 0.05 * (high - low)
        assert high > max(drawn) >= high - 0.05 * (high - low)


def test_expected_gradient_is_the_closed_form():
    """E over eps: w sigma sqrt(alpha_bar) (z_0 - mu) / (alpha_bar var + sigma^2), mean over t."""
    prior, params = make_prior(size=1, kind=Spy)
    sds = Sds(guidance_scale=1.0, t_low=Ramp(0.1, 0.1), t_high=Ramp(0.4, 0.4))
    count = 20000
    rgb, views = jnp.full((count, 1, 1, 3), 0.8), make_views(np.full(count, 2))
    seen = jax.jit(make_run(prior, sds))(freeze(prior, params), rgb, views)
    gradient = np.float64(seen.gradient).reshape(count, 3) * count / 2  # d z_0 / d rgb = 2
    alpha_bar = np.cumprod(1.0 - SCHEDULE.betas)[100:400]
    sigma = np.sqrt(1 - alpha_bar)
    pull = sigma**3 * np.sqrt(alpha_bar) / (alpha_bar * 0.04 + sigma**2)
    expected = pull.mean() * (0.6 - np.float64(params.mu[3]).ravel())
    error = 5 * gradient.std(0) / np.sqrt(count)
    assert (np.abs(gradient.mean(0) - expected) < error).all()
    assert (np.abs(expected) > 3 * error).any()


@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_optimum_is_where_the_closed_form_says(guidance):
    """With equal variances the guided optimum is mu_null + s (mu - mu_null); mu for s = 1."""
    prior, params = make_prior(size=2)
    frozen = freeze(prior, params)
    sds = Sds(guidance_scale=guidance, t_high=Ramp(0.5, 0.5))
    steps, word, count = 400, 1, 32
    views = make_views(np.full(count, word))

    def loss_of(image, step):
        rgb = jnp.broadcast_to(image, (count, 2, 2, 3))
        key, clock = jax.random.fold_in(KEY, step), Clock(step, steps)
        return sds.loss(prior, frozen, {}, rgb, views, key, clock, False).scene

    def update(image, step):
        rate = 0.5 / (1.0 + 0.05 * step)
        return image - rate * jax.grad(loss_of)(image, step), None

    start = jnp.full((2, 2, 3), 0.5)
    image = jax.jit(lambda x: jax.lax.scan(update, x, jnp.arange(steps))[0])(start)
    mu, null = params.mu[1 + word], params.mu[0]
    np.testing.assert_allclose(2 * image - 1, null + guidance * (mu - null), rtol=0, atol=0.03)
    # Controls: neither the other guidance's optimum nor the start would pass.
    other = null + (3.0 - guidance) * (mu - null)
    assert np.abs(2 * image - 1 - other).max() > 0.3
    assert np.abs(2 * image - 1).max() > 0.3


def test_half_precision_network_is_guided_in_float32(case):
    outputs = []

    class Half(Spy):
        def predict(self, params, z_t, t, condition):
            outputs.append(super().predict(params, z_t, t, condition).astype(jnp.bfloat16))
            return outputs[-1]

    half = Half(texts=TEXTS, image_size=SIZE)
    seen = make_run(half, SDS)(case.frozen, case.rgb, case.views)
    assert seen.loss.dtype == seen.metrics["residual_norm"].dtype == jnp.float32
    _, alpha_bar, eps, _ = float64_residual(seen.asked, case.frozen, case.views, case.rgb, 7.0)
    cond, uncond = np.split(np.asarray(outputs[0]).astype(np.float64), 2)
    residual = (1 - alpha_bar) * (7.0 * cond - 6.0 * uncond - eps)
    np.testing.assert_allclose(seen.loss, 0.5 * np.sum(residual**2) / 4, rtol=1e-4)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"t_low": 0.5, "t_high": 0.5}, "expected 0 <= t_low < t_high <= 1"),
        ({"t_low": -0.1}, "t_low and t_high are -0.1"),
        ({"t_high": 1.1}, "t_low and t_high"),
        ({"t_high": Ramp(0.9, 0.01)}, "are 0.02 and 0.01"),
        ({"t_high": float("nan")}, "t_high is nan"),
        ({"guidance_scale": float("inf")}, "guidance_scale is inf"),
        ({"weighting": "none"}, "weighting is 'none'"),
        ({"perp_neg": -1.0}, "perp_neg is -1.0: expected at least 0"),
        ({"clip_residual": float("nan")}, "clip_residual is nan"),
        ({"draws": 0}, "draws is 0: expected at least 1"),
        ({"draws": 10**9}, "draws is 1000000000"),
    ],
)
def test_wrong_settings(changes, words):
    with pytest.raises(UserError, match=words):
        Sds(**changes)


def test_several_draws_a_view_are_averaged(case):
    run = make_run(case.prior, dataclasses.replace(SDS, draws=3))
    seen = run(case.frozen, case.rgb, case.views)
    z_t, t, _ = seen.asked
    assert len(z_t) == len(t) == 2 * 3 * 4
    thrice = jax.tree.map(lambda x: np.repeat(x, 3, axis=0), case.views)
    rgb = np.repeat(case.rgb, 3, axis=0)
    residual, _, _, t = float64_residual(seen.asked, case.frozen, thrice, rgb, 7.0)
    expected = 2.0 * residual.reshape(4, 3, *residual.shape[1:]).mean(1) / 4
    np.testing.assert_allclose(seen.gradient, expected, rtol=1e-4, atol=1e-5)
    # One t in each third of the range.
    thirds = np.linspace(20, 980, 4)
    assert (np.digitize(t.reshape(4, 3), thirds) == [1, 2, 3]).all()
