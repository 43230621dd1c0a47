"""Score distillation: texts by view, Perp-Neg, clipping and the cheap encoding, in float64."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamjax.errors import UserError
from dreamjax.priors.words import PAPER_VIEWS, negative_weights, view_texts
from dreamjax.settings import settings

from .spy import (
    KEY,
    SDS,
    SIZE,
    TEXTS,
    Spy,
    float64_residual,
    freeze,
    make_case,
    make_run,
    make_views,
    views_at,
    words_of,
)

pytestmark = pytest.mark.usefixtures("quick_compilation")


@pytest.fixture(scope="module")
def case():
    return make_case()


AZIMUTHS, ELEVATIONS = np.array([20.0, -70.0, 160.0, 100.0]), np.array([0.0, 30.0, 10.0, 70.0])


def step_with(case, views, **changes):
    """What a step sees and does under SDS with these changes."""
    prior, sds = case.prior, SDS
    if "interpolate_views" in changes:
        prior = dataclasses.replace(prior, interpolate_views=changes.pop("interpolate_views"))
    run = make_run(prior, dataclasses.replace(sds, **changes))
    return run(case.frozen, case.rgb, views)


def pushes(seen):
    """Each view's residual as the gradient shows it: V = 4, d z_0 / d rgb = 2."""
    return 2.0 * np.float64(seen.gradient)


@pytest.mark.parametrize("interpolate", [False, True])
def test_textureless_views_are_told_a_text_of_their_own(case, interpolate):
    clay = view_texts("a ball clay", PAPER_VIEWS)
    changes = {"texts": (*TEXTS, *clay), "interpolate_views": interpolate}
    prior = dataclasses.replace(case.prior, textureless_words="clay", **changes)
    mu = np.random.default_rng(2).uniform(-0.6, 0.6, (9, SIZE, SIZE, 3))
    frozen = freeze(prior, case.frozen.params._replace(mu=jnp.float32(mu)))
    run = make_run(prior, dataclasses.replace(SDS, perp_neg=1.0))
    # Each view is seen from the middle of what its word names, so that mixed and nearest agree.
    views = views_at([0.0, 90.0, 180.0, 0.0], [0.0, 0.0, 0.0, 80.0])
    views = views._replace(textureless=jnp.array([0.0, 1.0, 0.0, 1.0]))
    tokens = run(frozen, case.rgb, views).asked[2].tokens
    # Its own text, null, and the front's and the side's, from which Perp-Neg guides away.
    expected = mu[[1, 6, 3, 8, 0, 0, 0, 0, 1, 5, 1, 5, 2, 6, 2, 6]].reshape(16, 1, -1)
    np.testing.assert_allclose(tokens, expected, atol=1e-6)


def test_interpolated_views_ask_for_mixed_texts(case):
    views = views_at(AZIMUTHS, ELEVATIONS)
    seen = step_with(case, views, interpolate_views=True)
    shares = np.array([[7, 2, 0, 0], [2, 7, 0, 0], [0, 2, 7, 0], [0, 0, 0, 9]]) / 9
    mu = np.float64(case.frozen.params.mu)
    mixed = np.einsum("vn,nhwc->vhwc", shares, mu[1:])
    np.testing.assert_allclose(seen.asked[2].tokens[:4], mixed.reshape(4, 1, -1), atol=1e-6)
    # The prior's answer is affine in the text, so the mixed text's residual is its own mean's.
    as_words = case.frozen.params._replace(mu=jnp.float32(np.concatenate([mu[:1], mixed])))
    frozen, words = case.frozen._replace(params=as_words), make_views([0, 1, 2, 3])
    residual, *_ = float64_residual(seen.asked, frozen, words, case.rgb, 7.0)
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
    mu = np.float64(case.frozen.params.mu)
    expected = np.repeat(mu[[1, 2, 3, 4, 0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2]], draws, axis=0)
    np.testing.assert_allclose(seen.asked[2].tokens, expected.reshape(4 * count, 1, -1), atol=1e-6)

    repeated = jax.tree.map(lambda x: np.repeat(x, draws, axis=0), views)
    rgb = np.repeat(case.rgb, draws, axis=0)
    plain, alpha_bar, _, _ = float64_residual(seen.asked, case.frozen, repeated, rgb, 7.0)
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
    """A prior without texts to avoid cannot be guided away from them."""
    two = ((90.0, ("front view", "back view")),)
    prior = dataclasses.replace(case.prior, texts=(*TEXTS, "a ball, back view"), view_names=two)
    mu = jnp.concatenate([case.frozen.params.mu] * 2)[: len(prior.texts)]
    frozen = freeze(prior, case.frozen.params._replace(mu=mu))
    with pytest.raises(UserError, match="has no texts to avoid"):
        make_run(prior, dataclasses.replace(SDS, perp_neg=1.0))(frozen, case.rgb, case.views)
    make_run(prior, SDS)(frozen, case.rgb, case.views)


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
    run = make_run(case.prior, dataclasses.replace(SDS, clip_residual=bound))
    gradient = run(case.frozen, case.rgb.at[0, 0, 0, 0].set(jnp.inf), case.views).gradient
    assert not np.isfinite(gradient[0]).all()  # not hidden either


def test_a_cheap_encoding_is_the_priors_own(case):
    """z_0 = 0.5 rgb + noise of its own key: the gradient is a quarter of the usual way there."""

    @settings
    class Cheap(Spy):
        def encode(self, params, rgb, keys, cheap=False):
            assert cheap and params.mu.shape == case.frozen.params.mu.shape
            noise = jax.vmap(lambda key: jax.random.normal(key, rgb.shape[1:]))(keys)
            return 0.5 * rgb + 0.1 * noise

    prior = Cheap(texts=TEXTS, image_size=SIZE)
    seen = make_run(prior, SDS, cheap=True)(case.frozen, case.rgb, case.views)
    keys = [jax.random.split(jax.random.fold_in(KEY, i), 3)[0] for i in range(4)]
    noise = jnp.stack([jax.random.normal(k, case.rgb.shape[1:]) for k in keys])
    z_0 = 0.5 * case.rgb + 0.1 * noise
    as_rgb = 0.5 * np.float64(z_0) + 0.5
    residual, *_ = float64_residual(seen.asked, case.frozen, case.views, as_rgb, 7.0)
    np.testing.assert_allclose(seen.gradient, 0.5 * residual / 4, rtol=1e-4, atol=1e-5)
