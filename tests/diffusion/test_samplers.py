"""DDIM against a float64 loop written from the paper, and against the law of the data."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamjax.diffusion.samplers import ddim_sample, spaced_steps
from dreamjax.diffusion.schedule import Schedule, cosine, extract, linear
from dreamjax.errors import UserError

MU, VAR = np.array([-0.6, 0.0, 0.9]), 0.05


def predict_for(schedule):
    """The exact eps_hat of data N(MU, VAR), as the sampler wants it."""

    def predict(x_t, t):
        alpha_bar, sigma = (extract(a, t, 2) for a in (schedule.alpha_bar, schedule.sigma))
        return sigma * (x_t - jnp.sqrt(alpha_bar) * MU) / (alpha_bar * VAR + sigma**2)

    return predict


def reference(schedule, x, noise, steps, eta, clip):
    """DDIM eq. 12 and 16 in float64; noise[t] is the draw of the step from t."""
    alpha_bar = np.cumprod(1.0 - schedule.betas)
    for i in reversed(range(len(steps))):
        a = alpha_bar[steps[i]]
        a_prev = alpha_bar[steps[i - 1]] if i else 1.0
        eps = np.sqrt(1 - a) * (x - np.sqrt(a) * MU) / (a * VAR + 1 - a)
        x_0 = (x - np.sqrt(1 - a) * eps) / np.sqrt(a)
        if clip:
            x_0 = np.clip(x_0, -1, 1)
            eps = (x - np.sqrt(a) * x_0) / np.sqrt(1 - a)
        sigma = eta * np.sqrt((1 - a_prev) / (1 - a)) * np.sqrt(1 - a / a_prev)
        x = np.sqrt(a_prev) * x_0 + np.sqrt(1 - a_prev - sigma**2) * eps
        x = x + sigma * noise[steps[i]]
    return x


@pytest.mark.parametrize(
    ("steps", "eta", "clip", "jit"),
    [
        (10, 0.0, False, True),
        (10, 0.0, True, True),
        ([0, 1, 50, 99], 0.7, True, True),
        ([0, 1, 50, 99], 0.7, True, False),
        ([3, 40], 1.0, False, True),
        (100, 1.0, True, True),
    ],
)
def test_against_float64(steps, eta, clip, jit):
    schedule, key, shape = linear(100, 1e-3, 0.1), jax.random.key(5), (6, 3)
    ts = spaced_steps(100, steps) if isinstance(steps, int) else np.array(steps)
    start, noise_key = jax.random.split(key)
    noise = {t: np.float64(jax.random.normal(jax.random.fold_in(noise_key, t), shape)) for t in ts}
    x_T = np.asarray(jax.random.normal(start, shape), np.float64)
    expected = reference(schedule, x_T, noise, ts, eta, clip)

    def sample(key):
        return ddim_sample(predict_for(schedule), schedule, key, shape, steps, eta, clip)

    found = (jax.jit(sample) if jit else sample)(key)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
    # The reference can tell whether x_0 was clipped.
    other = reference(schedule, x_T, noise, ts, eta, not clip)
    assert np.abs(other - expected).max() > 1e-2


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_samples_have_the_law_of_the_data(eta):
    schedule, n = cosine(400), 8000
    x_0 = ddim_sample(
        predict_for(schedule), schedule, jax.random.key(0), (n, 3), 400, eta, clip_x0=False
    )
    np.testing.assert_allclose(x_0.mean(0), MU, rtol=0, atol=5 * np.sqrt(VAR / n))
    np.testing.assert_allclose(x_0.var(0), VAR, rtol=0.1)


def test_one_network_call_is_traced():
    calls = []
    schedule = linear(100)

    def predict(x_t, t):
        calls.append(t.shape)
        assert jnp.issubdtype(t.dtype, jnp.integer)
        return x_t

    ddim_sample(predict, schedule, jax.random.key(0), (2, 1, 1, 3), 50)
    assert calls == [(2,)]


def test_spaced_steps():
    np.testing.assert_array_equal(spaced_steps(1000, 1), [999])
    np.testing.assert_array_equal(spaced_steps(5, 5), np.arange(5))
    for count in (2, 7, 50, 999):
        steps = spaced_steps(1000, count)
        assert len(steps) == count and steps[0] == 0 and steps[-1] == 999
        assert (np.diff(steps) > 0).all() and np.ptp(np.diff(steps)) <= 1


@pytest.mark.parametrize(
    ("steps", "eta", "words"),
    [
        (0, 0.0, "1..10"),
        (11, 0.0, "1..10"),
        ([], 0.0, "non-empty"),
        ([0.5, 1.5], 0.0, "whole"),
        ([3, 1], 0.0, "rise"),
        ([1, 1], 0.0, "rise"),
        ([-1, 1], 0.0, "rise"),
        ([1, 10], 0.0, "0..9"),
        (5, 1.5, "eta"),
        (5, float("nan"), "eta"),
    ],
)
def test_wrong_arguments(steps, eta, words):
    with pytest.raises(UserError, match=words):
        ddim_sample(lambda x, t: x, linear(10), jax.random.key(0), (1, 2), steps, eta)


def test_no_signal_is_an_error():
    schedule = Schedule([0.5, 1.0])
    with pytest.raises(UserError, match="alpha_bar = 0"):
        ddim_sample(lambda x, t: x, schedule, jax.random.key(0), (1, 2), 2)
    ddim_sample(lambda x, t: x, schedule, jax.random.key(0), (1, 2), [0])
