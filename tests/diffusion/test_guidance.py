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
from dreamjax.errors import UserError

from . import float64


@pytest.mark.parametrize("s", [0.0, 1.0, 7.5, 101.0])
def test_both_forms(s):
    rng = np.random.default_rng(1)
    cond, uncond = rng.standard_normal((2, 4, 3, 3))
    w = s - 1.0
    expected = (1 + w) * cond - w * uncond
    for function in (classifier_free, jax.jit(classifier_free)):
        found = function(jnp.float32(cond), jnp.float32(uncond), s)
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6 * (1 + s))


@pytest.mark.parametrize("jit", [False, True])
def test_rescaled_has_the_spread_of_the_conditional(jit):
    rng = np.random.default_rng(2)
    cond = rng.standard_normal((3, 5, 5, 2)) * np.array([0.5, 1.0, 2.0]).reshape(3, 1, 1, 1)
    guided = 7.0 * rng.standard_normal((3, 5, 5, 2)) + 1.0
    function = jax.jit(rescaled) if jit else rescaled
    ratio = [np.std(c) / np.std(g) for c, g in zip(cond, guided, strict=True)]
    ratio = np.reshape(ratio, (3, 1, 1, 1))
    for share in (1.0, 0.7, 0.0):
        expected = (share * ratio + 1 - share) * guided
        found = function(jnp.float32(guided), jnp.float32(cond), share)
        np.testing.assert_allclose(found, expected, rtol=1e-6)
    whole = function(jnp.float32(guided), jnp.float32(cond), 1.0)
    np.testing.assert_allclose(np.std(whole, (1, 2, 3)), np.std(cond, (1, 2, 3)), rtol=1e-6)


@pytest.mark.usefixtures("unchecked")
def test_perp_neg_of_shapes_that_do_not_fit():
    eps = jnp.ones((2, 4, 4, 3))
    with pytest.raises(UserError, match=r"weights \[N, B\] .*\[2, 4, 4, 3\]; got .*, \[3\]"):
        perp_neg(eps, eps, jnp.ones((3, 2, 4, 4, 3)), 7.5, jnp.ones(3))
    with pytest.raises(UserError, match=r"eps_negative must be .* got \[2, 4, 4, 3\]"):
        perp_neg(eps, eps, eps, 7.5, jnp.ones((1, 2)))


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
    args = [jnp.float32(x) for x in (cond, uncond, negative)]
    for function in (perp_neg, jax.jit(perp_neg)):
        found = function(*args, 7.5, jnp.float32(weights))
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6 * np.abs(expected).max())
    # A negative prompt that says what the prompt says takes nothing away (a plain one would).
    same = perp_neg(
        *map(jnp.float32, (cond, uncond)), jnp.float32(cond)[None], 3.0, jnp.ones((1, 2))
    )
    plain = classifier_free(jnp.float32(cond), jnp.float32(uncond), 3.0)
    np.testing.assert_allclose(same, plain, rtol=0, atol=1e-5)


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

        def predict(x_t, t):
            return guide_eps(schedule, net(x_t, t), t, gradient(x_t, t), 1.0)

        x_0 = ddim_sample(predict, schedule, key, shape, 500, 0.0, unclipped)
    tolerance = 5 * np.sqrt(conditional_var / n) + 0.01  # 0.01: the steps are finite
    assert abs(float(x_0.mean()) - conditional_mean) < tolerance
    np.testing.assert_allclose(float(x_0.var()), conditional_var, rtol=0.1)
    assert tolerance < 0.1 * abs(conditional_mean - MU)


@pytest.mark.parametrize("jit", [False, True])
def test_a_classifiers_guidance_against_float64(jit):
    """log p = -0.5 |a x - t|^2 has gradient -a (a x - t); at t = 0, 1, middle and T-1."""
    schedule, s, rng = linear(1000), 3.0, np.random.default_rng(4)
    T = np.array([0, 1, 500, 999])
    x, eps_hat = (np.float64(np.float32(rng.standard_normal((4, 3)))) for _ in range(2))
    level = T[:, None] / 1000
    gradient = -0.7 * (0.7 * x - level)
    sigma = np.sqrt(1 - np.cumprod(1 - schedule.betas))[T, None]
    mean, log_var = zip(
        *(
            float64.reverse(schedule.betas, "fixed_large", x[i], t, eps_hat[i])
            for i, t in enumerate(T)
        ),
        strict=True,
    )

    def run(x, eps_hat):
        t = jnp.asarray(T)

        def log_p(x, t):
            return -0.5 * jnp.sum((0.7 * x - t[:, None] / 1000) ** 2, axis=1)

        found = log_probability_gradient(log_p, x, t)
        p = Parameterisation("eps", "fixed_large", unclipped)
        model = reverse(schedule, p, x, t, eps_hat)
        return found, guide_eps(schedule, eps_hat, t, found, s), model, guide_mean(model, found, s)

    found, eps, model, moved = (jax.jit(run) if jit else run)(jnp.float32(x), jnp.float32(eps_hat))
    np.testing.assert_allclose(found, gradient, rtol=0, atol=1e-6)
    np.testing.assert_allclose(eps, eps_hat - s * sigma * gradient, rtol=0, atol=1e-5)
    np.testing.assert_allclose(moved.mean, mean + s * np.exp(log_var) * gradient, atol=1e-5)
    np.testing.assert_array_equal(moved.x_0, model.x_0)
    np.testing.assert_array_equal(moved.log_var, model.log_var)


def test_at_t_0_the_mean_moves_as_the_published_code_moves_it():
    """By the variance: the posterior's is 0 there, the larger fixed one is t = 1's posterior's."""
    schedule, x, t = linear(10), jnp.ones((2, 3)), jnp.array([0, 1])
    betas = np.float64(schedule.betas)
    alpha_bar = np.cumprod(1 - betas)
    tilde = betas[1] * (1 - alpha_bar[0]) / (1 - alpha_bar[1])
    for variance, var in (("fixed_small", [0.0, tilde]), ("fixed_large", [tilde, betas[1]])):
        model = reverse(schedule, Parameterisation("eps", variance), x, t, 0.1 * x)
        moved = guide_mean(model, 100.0 * x, 1.0)
        expected = np.broadcast_to(100.0 * np.array(var)[:, None], x.shape)
        np.testing.assert_allclose(moved.mean - model.mean, expected, rtol=1e-3, atol=1e-9)


@pytest.mark.usefixtures("unchecked")
def test_guidance_of_shapes_that_do_not_fit():
    x = jnp.zeros((2, 3))
    with pytest.raises(UserError, match=r"eps_hat \[2, 3\], gradient \[2, 1\], t \[2\]"):
        guide_eps(linear(10), x, jnp.array([0, 9]), x[:, :1], 1.0)
    with pytest.raises(UserError, match=r"mean \[2, 3\], gradient \[2, 1\]"):
        guide_mean(reverse(linear(10), Parameterisation(), x, jnp.array([0, 9]), x), x[:, :1], 1.0)
    with pytest.raises(UserError, match=r"eps_cond \[2, 3\], eps_uncond \[1, 3\]"):
        classifier_free(x, x[:1], 2.0)
    with pytest.raises(UserError, match=r"guided \[2, 3\], cond \[2, 1\]"):
        rescaled(x, x[:, :1])
