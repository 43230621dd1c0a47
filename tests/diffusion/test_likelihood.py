"""The bound's terms against quadrature, closed forms and the true likelihood of Gaussian data."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from dreamjax.diffusion import likelihood
from dreamjax.diffusion.process import q_sample
from dreamjax.diffusion.reverse import Parameterisation, reverse, unclipped
from dreamjax.diffusion.schedule import cosine, extract, linear, scaled_linear
from dreamjax.errors import UserError

from . import float64

pytestmark = pytest.mark.usefixtures("quick_compilation")

T = np.array([0, 1, 500, 999])
LEVELS = np.linspace(-1.0, 1.0, 256)
LARGE = Parameterisation(variance="fixed_large")


def f32(array):
    """Float32 numbers in float64, so that the reference sees exactly what the code sees."""
    return np.float32(array).astype(np.float64)


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
    for bits in (likelihood.bits, jax.jit(likelihood.bits)):
        np.testing.assert_allclose(bits(jnp.log(jnp.array([8.0, 2.0]))), [3.0, 1.0], rtol=1e-6)


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
    np.testing.assert_allclose(np.sum(np.exp(np.float64(found))), 1.0, rtol=1e-5)
    x, mean, std = (np.float64(np.float32(a)) for a in (LEVELS, mean, std))
    expected = float64.decoder(x, mean, np.log(std), 256)
    # A bin's ends are rounded to float32: its mass moves with the density there.
    near = np.minimum(np.abs(x - mean - 1 / 255), np.abs(x - mean + 1 / 255)) / std
    density = np.exp(-0.5 * near**2 - expected) / np.sqrt(2 * np.pi)
    condition = 2 * density * ((1 + np.abs(x)) / std + near * (1 + abs(np.log(std))))
    assert (np.abs(found - expected) <= 2e-6 * np.maximum(1.0, condition)).all()


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
    np.testing.assert_allclose(np.exp(found), expected, rtol=1e-5)
    with pytest.raises(UserError, match="at least 2; got 1"):
        likelihood.discretised_gaussian_log_likelihood(0.0, 0.0, 0.0, 1)


def test_discretised_gaussian_far_out():
    """A value out in a tail has a usable gradient, until its mass is as good as none."""

    def log_likelihood(mean):
        return likelihood.discretised_gaussian_log_likelihood(
            jnp.float32(LEVELS[200]), mean, jnp.log(jnp.float32(0.01))
        )

    both = jax.jit(jax.value_and_grad(log_likelihood))
    for mean in (0.53, 0.515):  # 3.5 and 5 standard deviations
        value, gradient = both(jnp.float32(mean))
        ends = (LEVELS[200] + np.array([-1, 1]) / 255 - np.float32(mean)) / 0.01
        mass = -np.diff(special.ndtr(-ends))[0]
        slope = -np.diff(np.exp(-0.5 * ends**2) / np.sqrt(2 * np.pi))[0] / 0.01
        np.testing.assert_allclose(value, np.log(mass), rtol=1e-5)
        np.testing.assert_allclose(gradient, slope / mass, rtol=1e-4)
    assert both(jnp.float32(-0.9)) == (np.float32(np.log(1e-12)), 0.0)


def test_discretised_gaussian_is_finite_at_any_log_std():
    """As guided-diffusion clamps: no mass below 1e-12, however narrow or wide the Gaussian."""
    log_std = np.concatenate([np.arange(-90.0, 91.0, 3.0), [-60.0, 12.0], np.arange(-2, 1, 0.1)])
    x, mean = np.meshgrid(LEVELS[[0, 1, 128, 254, 255]], [-30.0, -1.0, 0.001, 0.3, 1.004, 5.0])
    x, mean, log_std = (
        np.float32(a).ravel()
        for a in np.broadcast_arrays(x[..., None], mean[..., None], log_std[None, None])
    )
    function = jax.value_and_grad(likelihood.discretised_gaussian_log_likelihood, argnums=(1, 2))
    value, gradients = jax.jit(jax.vmap(function))(x, mean, log_std)
    assert np.isfinite([value, *gradients]).all()
    x, mean, log_std = (np.float64(a) for a in (x, mean, log_std))
    # Both bounds of a wide Gaussian's bin are one number in float64: its mass is density x width.
    wide = (log_std > 4.0) & (np.abs(x) < 0.999)
    density = -0.5 * ((x - mean) / np.exp(log_std)) ** 2 - log_std - 0.5 * np.log(2 * np.pi)
    with np.errstate(over="ignore"):
        exact = float64.decoder(x, mean, log_std, 256)
    wanted = np.where(wide, np.fmax(density + np.log(2 / 255), np.log(1e-12)), exact)
    np.testing.assert_allclose(value, wanted, rtol=2e-4, atol=1e-6)


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
    for term in (likelihood.prior_term, jax.jit(likelihood.prior_term, static_argnums=0)):
        np.testing.assert_allclose(term(schedule, x_0), expected, rtol=1e-5)


@pytest.mark.parametrize("schedule", [linear(1000), scaled_linear(1000), cosine(1000)], ids="lsc")
@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large", "learned", "learned_range"])
def test_terms_against_float64(schedule, variance):
    """At t = 0, 1, middle and T-1, to 1e-5 though the two means differ by down to a 480th."""
    rng = np.random.default_rng(2)
    shape, betas = (4, 5, 5, 3), schedule.betas
    eps, noise, raw = rng.standard_normal(shape), rng.standard_normal(shape), rng.uniform(-1, 1)
    x_0 = f32(rng.choice(LEVELS, shape))
    x_t = f32([float64.q_sample(betas, x, t, e) for x, t, e in zip(x_0, T, eps, strict=True)])
    output = f32(0.7 * eps + 0.3 * noise)
    if variance.startswith("learned"):
        output = np.concatenate([output, f32(np.full(shape, raw))], axis=-1)
    expected = [
        float64.term(betas, variance, *each) for each in zip(x_0, x_t, T, output, strict=True)
    ]
    p, t = Parameterisation("eps", variance, unclipped), jnp.asarray(T)

    def run(x_0, x_t, output):
        model = reverse(schedule, p, x_t, t, output)
        return (
            likelihood.bound_term(schedule, x_0, x_t, t, model),
            likelihood.decoder_term(x_0, model),
            likelihood.transition_term(schedule, x_0, x_t, t, model),
        )

    for function in (run, jax.jit(run)):
        found, decoder, transition = function(*map(jnp.float32, (x_0, x_t, output)))
        np.testing.assert_allclose(found, expected, rtol=1e-5)
        np.testing.assert_allclose(decoder[0], expected[0], rtol=1e-5)
        np.testing.assert_allclose(transition[1:], expected[1:], rtol=1e-5)


@pytest.mark.parametrize("jit", [False, True])
def test_the_whole_bound_against_float64(jit):
    """All of T = 7 terms with the draws that the library makes, for 17 levels."""
    schedule, key = linear(7, 0.05, 0.4), jax.random.key(3)
    x_0 = f32(np.random.default_rng(7).choice(np.linspace(-1, 1, 17), (3, 40)))
    p = Parameterisation("eps", "learned_range", unclipped)

    def net(x_t, t):
        return jnp.concatenate([0.4 * x_t, 0.1 * t[:, None] - 0.5 + 0.0 * x_t], axis=-1)

    def run(x_0):
        return likelihood.bound(net, schedule, p, x_0, key, 17)

    found = (jax.jit(run) if jit else run)(jnp.float32(x_0))
    terms = np.empty((3, 7))
    for t in range(7):
        eps = np.float64(jax.random.normal(jax.random.fold_in(key, t), x_0.shape))
        x_t = float64.q_sample(schedule.betas, x_0, t, eps)
        output = np.concatenate([0.4 * x_t, 0.1 * t - 0.5 + 0.0 * x_t], axis=-1)
        for i in range(3):
            terms[i, t] = float64.term(schedule.betas, p.variance, x_0[i], x_t[i], t, output[i], 17)
    alpha_bar = np.prod(1 - schedule.betas)
    prior = float64.gaussian_kl(np.sqrt(alpha_bar) * x_0, np.log(1 - alpha_bar), 0.0, 0.0).mean(1)
    np.testing.assert_allclose(found.terms, terms, rtol=1e-5)
    np.testing.assert_allclose(found.prior, prior, rtol=1e-5)
    np.testing.assert_allclose(found.total, prior + terms.sum(1), rtol=1e-5)


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
            np.testing.assert_allclose(found[i], weight * error[i], rtol=1e-5)


@pytest.mark.usefixtures("unchecked")
def test_a_model_of_another_shape_is_told(drawn):
    schedule, x_0, t, eps, eps_hat = drawn
    model = reverse(schedule, LARGE, x_0, t, eps_hat)
    says = r"x_0 and mean must have one shape .*\[4, 5, 5, 3\], mean \[4, 1, 1, 3\]"
    model = model._replace(mean=model.mean[:, :1, :1])
    with pytest.raises(UserError, match=says):
        likelihood.decoder_term(x_0, model)
    with pytest.raises(UserError, match=says):
        likelihood.transition_term(schedule, x_0, x_0, t, model)


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
