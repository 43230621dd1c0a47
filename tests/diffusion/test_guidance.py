"""Guidance against its published formulas and what it must leave alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamjax.diffusion.guidance import (
    classifier_free,
    guide_eps,
    guide_mean,
    log_probability_gradient,
    perp_neg,
    rescaled,
)
from dreamjax.diffusion.reverse import Parameterisation, reverse, unclipped
from dreamjax.diffusion.samplers import ancestral_sample, ddim_sample
from dreamjax.diffusion.schedule import extract, linear


@pytest.mark.parametrize("s", [0.0, 1.0, 7.5, 101.0])
def test_both_forms(s):
    rng = np.random.default_rng(1)
    cond, uncond = rng.standard_normal((2, 4, 3, 3))
    w = s - 1.0
    expected = (1 + w) * cond - w * uncond
    for function in (classifier_free, jax.jit(classifier_free)):
        found = function(jnp.float32(cond), jnp.float32(uncond), s)
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6 * (1 + s))


def test_rescaled_has_the_spread_of_the_conditional():
    rng = np.random.default_rng(2)
    cond = rng.standard_normal((3, 5, 5, 2)) * np.array([0.5, 1.0, 2.0]).reshape(3, 1, 1, 1)
    guided = 7.0 * rng.standard_normal((3, 5, 5, 2)) + 1.0
    whole = jax.jit(rescaled)(jnp.float32(guided), jnp.float32(cond), 1.0)
    np.testing.assert_allclose(np.std(whole, (1, 2, 3)), np.std(cond, (1, 2, 3)), rtol=1e-5)
    part = rescaled(jnp.float32(guided), jnp.float32(cond), 0.7)
    np.testing.assert_allclose(part, 0.7 * whole + 0.3 * guided, rtol=1e-5, atol=1e-5)


def test_perp_neg():
    rng = np.random.default_rng(3)
    cond, uncond = rng.standard_normal((2, 2, 4, 4, 3))
    negative = rng.standard_normal((3, 2, 4, 4, 3))
    weights = np.array([[1.0, 0.5], [0.0, 2.0], [0.7, 0.0]])
    expected = np.empty_like(cond)
    for b in range(2):
        d = cond[b] - uncond[b]
        total = d.copy()
        for n in range(3):
            d_n = negative[n, b] - uncond[b]
            total -= weights[n, b] * (d_n - np.sum(d_n * d) / np.sum(d * d) * d)
        expected[b] = uncond[b] + 7.5 * total
    args = (jnp.float32(x) for x in (cond, uncond, negative))
    found = jax.jit(perp_neg)(*args, 7.5, jnp.float32(weights))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    # A negative prompt that says what the prompt says takes nothing away (a plain one would).
    same = perp_neg(
        *map(jnp.float32, (cond, uncond)), jnp.float32(cond)[None], 3.0, jnp.ones((1, 2))
    )
    plain = classifier_free(jnp.float32(cond), jnp.float32(uncond), 3.0)
    np.testing.assert_allclose(same, plain, rtol=1e-4, atol=1e-4)


MU, VAR = 0.0, 0.3  # data N(MU, VAR), and a class whose density is N(1, 0.2) times a constant
CLASS_MU, CLASS_VAR = 1.0, 0.2


@pytest.mark.parametrize("sampler", ["ancestral", "ddim"])
def test_an_exact_classifier_gives_the_conditional_law(sampler):
    """q(x_0 | y) of two Gaussians is known; guidance by the exact p(y | x_t), s = 1, reaches it."""
    schedule, n = linear(500, 1e-4, 0.03), 6000
    conditional_var = 1 / (1 / VAR + 1 / CLASS_VAR)
    conditional_mean = conditional_var * (MU / VAR + CLASS_MU / CLASS_VAR)

    def moments(t):
        alpha_bar, variance = (extract(a, t, 2) for a in (schedule.alpha_bar, schedule.variance))
        return jnp.sqrt(alpha_bar), alpha_bar * VAR + variance, alpha_bar, variance

    def net(x_t, t):
        scale, spread, _, variance = moments(t)
        return jnp.sqrt(variance) * (x_t - scale * MU) / spread

    def log_probability(x_t, t):
        # x_0 given x_t is Gaussian; the class's density is averaged over it.
        scale, spread, _, variance = moments(t)
        mean = MU + scale * VAR / spread * (x_t - scale * MU)
        var = VAR * variance / spread + CLASS_VAR
        return (-0.5 * (mean - CLASS_MU) ** 2 / var - 0.5 * jnp.log(var))[:, 0]

    def gradient(x_t, t):
        return log_probability_gradient(log_probability, x_t, t)

    key, shape = jax.random.key(0), (n, 1)
    if sampler == "ancestral":
        x_0 = ancestral_sample(
            net, schedule, Parameterisation(threshold=unclipped), key, shape, 500,
            guide=lambda x_t, t, model: guide_mean(model, gradient(x_t, t), 1.0),
        )  # fmt: skip
    else:
        predict = lambda x_t, t: guide_eps(schedule, net(x_t, t), t, gradient(x_t, t), 1.0)  # noqa: E731
        x_0 = ddim_sample(predict, schedule, key, shape, 500, 0.0, unclipped)
    tolerance = 5 * np.sqrt(conditional_var / n) + 0.01  # 0.01: the steps are finite
    assert abs(float(x_0.mean()) - conditional_mean) < tolerance
    np.testing.assert_allclose(float(x_0.var()), conditional_var, rtol=0.1)
    assert tolerance < 0.1 * abs(conditional_mean - MU)


def test_guiding_the_mean_moves_nothing_else():
    schedule = linear(10)
    x, t = jnp.ones((2, 3)), jnp.array([4, 0])
    model = reverse(schedule, Parameterisation(), x, t, 0.1 * x)
    moved = guide_mean(model, 2.0 * x, 3.0)
    np.testing.assert_allclose(moved.mean, model.mean + 6.0 * model.var, rtol=1e-6)
    np.testing.assert_array_equal(moved.x_0, model.x_0)
    np.testing.assert_array_equal(moved.log_var, model.log_var)
