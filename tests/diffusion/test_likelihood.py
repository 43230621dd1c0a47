"""The bound's terms against quadrature, closed forms and the true likelihood of Gaussian data."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from dreamjax.diffusion import likelihood
from dreamjax.diffusion.process import posterior, q_sample
from dreamjax.diffusion.reverse import Parameterisation, reverse, unclipped
from dreamjax.diffusion.schedule import cosine, extract, linear
from dreamjax.errors import UserError

LEVELS = np.linspace(-1.0, 1.0, 256)
LARGE = Parameterisation(variance="fixed_large")


def test_gaussian_kl_is_the_integral():
    for mean_q, var_q, mean_p, var_p in [(0.3, 0.5, -0.2, 2.0), (0, 1e-2, 0, 1e-2), (1, 2, 0, 1)]:
        x = mean_q + np.sqrt(var_q) * np.linspace(-12, 12, 20001)
        log_q = -0.5 * ((x - mean_q) ** 2 / var_q + np.log(2 * np.pi * var_q))
        log_p = -0.5 * ((x - mean_p) ** 2 / var_p + np.log(2 * np.pi * var_p))
        expected = np.sum(np.exp(log_q) * (log_q - log_p)) * (x[1] - x[0])
        for kl in (likelihood.gaussian_kl, jax.jit(likelihood.gaussian_kl)):
            found = kl(*map(jnp.float32, (mean_q, np.log(var_q), mean_p, np.log(var_p))))
            np.testing.assert_allclose(found, expected, rtol=2e-6, atol=1e-9)


def test_gaussian_kl_of_nearly_equal_variances():
    found = likelihood.gaussian_kl(0.0, jnp.float32(1e-3), 0.0, 0.0)
    np.testing.assert_allclose(found, 0.5 * (np.expm1(1e-3) - 1e-3), rtol=1e-3)


def test_bits():
    np.testing.assert_allclose(likelihood.bits(jnp.log(8.0)), 3.0, rtol=1e-6)


@pytest.mark.parametrize(
    ("mean", "std", "jit"),
    [
        (0.1, 0.01, False),
        (0.1, 0.01, True),
        (-0.98, 0.05, True),
        (0.0, 1.0, True),
        (1.3, 0.3, True),
    ],
)
def test_discretised_gaussian(mean, std, jit):
    function = likelihood.discretised_gaussian_log_likelihood
    function = jax.jit(function) if jit else function
    found = function(jnp.float32(LEVELS), jnp.float32(mean), jnp.log(jnp.float32(std)))
    np.testing.assert_allclose(np.sum(np.exp(np.float64(found))), 1.0, rtol=1e-4)
    # log(Phi(b) - Phi(a)) in float64, on the side where the difference does not cancel.
    edges = (np.append(LEVELS - 1 / 255, 1 + 1 / 255) - np.float32(mean)) / np.float32(std)
    edges[0], edges[-1] = -np.inf, np.inf
    low, high = edges[:-1], edges[1:]
    swap = low > 0
    low, high = np.where(swap, -high, low), np.where(swap, -low, high)
    log_high, log_low = special.log_ndtr(high), special.log_ndtr(low)
    expected = log_high + np.log(-np.expm1(log_low - log_high))
    np.testing.assert_allclose(found, expected, rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("levels", [2, 17])
def test_discretised_gaussian_of_other_levels(levels):
    """17 for scikit-learn's digits: bins of half-width 1/16 that fill the line."""
    places, mean, std = np.linspace(-1, 1, levels), 0.3, 0.4
    found = likelihood.discretised_gaussian_log_likelihood(
        jnp.float32(places), jnp.float32(mean), jnp.log(jnp.float32(std)), levels
    )
    edges = np.append(places - 1 / (levels - 1), np.inf)
    edges[0] = -np.inf
    expected = np.diff(special.ndtr((edges - mean) / std))
    np.testing.assert_allclose(np.exp(found), expected, rtol=1e-4)
    with pytest.raises(UserError, match="at least 2; got 1"):
        likelihood.discretised_gaussian_log_likelihood(0.0, 0.0, 0.0, 1)


def test_discretised_gaussian_far_out():
    """A value far from a narrow mean: finite, right, and with a usable gradient."""

    def log_likelihood(mean):
        return likelihood.discretised_gaussian_log_likelihood(
            jnp.float32(LEVELS[200]), mean, jnp.log(jnp.float32(0.01))
        )

    z = (LEVELS[200] - 1 / 255 + 0.9) / 0.01
    value, gradient = jax.jit(jax.value_and_grad(log_likelihood))(jnp.float32(-0.9))
    np.testing.assert_allclose(value, special.log_ndtr(-z), rtol=1e-4)
    np.testing.assert_allclose(gradient, z / 0.01, rtol=1e-2)
    both = jax.jit(
        jax.value_and_grad(likelihood.discretised_gaussian_log_likelihood, argnums=(1, 2))
    )
    for level in (-1.0, 1.0):
        for mean in (-1.0, 1.0):
            for std in (1e-4, 1e-2, 10.0):
                value, gradients = both(
                    jnp.float32(level), jnp.float32(mean), jnp.log(jnp.float32(std))
                )
                assert np.isfinite([value, *gradients]).all(), (level, mean, std)


@pytest.fixture(scope="module")
def drawn():
    schedule = linear(1000)
    rng = np.random.default_rng(2)
    x_0 = rng.choice(LEVELS, (4, 5, 5, 3))
    eps, eps_hat = rng.standard_normal((2, 4, 5, 5, 3))
    t = np.array([0, 1, 500, 999])
    x_0, eps, eps_hat = (jnp.float32(a) for a in (x_0, eps, 0.3 * eps_hat + 0.7 * eps))
    return schedule, x_0, jnp.asarray(t), eps, eps_hat


def test_prior_term(drawn):
    schedule, x_0, *_ = drawn
    alpha_bar = np.prod(1.0 - schedule.betas)
    square = np.mean(np.float64(x_0) ** 2, axis=(1, 2, 3))
    expected = 0.5 * (alpha_bar * square - alpha_bar - np.log1p(-alpha_bar))
    np.testing.assert_allclose(likelihood.prior_term(schedule, x_0), expected, rtol=1e-4)


def test_transition_term_is_the_weighted_eps_error(drawn):
    """L_{t-1} = beta^2 / (2 sigma^2 alpha (1 - alpha_bar)) |eps - eps_hat|^2 at equal variances."""
    schedule, x_0, t, eps, eps_hat = drawn
    x_t = q_sample(schedule, x_0, t, eps)
    model = reverse(schedule, Parameterisation(threshold=unclipped), x_t, t, eps_hat)
    error = np.mean((np.float64(eps) - np.float64(eps_hat)) ** 2, axis=(1, 2, 3))
    beta, alpha_bar = schedule.betas, np.cumprod(1.0 - schedule.betas)
    for function in (likelihood.bound_term, jax.jit(likelihood.bound_term, static_argnums=0)):
        found = function(schedule, x_0, x_t, t, model)
        for i in (1, 2, 3):
            k = int(t[i])
            sigma2 = (1 - alpha_bar[k - 1]) / (1 - alpha_bar[k]) * beta[k]
            weight = beta[k] ** 2 / (2 * sigma2 * (1 - beta[k]) * (1 - alpha_bar[k]))
            np.testing.assert_allclose(found[i], weight * error[i], rtol=5e-3)


def test_transition_term_with_the_large_variance(drawn):
    schedule, x_0, t, eps, eps_hat = drawn

    @jax.jit
    def run(x_0):
        x_t = q_sample(schedule, x_0, t, eps)
        model = reverse(schedule, LARGE, x_t, t, eps_hat)
        found = likelihood.transition_term(schedule, x_0, x_t, t, model)
        return found, model, posterior(schedule, x_0, x_t, t)

    found, model, true = run(x_0)
    for i in (1, 2, 3):
        k = int(t[i])
        q, p = schedule.posterior_variance[k], schedule.betas[k]
        distance = np.mean((np.float64(true.mean[i]) - np.float64(model.mean[i])) ** 2)
        expected = 0.5 * (np.log(p / q) + q / p + distance / p - 1)
        np.testing.assert_allclose(found[i], expected, rtol=1e-3, atol=1e-7)


def test_the_decoder_takes_the_place_of_t_0(drawn):
    schedule, x_0, t, eps, _ = drawn

    @jax.jit
    def run(x_0):
        x_t = q_sample(schedule, x_0, t, eps)
        model = reverse(schedule, LARGE, x_t, t, eps)
        terms = likelihood.bound_term, likelihood.transition_term
        return model, *(term(schedule, x_0, x_t, t, model) for term in terms)

    model, found, transition = run(x_0)
    mean, std = np.float64(model.mean[0]), np.exp(0.5 * np.float64(model.log_var[0]))
    x = np.float64(x_0[0])
    upper = np.where(x > 0.999, 1.0, special.ndtr((x + 1 / 255 - mean) / std))
    lower = np.where(x < -0.999, 0.0, special.ndtr((x - 1 / 255 - mean) / std))
    np.testing.assert_allclose(found[0], -np.mean(np.log(upper - lower)), rtol=1e-3)
    np.testing.assert_array_equal(found[1:], transition[1:])
    assert abs(found[0] - transition[0]) > 0.01


def test_bound_is_just_above_the_true_likelihood():
    """With the exact eps_hat of Gaussian data: an upper bound, and a close one."""
    schedule, variance = linear(300, 1e-4, 0.06), 0.04
    rng = np.random.default_rng(3)
    x = np.clip(rng.normal(0.0, np.sqrt(variance), (16, 600)), -1, 1)
    x = LEVELS[np.round((x + 1) * 127.5).astype(int)]

    def predict(x_t, t):
        alpha_bar, sigma = (extract(a, t, 2) for a in (schedule.alpha_bar, schedule.sigma))
        return sigma * x_t / (alpha_bar * variance + sigma**2)

    @partial(jax.jit, static_argnums=1)
    def run(x_0, p):
        return likelihood.bound(predict, schedule, p, x_0, jax.random.key(0))

    bound = run(jnp.float32(x), LARGE)
    assert bound.terms.shape == (16, 300) and bound.prior.shape == (16,)
    np.testing.assert_allclose(bound.total, bound.prior + bound.terms.sum(1), rtol=1e-6)
    edges = special.ndtr(np.append(LEVELS - 1 / 255, 1 + 1 / 255) / np.sqrt(variance))
    true = -np.mean(np.log(np.diff(edges))[np.round((x + 1) * 127.5).astype(int)])
    excess = likelihood.bits(np.mean(np.float64(bound.total)) - true)
    assert 0.0 < excess < 0.1, excess

    # Each transition's expectation over data and noise, eps_hat being the conditional mean of eps.
    beta, alpha_bar, small = schedule.betas, schedule.alpha_bar, schedule.posterior_variance
    error = 1 - (1 - alpha_bar) / (alpha_bar * variance + 1 - alpha_bar)
    expected = 0.5 * (beta / ((1 - beta) * (1 - alpha_bar)) * error + small / beta - 1)[
        1:
    ] - 0.5 * np.log(small[1:] / beta[1:])
    np.testing.assert_allclose(bound.terms.mean(0)[1:], expected, rtol=0.15, atol=1e-5)

    # The smaller variance suits data that fill the space badly: a bound still, but a loose one.
    loose = run(jnp.float32(x), Parameterisation())
    assert np.mean(loose.total) > np.mean(bound.total) + 0.5


@pytest.mark.parametrize("steps", [10, 100])
def test_the_bound_is_tight_with_the_exact_reverse_process(steps):
    """Gaussian data, exact mean and variance of q(x_{t-1} | x_t): no gap, however few the steps.

    With the fixed small variance each transition costs half of r - 1, r being the exact variance
    over the posterior's: the squared distance of the means is what is missing in the latter.
    """
    schedule, variance = cosine(steps), 0.04
    rng = np.random.default_rng(5)
    x = np.clip(rng.normal(0.0, np.sqrt(variance), (64, 400)), -1, 1)
    cells = np.round((x + 1) * 127.5).astype(int)
    edges = special.ndtr(np.append(LEVELS - 1 / 255, 1 + 1 / 255) / np.sqrt(variance))
    true = -np.mean(np.log(np.diff(edges))[cells], axis=1)

    alpha_bar, noise = schedule.alpha_bar, schedule.variance
    of_x0 = variance * noise / (alpha_bar * variance + noise)  # Var(x_0 | x_t)
    exact = schedule.posterior_variance + schedule.posterior_x0_scale**2 * of_x0

    def net(x_t, t):
        eps_hat = extract(schedule.sigma / (alpha_bar * variance + noise), t, 2) * x_t
        log_var = extract(np.log(exact), t, 2) * jnp.ones_like(x_t)
        return jnp.concatenate([eps_hat, log_var], axis=-1)

    p = Parameterisation("eps", "learned", unclipped)
    run = jax.jit(lambda x_0: likelihood.bound(net, schedule, p, x_0, jax.random.key(1)))
    gap = np.float64(run(jnp.float32(LEVELS[cells])).total) - true
    error = gap.std() / np.sqrt(len(gap))
    assert error < 0.01 and abs(gap.mean()) < 4 * error, (gap.mean(), error)

    small = Parameterisation("eps", "fixed_small", unclipped)
    run = jax.jit(
        lambda x_0: likelihood.bound(
            lambda *args: net(*args)[:, :400], schedule, small, x_0, jax.random.key(1)
        )
    )
    found = np.float64(run(jnp.float32(LEVELS[cells])).terms)[:, 1:]
    ratio = exact[1:] / schedule.posterior_variance[1:]
    np.testing.assert_allclose(found.mean(0), 0.5 * (ratio - 1), rtol=0.1, atol=1e-4)
