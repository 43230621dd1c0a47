"""CSD, NFSD, HiFA and SDI against float64 arithmetic and the closed forms of a Gaussian prior."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamjax.clock import Clock, Ramp
from dreamjax.distill.csd import Csd
from dreamjax.distill.hifa import Hifa
from dreamjax.distill.nfsd import Nfsd
from dreamjax.distill.sdi import Sdi
from dreamjax.distill.sds import Noised
from dreamjax.distill.weighting import CleanSpace, SigmaSquared, Uniform

from .spy import KEY, SCHEDULE, make_case, make_run, words_of

pytestmark = pytest.mark.usefixtures("quick_compilation")
ALPHA_BAR = np.cumprod(1.0 - np.float64(SCHEDULE.betas))


@pytest.fixture(scope="module")
def case():
    return make_case()


def predictions(case, asked):
    """(eps_cond, eps_uncond, eps, t) in float64 of the draws that the spy saw."""
    z_t, t, _ = asked
    count = len(z_t) // 2
    z_t, t = np.float64(z_t)[:count], np.asarray(t)[:count]
    alpha_bar = ALPHA_BAR[t].reshape(-1, 1, 1, 1)
    z_0 = np.repeat(2.0 * np.float64(case.rgb) - 1.0, count // len(case.rgb), axis=0)
    eps = (z_t - np.sqrt(alpha_bar) * z_0) / np.sqrt(1 - alpha_bar)
    mu, var = np.float64(case.frozen.params.mu), np.float64(case.frozen.params.var)
    mu_cond = np.repeat(mu[1 + words_of(case.views)], count // len(case.rgb), axis=0)
    gain = np.sqrt(1 - alpha_bar) / (alpha_bar * var + 1 - alpha_bar)
    both = [gain * (z_t - np.sqrt(alpha_bar) * m) for m in (mu_cond, mu[0])]
    return *both, eps, t


def gradient_of(residual, draws):
    """What a residual [V draws, ...] before the mean over views and draws does to rgb [V, ...]."""
    residual = residual.reshape(-1, draws, *residual.shape[1:]).mean(axis=1)
    return 2.0 * residual / len(residual)


def test_csd_is_guidance_alone(case):
    objective = Csd(guidance_scale=3.0, draws=2)
    seen = make_run(case.prior, objective)(case.frozen, case.rgb, case.views)
    cond, uncond, _, t = predictions(case, seen.asked)
    w = (1 - ALPHA_BAR[t]).reshape(-1, 1, 1, 1)
    wanted = gradient_of(w * 3.0 * (cond - uncond), 2)
    np.testing.assert_allclose(seen.gradient, wanted, rtol=2e-4, atol=1e-5)
    assert all(not np.any(x) for x in seen.others)


def test_nfsd_keeps_the_pull_towards_pictures_where_noise_is_little(case):
    objective = Nfsd(guidance_scale=3.0, draws=4, weighting=Uniform(), t_high=Ramp(0.5, 0.5))
    seen = make_run(case.prior, objective)(case.frozen, case.rgb, case.views)
    cond, uncond, _, t = predictions(case, seen.asked)
    little = (t < 200).reshape(-1, 1, 1, 1)
    assert 0 < little.sum() < len(t)  # both kinds are there
    wanted = gradient_of(little * uncond + 3.0 * (cond - uncond), 4)
    np.testing.assert_allclose(seen.gradient, wanted, rtol=2e-4, atol=1e-5)


@pytest.mark.parametrize(("step", "t"), [(0, 980), (25, 590), (100, 200)])
def test_hifas_t_falls_with_the_root_of_time_and_its_guidance_is_rescaled(case, step, t):
    objective = Hifa(guidance_scale=30.0, draws=2, rescale=1.0)
    seen = make_run(case.prior, objective)(case.frozen, case.rgb, case.views, KEY, step)
    cond, uncond, eps, drawn = predictions(case, seen.asked)
    assert set(drawn.tolist()) == {t}
    guided = uncond + 30.0 * (cond - uncond)
    axes = (1, 2, 3)
    guided *= cond.std(axes, keepdims=True) / guided.std(axes, keepdims=True)
    w = np.sqrt(1 / ALPHA_BAR[t] - 1)
    wanted = gradient_of(w * (guided - eps), 2)
    np.testing.assert_allclose(seen.gradient, wanted, rtol=1e-3, atol=1e-3 * np.abs(wanted).max())


def test_the_clean_spaces_weight_makes_the_residual_that_of_z_0():
    t = jnp.array([0, 300, 999])
    rng = np.random.default_rng(0)
    z_t, eps, eps_hat = rng.normal(size=(3, 3))
    a, s = np.sqrt(ALPHA_BAR[np.asarray(t)]), np.sqrt(1 - ALPHA_BAR[np.asarray(t)])
    wanted = (z_t - s * eps) / a - (z_t - s * eps_hat) / a
    np.testing.assert_allclose(CleanSpace()(SCHEDULE, t) * (eps_hat - eps), wanted, rtol=1e-4)


SDI = Sdi(
    guidance_scale=1.0,
    inversion_scale=1.0,
    eta=0.0,
    t_low=Ramp(0.3, 0.3),
    t_high=Ramp(0.98, 0.98),
)


def exact_inversion(case, z_0, t):
    """z_t on the probability flow through z_0: of Gaussian data, the same number of deviations."""
    mu = np.float64(case.frozen.params.mu)[1 + words_of(case.views)]
    var, alpha_bar = np.float64(case.frozen.params.var), ALPHA_BAR[t].reshape(-1, 1, 1, 1)
    spread = np.sqrt((alpha_bar * var + 1 - alpha_bar) / var)
    return np.sqrt(alpha_bar) * mu + spread * (z_0 - mu)


def test_sdis_inversion_follows_the_probability_flow(case):
    z_0 = 2.0 * case.rgb - 1.0
    t = jnp.array([100, 400, 700, 950])
    wanted = exact_inversion(case, np.float64(z_0), np.asarray(t))
    errors = []
    for n in (25, 100):
        objective = dataclasses.replace(SDI, inversion_steps=n)
        clean = Noised(z_0, t, jnp.zeros_like(z_0))
        found = objective.invert(case.prior, case.frozen, clean, case.views)
        errors.append(
            np.abs(found - wanted).max(axis=(1, 2, 3)) / np.abs(wanted).max(axis=(1, 2, 3))
        )
    assert (errors[1] < 0.08).all() and (errors[1] < 0.4 * errors[0]).all(), errors  # first order


def test_sdi_has_no_noise_of_its_own_and_sds_has(case):
    """Without fresh noise the gradient depends on t alone, and is 0 at the data's mean."""
    narrow = dataclasses.replace(
        SDI, t_low=Ramp(0.5, 0.5), t_high=Ramp(0.501, 0.501), inversion_steps=50
    )
    run = jax.jit(make_run_of_any(case.prior, narrow))
    a, b = (run(case.frozen, case.rgb, case.views, jax.random.key(i)) for i in range(2))
    np.testing.assert_array_equal(a, b)
    noisy = jax.jit(make_run_of_any(case.prior, dataclasses.replace(narrow, eta=0.3)))
    c, d = (noisy(case.frozen, case.rgb, case.views, jax.random.key(i)) for i in range(2))
    assert np.abs(c - d).max() > 1e-2 * np.abs(a).max()
    mean = 0.5 + 0.5 * case.frozen.params.mu[1 + words_of(case.views)]
    at_mean = run(case.frozen, mean, case.views, KEY)
    assert np.abs(at_mean).max() < 0.02 * np.abs(a).max()


def test_sdis_residual_is_the_guided_prediction_less_the_inverted_noise(case):
    objective = dataclasses.replace(
        SDI,
        guidance_scale=5.0,
        inversion_steps=100,
        t_low=Ramp(0.5, 0.5),
        t_high=Ramp(0.501, 0.501),
        weighting=SigmaSquared(),
    )
    found = make_run_of_any(case.prior, objective)(case.frozen, case.rgb, case.views, KEY)
    z_0, t = 2.0 * np.float64(case.rgb) - 1.0, np.full(4, 500)
    z_t = exact_inversion(case, z_0, t)
    alpha_bar = ALPHA_BAR[t].reshape(-1, 1, 1, 1)
    eps = (z_t - np.sqrt(alpha_bar) * z_0) / np.sqrt(1 - alpha_bar)
    mu, var = np.float64(case.frozen.params.mu), np.float64(case.frozen.params.var)
    gain = np.sqrt(1 - alpha_bar) / (alpha_bar * var + 1 - alpha_bar)
    cond, uncond = (
        gain * (z_t - np.sqrt(alpha_bar) * m) for m in (mu[1 + words_of(case.views)], mu[0])
    )
    wanted = gradient_of((1 - alpha_bar) * (uncond + 5.0 * (cond - uncond) - eps), 1)
    np.testing.assert_allclose(found, wanted, atol=0.03 * np.abs(wanted).max())


def make_run_of_any(prior, objective):
    """The gradient in rgb of an objective that asks more than once."""

    def loss(rgb, frozen, views, key):
        losses = objective.loss(prior, frozen, {}, rgb, views, key, Clock(0, 100), False)
        return losses.scene

    def run(frozen, rgb, views, key):
        return jax.grad(loss)(rgb, frozen, views, key)

    return run
