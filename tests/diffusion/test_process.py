"""The process and its conversions against float64 references written from the papers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamjax.diffusion import process
from dreamjax.diffusion.schedule import cosine, linear, scaled_linear, zero_terminal_snr
from dreamjax.errors import UserError

SHAPE = (4, 3, 2)
EPS32 = np.finfo(np.float32).eps


@pytest.fixture(params=[linear(1000), scaled_linear(1000), cosine(1000)], ids="lsc")
def case(request):
    """A schedule, float64 images and noise, t = 0, 1, middle, T-1, and the two scales."""
    schedule = request.param
    rng = np.random.default_rng(0)
    t = np.array([0, 1, 500, 999])
    alpha_bar = np.cumprod(1.0 - schedule.betas)[t].reshape(4, 1, 1)
    # Float32 numbers in float64, so that the reference sees exactly what the code sees.
    x_0, eps = (
        np.float32(a).astype(np.float64)
        for a in (rng.uniform(-1, 1, SHAPE), rng.standard_normal(SHAPE))
    )
    return schedule, x_0, eps, t, np.sqrt(alpha_bar), np.sqrt(1.0 - alpha_bar)


def both(function, schedule, *arrays):
    """The function's result, not jitted and jitted."""
    arrays = [jnp.asarray(a) if a.dtype == np.int64 else jnp.float32(a) for a in arrays]
    return function(schedule, *arrays), jax.jit(function, static_argnums=0)(schedule, *arrays)


def test_q_sample(case):
    schedule, x_0, eps, t, scale, sigma = case
    for x_t in both(process.q_sample, schedule, x_0, t, eps):
        assert x_t.dtype == jnp.float32
        np.testing.assert_allclose(x_t, scale * x_0 + sigma * eps, rtol=0, atol=4 * EPS32 * 4)


def test_q_sample_is_the_chain_of_its_steps():
    schedule = linear(1000)
    x_0, mean, variance = 0.7, 0.7, 0.0
    for t, beta in enumerate(schedule.betas):
        mean, variance = np.sqrt(1 - beta) * mean, (1 - beta) * variance + beta
        if t in (0, 1, 500, 999):
            ts = jnp.array([t, t])
            pair = process.q_sample(schedule, jnp.full(2, x_0), ts, jnp.array([0.0, 1.0]))
            np.testing.assert_allclose(pair[0], mean, rtol=1e-6)
            np.testing.assert_allclose(pair[1] - pair[0], np.sqrt(variance), rtol=2e-6)


def test_posterior_is_bayes_rule(case):
    schedule, x_0, eps, t, scale, sigma = case
    x_t = np.float32(scale * x_0 + sigma * eps).astype(np.float64)
    for mean, var, log_var in both(process.posterior, schedule, x_0, x_t, t):
        np.testing.assert_allclose(mean[0], x_0[0], rtol=0, atol=4 * EPS32)
        np.testing.assert_array_equal(var[0], 0.0)
        np.testing.assert_array_equal(log_var[0], log_var[1])
        for i in (1, 2, 3):
            # q(x_{t-1} | x_0) times q(x_t | x_{t-1}) as a function of x_{t-1}.
            beta = schedule.betas[t[i]]
            before = np.prod(1.0 - schedule.betas[: t[i]])
            precision = 1 / (1 - before) + (1 - beta) / beta
            pull = np.sqrt(before) * x_0[i] / (1 - before) + np.sqrt(1 - beta) * x_t[i] / beta
            np.testing.assert_allclose(mean[i], pull / precision, rtol=0, atol=16 * EPS32)
            np.testing.assert_allclose(np.ravel(var[i]), 1 / precision, rtol=1e-6)
            np.testing.assert_allclose(np.ravel(log_var[i]), -np.log(precision), rtol=1e-6)


def test_x0_and_eps_recover_each_other(case):
    schedule, x_0, eps, t, scale, sigma = case
    x_t = scale * x_0 + sigma * eps
    for found in both(process.x0_from_eps, schedule, x_t, t, eps):
        error = np.abs(found - x_0)
        assert (error <= 8 * EPS32 * np.maximum(1.0, 1.0 / scale)).all(), error.max()
    for found in both(process.eps_from_x0, schedule, x_t, t, x_0):
        error = np.abs(found - eps)
        assert (error <= 8 * EPS32 * np.maximum(1.0, 1.0 / sigma)).all(), error.max()


def test_v(case):
    schedule, x_0, eps, t, scale, sigma = case
    x_t, v = scale * x_0 + sigma * eps, scale * eps - sigma * x_0
    exact = dict(rtol=0, atol=16 * EPS32)
    for found in both(process.v_from_x0_eps, schedule, x_0, t, eps):
        np.testing.assert_allclose(found, v, **exact)
    for found in both(process.x0_from_v, schedule, x_t, t, v):  # well conditioned at every t
        np.testing.assert_allclose(found, x_0, **exact)
    for found in both(process.eps_from_v, schedule, x_t, t, v):
        np.testing.assert_allclose(found, eps, **exact)
    for found in both(process.v_from_eps, schedule, x_t, t, eps):
        assert (np.abs(found - v) <= 8 * EPS32 * np.maximum(1.0, 1.0 / scale)).all()
    for found in both(process.v_from_x0, schedule, x_t, t, x_0):
        assert (np.abs(found - v) <= 8 * EPS32 * np.maximum(1.0, 1.0 / sigma)).all()


def test_at_no_signal_v_still_tells_x0():
    """Zero terminal SNR: at T-1 x_t is eps, v is -x_0, and the posterior is led by x_0 alone."""
    schedule, rng = zero_terminal_snr(scaled_linear(1000)), np.random.default_rng(5)
    x_0, eps = (np.float32(rng.standard_normal((1, 3, 2))).astype(np.float64) for _ in range(2))
    t, exact = np.array([999]), dict(rtol=1e-6)
    before = np.prod(1.0 - schedule.betas[:-1])
    for x_t in both(process.q_sample, schedule, x_0, t, eps):
        np.testing.assert_array_equal(x_t, eps)
    for v in both(process.v_from_x0_eps, schedule, x_0, t, eps):
        np.testing.assert_array_equal(v, -x_0)
    for found in both(process.x0_from_v, schedule, eps, t, -x_0):
        np.testing.assert_array_equal(found, x_0)
    for found in both(process.eps_from_v, schedule, eps, t, -x_0):
        np.testing.assert_array_equal(found, eps)
    for mean, var, _ in both(process.posterior, schedule, x_0, eps, t):
        np.testing.assert_allclose(mean, np.sqrt(before) * x_0, **exact)
        np.testing.assert_allclose(np.ravel(var), 1.0 - before, **exact)


def test_the_wrong_formulas_in_circulation_fail():
    """The references can tell: variance for its root, and no root in the denominator."""
    schedule = linear(1000)
    t, x_0, eps = jnp.array([500]), jnp.array([0.5]), jnp.array([1.0])
    x_t = process.q_sample(schedule, x_0, t, eps)
    alpha_bar = schedule.alpha_bar[500]
    assert abs(x_t - (np.sqrt(alpha_bar) * 0.5 + (1 - alpha_bar)))[0] > 0.01
    wrong = (x_t - np.sqrt(1 - alpha_bar)) / alpha_bar
    assert abs(process.x0_from_eps(schedule, x_t, t, eps) - wrong)[0] > 0.1


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    "function",
    [
        process.q_sample,
        process.x0_from_eps,
        process.eps_from_x0,
        process.v_from_x0_eps,
        process.x0_from_v,
        process.eps_from_v,
        process.v_from_eps,
        process.v_from_x0,
    ],
)
def test_shapes_and_timesteps_that_do_not_fit(function):
    """A broadcast that nobody meant, a t beyond the ends or not whole: told."""
    x, t = jnp.zeros((2, 3, 1)), jnp.array([0, 9])
    both = function, jax.jit(function, static_argnums=0)
    for call in both:
        with pytest.raises(UserError, match=r"one shape .*\[2, 3, 1\], .* \[1, 3, 1\], t \[2\]"):
            call(linear(10), x, t, x[:1])
        with pytest.raises(UserError, match=r"t \[B\]; got .* t \[3\]"):
            call(linear(10), x, jnp.array([0, 1, 2]), x)
        with pytest.raises(UserError, match="whole timesteps; got an array of float32"):
            call(linear(10), x, jnp.array([0.0, 1.0]), x)
    for wrong in (-1, 10):
        with pytest.raises(UserError, match=rf"t must be in 0..9; got {wrong}"):
            function(linear(10), x, jnp.array([0, wrong]), x)
        assert np.isnan(both[1](linear(10), x, jnp.array([0, wrong]), x)[1]).all()


@pytest.mark.usefixtures("unchecked")
def test_the_posterior_of_shapes_that_do_not_fit():
    x = jnp.zeros((2, 3))
    with pytest.raises(UserError, match=r"x_0 \[2, 3\], x_t \[1, 3\], t \[2\]"):
        process.posterior(linear(10), x, x[:1], jnp.array([0, 9]))
