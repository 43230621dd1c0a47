"""Samplers against float64 loops written from the papers, and against the law of the data."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamjax.diffusion.reverse import Parameterisation, clip, unclipped
from dreamjax.diffusion.samplers import (
    Estimates,
    Given,
    ancestral_sample,
    ddim_sample,
    dpm_solver_sample,
    sampling_steps,
    spaced_steps,
    steps_on,
    trailing_steps,
)
from dreamjax.diffusion.schedule import (
    Schedule,
    cosine,
    extract,
    linear,
    t_at,
    zero_terminal_snr,
)
from dreamjax.errors import UserError

pytestmark = pytest.mark.usefixtures("quick_compilation")

MU, VAR = np.array([-0.6, 0.0, 0.9]), 0.05


def predict_for(schedule):
    """The exact eps_hat of data N(MU, VAR), as the sampler wants it."""

    def predict(x_t, t):
        alpha_bar, sigma = (extract(a, t, 2) for a in (schedule.alpha_bar, schedule.sigma))
        return sigma * (x_t - jnp.sqrt(alpha_bar) * MU) / (alpha_bar * VAR + sigma**2)

    return predict


def nothing_kept(x, i):
    return x


def reference(schedule, x, noise, steps, eta, clip, keep=nothing_kept):
    """DDIM eq. 12 and 16 in float64; noise[t] is the draw of the step from t.

    Like the two below: x_0, and its estimate at every step; keep(x, i) sees x after step i.
    """
    alpha_bar = np.cumprod(1.0 - schedule.betas)
    frames = []
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
        x = keep(x + sigma * noise[steps[i]], i)
        frames.append(x_0)
    return x, np.stack(frames)


def ancestral_reference(schedule, x, noise, ts, variance, keep=nothing_kept):
    """DDPM eq. 11 in float64, with the respaced betas."""
    alpha_bar = np.cumprod(1.0 - schedule.betas)[ts]
    before = np.append(1.0, alpha_bar[:-1])
    beta = 1 - alpha_bar / before
    small = beta * (1 - before) / (1 - alpha_bar)
    frames = []
    for i in reversed(range(len(ts))):
        eps = exact(schedule, x, ts[i])
        frames.append((x - np.sqrt(1 - alpha_bar[i]) * eps) / np.sqrt(alpha_bar[i]))
        x = (x - beta[i] / np.sqrt(1 - alpha_bar[i]) * eps) / np.sqrt(1 - beta[i])
        if i > 0:
            x = x + np.sqrt(small[i] if variance == "fixed_small" else beta[i]) * noise[ts[i]]
        x = keep(x, i)
    return x, np.stack(frames)


def dpm_reference(schedule, x, ts, keep=nothing_kept):
    """DPM-Solver++(2M), algorithm 2 of arXiv 2211.01095, in float64."""
    alpha_bar = np.cumprod(1.0 - schedule.betas)
    lam = 0.5 * np.log(alpha_bar / (1 - alpha_bar))
    frames, h_before = [], None
    for i in reversed(range(len(ts))):
        a = alpha_bar[ts[i]]
        x_0 = (x - np.sqrt(1 - a) * exact(schedule, x, ts[i])) / np.sqrt(a)
        if i == 0:
            x = x_0
        else:
            h = lam[ts[i - 1]] - lam[ts[i]]
            d = x_0
            if frames:
                r = h_before / h
                d = (1 + 1 / (2 * r)) * x_0 - 1 / (2 * r) * frames[-1]
            a_prev = alpha_bar[ts[i - 1]]
            x = np.sqrt((1 - a_prev) / (1 - a)) * x - np.sqrt(a_prev) * np.expm1(-h) * d
            h_before = h
        frames.append(x_0)
        x = keep(x, i)
    return x, np.stack(frames)


@pytest.mark.parametrize(
    ("steps", "eta", "clipped", "jit"),
    [
        (10, 0.0, False, True),
        (10, 0.0, True, True),
        ([0, 1, 50, 99], 0.7, True, True),
        ([0, 1, 50, 99], 0.7, True, False),
        ([3, 40], 1.0, False, True),
        (100, 1.0, True, True),
    ],
)
def test_ddim_against_float64(steps, eta, clipped, jit):
    schedule, key, shape = linear(100, 1e-3, 0.1), jax.random.key(5), (6, 3)
    ts = spaced_steps(100, steps) if isinstance(steps, int) else np.array(steps)
    x_T, noise = draws(key, ts, shape)
    expected, seen = reference(schedule, x_T, noise, ts, eta, clipped)
    threshold = clip if clipped else unclipped

    def sample(key):
        predict = predict_for(schedule)
        return ddim_sample(predict, schedule, key, shape, steps, eta, threshold, frames=True)

    found, frames = (jax.jit(sample) if jit else sample)(key)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
    np.testing.assert_allclose(frames, seen, rtol=0, atol=1e-5)
    # The reference can tell whether x_0 was clipped.
    other, _ = reference(schedule, x_T, noise, ts, eta, not clipped)
    assert np.abs(other - expected).max() > 1e-2


def draws(key, ts, shape):
    """The sampler's start and its noise by timestep, in float64."""
    start, noise_key = jax.random.split(key)
    noise = {t: np.float64(jax.random.normal(jax.random.fold_in(noise_key, t), shape)) for t in ts}
    return np.asarray(jax.random.normal(start, shape), np.float64), noise


def exact(schedule, x, t):
    """The true eps_hat of the data at timestep t, in float64."""
    a = np.cumprod(1.0 - schedule.betas)[t]
    return np.sqrt(1 - a) * (x - np.sqrt(a) * MU) / (a * VAR + 1 - a)


@pytest.mark.parametrize(
    ("steps", "variance", "jit"),
    [
        (100, "fixed_small", True),
        (7, "fixed_large", True),
        ([0, 1, 50, 99], "fixed_large", True),
        ([0, 1, 50, 99], "fixed_large", False),
    ],
)
def test_ancestral_against_float64(steps, variance, jit):
    schedule, key, shape = linear(100, 1e-3, 0.1), jax.random.key(6), (6, 3)
    ts = spaced_steps(100, steps) if isinstance(steps, int) else np.array(steps)
    x_T, noise = draws(key, ts, shape)
    expected, seen = ancestral_reference(schedule, x_T, noise, ts, variance)
    p = Parameterisation(variance=variance, threshold=unclipped)

    def sample(key):
        return ancestral_sample(predict_for(schedule), schedule, p, key, shape, steps, frames=True)

    found, frames = (jax.jit(sample) if jit else sample)(key)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
    np.testing.assert_allclose(frames, seen, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("steps", "jit"), [(1, True), (2, True), (12, True), ([0, 1, 50, 99], True), (12, False)]
)
def test_dpm_solver_against_float64(steps, jit):
    schedule, key, shape = linear(100, 1e-3, 0.1), jax.random.key(7), (6, 3)
    ts = spaced_steps(100, steps) if isinstance(steps, int) else np.array(steps)
    x_T, _ = draws(key, ts, shape)
    expected, seen = dpm_reference(schedule, x_T, ts)

    def sample(key):
        predict = predict_for(schedule)
        return dpm_solver_sample(predict, schedule, key, shape, steps, unclipped, frames=True)

    found, frames = (jax.jit(sample) if jit else sample)(key)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
    np.testing.assert_allclose(frames, seen, rtol=0, atol=1e-5)


@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("sampler", ["ancestral", "ddim", "dpm"])
def test_a_given_picture_against_float64(sampler, masked, jit):
    """SDEdit starts from the noised image; with a mask every step's kept part is replaced."""
    schedule, key, shape = linear(100, 1e-3, 0.1), jax.random.key(9), (6, 3)
    ts = np.array([0, 1, 50, 99] if masked else [0, 1, 30, 50])
    image = np.float64(np.float32(np.random.default_rng(9).uniform(-1, 1, shape)))
    mask = np.array([[1.0, 0.0, 1.0]])
    x_T, noise = draws(key, ts, shape)
    alpha_bar = np.cumprod(1.0 - schedule.betas)
    key_known = jax.random.fold_in(jax.random.split(key)[1], 100)

    def keep(x, i):
        if not masked:
            return x
        eps = np.float64(jax.random.normal(jax.random.fold_in(key_known, ts[i]), shape))
        a = alpha_bar[ts[i - 1]] if i else 1.0
        return np.where(mask, np.sqrt(a) * image + np.sqrt(1 - a) * eps, x)

    if not masked:
        x_T = np.sqrt(alpha_bar[50]) * image + np.sqrt(1 - alpha_bar[50]) * x_T
    expected, seen = {
        "ancestral": lambda: ancestral_reference(schedule, x_T, noise, ts, "fixed_small", keep),
        "ddim": lambda: reference(schedule, x_T, noise, ts, 0.7, False, keep),
        "dpm": lambda: dpm_reference(schedule, x_T, ts, keep),
    }[sampler]()

    def sample(key, image):
        given = Given(image, jnp.float32(mask) if masked else None)
        common = dict(given=given, frames=True)
        predict, p = predict_for(schedule), Parameterisation(threshold=unclipped)
        if sampler == "ancestral":
            return ancestral_sample(predict, schedule, p, key, shape, ts, **common)
        if sampler == "ddim":
            return ddim_sample(predict, schedule, key, shape, ts, 0.7, unclipped, **common)
        return dpm_solver_sample(predict, schedule, key, shape, ts, unclipped, **common)

    found, frames = (jax.jit(sample) if jit else sample)(key, jnp.float32(image))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
    np.testing.assert_allclose(frames, seen, rtol=0, atol=1e-5)


def test_dpm_solver_is_nearer_the_limit_than_ddim():
    """Second order: with steps even in log-SNR its error is far below DDIM's, from one start."""
    schedule, key, shape = linear(1000), jax.random.key(1), (64, 3)
    predict = predict_for(schedule)
    even = np.linspace(schedule.log_snr[0], schedule.log_snr[-1], 20)
    steps = np.unique(np.round(t_at(schedule, even)).astype(int))
    limit = ddim_sample(predict, schedule, key, shape, 1000, 0.0, unclipped)
    by_ddim = ddim_sample(predict, schedule, key, shape, steps, 0.0, unclipped)
    by_dpm = dpm_solver_sample(predict, schedule, key, shape, steps, unclipped)
    assert np.abs(by_dpm - limit).max() < 0.3 * np.abs(by_ddim - limit).max()


@pytest.mark.parametrize("sampler", ["ancestral", "ddim", "dpm"])
def test_a_kept_part_stays_and_the_rest_follows_it(sampler):
    """Inpainting: data whose two elements are always equal, one of them given."""
    schedule, key, shape = cosine(200), jax.random.key(2), (256, 2)

    def predict(x_t, t):  # x_0 = (z, z), z standard normal: project, then shrink
        alpha_bar, sigma = (extract(a, t, 2) for a in (schedule.alpha_bar, schedule.sigma))
        x_0 = jnp.sqrt(alpha_bar) * x_t.mean(1, keepdims=True) / (alpha_bar + 0.5 * sigma**2)
        return (x_t - jnp.sqrt(alpha_bar) * x_0) / sigma

    image = jnp.stack([jnp.linspace(-1.5, 1.5, 256), jnp.zeros(256)], axis=1)
    given = Given(image, jnp.array([[1.0, 0.0]]))
    p = Parameterisation(threshold=unclipped)
    x_0 = {
        "ancestral": lambda: ancestral_sample(predict, schedule, p, key, shape, 200, given=given),
        "ddim": lambda: ddim_sample(
            predict, schedule, key, shape, 200, 1.0, unclipped, given=given
        ),
        "dpm": lambda: dpm_solver_sample(predict, schedule, key, shape, 200, unclipped, given),
    }[sampler]()
    np.testing.assert_array_equal(x_0[:, 0], image[:, 0])
    assert np.corrcoef(x_0[:, 0], x_0[:, 1])[0, 1] > 0.9


def test_sdedit_stays_nearer_the_image_the_later_it_starts():
    schedule, key = cosine(100), jax.random.key(3)
    image = jnp.tile(jnp.array([[0.5, -0.5, 0.3]]), (512, 1))
    far = []
    for last in (2, 30, 99):
        steps = np.arange(0, last + 1)
        x_0 = ddim_sample(
            predict_for(schedule), schedule, key, image.shape, steps, 0.0, unclipped, Given(image)
        )
        far.append(float(jnp.sqrt(jnp.mean((x_0 - image) ** 2))))
    assert far[0] < 0.1 and far[0] < far[1] < far[2]
    # From all noise nothing of the image is left: the law of the data.
    np.testing.assert_allclose(x_0.mean(0), MU, atol=5 * np.sqrt(VAR / 512))


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_samples_have_the_law_of_the_data(eta):
    schedule, n = cosine(400), 8000
    x_0 = ddim_sample(
        predict_for(schedule), schedule, jax.random.key(0), (n, 3), 400, eta, unclipped
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

    shape = (2, 1, 1, 3)
    ddim_sample(predict, schedule, jax.random.key(0), shape, 50)
    dpm_solver_sample(predict, schedule, jax.random.key(0), shape, 50)
    ancestral_sample(predict, schedule, Parameterisation(), jax.random.key(0), shape, 50)
    assert calls == [(2,)] * 3


def test_spaced_steps():
    np.testing.assert_array_equal(spaced_steps(1000, 1), [999])
    np.testing.assert_array_equal(spaced_steps(5, 5), np.arange(5))
    for count in (2, 7, 50, 999):
        steps = spaced_steps(1000, count)
        assert len(steps) == count and steps[0] == 0 and steps[-1] == 999
        assert (np.diff(steps) > 0).all() and np.ptp(np.diff(steps)) <= 1


def test_sections_are_steps():
    """ "ddim50" and its like, as the papers' code has them, wherever steps are taken."""
    schedule, key, shape = linear(100), jax.random.key(4), (2, 3)
    predict = predict_for(schedule)
    cases = (("ddim5", [0, 20, 40, 60, 80]), ("1,2", [0, 50, 99]), ("4", [0, 33, 66, 99]))
    for sections, steps in cases:
        np.testing.assert_array_equal(sampling_steps(100, sections), steps)
        samplers = (
            lambda s: ddim_sample(predict, schedule, key, shape, s),
            lambda s: dpm_solver_sample(predict, schedule, key, shape, s),
            lambda s: ancestral_sample(predict, schedule, Parameterisation(), key, shape, s),
        )
        for sample in samplers:
            np.testing.assert_array_equal(sample(sections), sample(steps))


def test_shapes_that_do_not_fit():
    schedule, key, shape = linear(10), jax.random.key(0), (2, 4, 4, 3)
    for sample in (ddim_sample, dpm_solver_sample):
        with pytest.raises(UserError, match=r"shape \[2, 4, 4, 3\]; got \(2, 4, 4, 1\)"):
            sample(lambda x, t: x[..., :1], schedule, key, shape, 2)
        with pytest.raises(UserError, match=r"given.image must be .* got \(1, 4, 4, 3\)"):
            given = Given(jnp.zeros((1, 4, 4, 3)))
            sample(lambda x, t: x, schedule, key, shape, 2, given=given)
        with pytest.raises(UserError, match=r"given.mask must .* \(4, 2, 3\)"):
            given = Given(jnp.zeros(shape), jnp.zeros((4, 2, 3)))
            sample(lambda x, t: x, schedule, key, shape, 2, given=given)
    with pytest.raises(UserError, match=r"learned variance .* 6 channels.*\[2, 4, 4, 3\]"):
        p = Parameterisation(variance="learned")
        ancestral_sample(lambda x, t: x, schedule, p, key, shape, 2)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("steps", "eta", "words"),
    [
        (0, 0.0, "1..10"),
        (11, 0.0, "1..10"),
        (2.5, 0.0, "1..10; got 2.5"),
        ("ddim7", 0.0, "no whole stride takes 7 of 10"),
        ("5,6", 0.0, "section 1 has 5 steps and cannot give 6"),
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


def test_a_schedule_that_ends_without_signal():
    """From T-1, at trailing steps, by what the network says of x_0 there; float64 beside it."""
    schedule = zero_terminal_snr(linear(1000))
    key, shape = jax.random.key(5), (4, 3)
    ts = np.array([99, 199, 299, 399, 499, 599, 699, 799, 899, 999])
    np.testing.assert_array_equal(steps_on(schedule, 10), ts)
    np.testing.assert_array_equal(steps_on(schedule, "10"), ts)
    np.testing.assert_array_equal(trailing_steps(1000, 3), [332, 666, 999])
    alpha_bar = np.cumprod(1.0 - schedule.betas)
    assert alpha_bar[-1] == 0.0

    def predict(x_t, t):
        a, sigma = (extract(v, t, 2) for v in (schedule.alpha_bar, schedule.sigma))
        eps = sigma * (x_t - jnp.sqrt(a) * MU) / (a * VAR + sigma**2)
        x_0 = MU + jnp.sqrt(a) * VAR * (x_t - jnp.sqrt(a) * MU) / (a * VAR + sigma**2)
        return Estimates(x_0, eps)

    x = before = np.float64(jax.random.normal(jax.random.split(key)[0], shape))
    y = x.copy()
    for i in reversed(range(len(ts))):
        a, a_prev = alpha_bar[ts[i]], alpha_bar[ts[i - 1]] if i else 1.0
        estimates = [
            MU + np.sqrt(a) * VAR * (z - np.sqrt(a) * MU) / (a * VAR + 1 - a) for z in (x, y)
        ]
        eps = (x - np.sqrt(a) * estimates[0]) / np.sqrt(1 - a)
        x = np.sqrt(a_prev) * estimates[0] + np.sqrt(1 - a_prev) * eps
        # DPM-Solver++: of second order once there are two finite steps behind, but for the last.
        d = estimates[1]
        if 0 < i < len(ts) - 2:
            lam = [0.5 * np.log(alpha_bar[t] / (1 - alpha_bar[t])) for t in ts[i - 1 : i + 2]]
            d = d + 0.5 * (lam[0] - lam[1]) / (lam[1] - lam[2]) * (d - before)
        shrink = np.sqrt((1 - a_prev) * a / (1 - a))
        y = np.sqrt((1 - a_prev) / (1 - a)) * y + (np.sqrt(a_prev) - shrink) * d
        before = estimates[1]
    found = jax.jit(lambda k: ddim_sample(predict, schedule, k, shape, 10, 0.0, unclipped))(key)
    np.testing.assert_allclose(found, x, rtol=0, atol=2e-5)
    found = jax.jit(lambda k: dpm_solver_sample(predict, schedule, k, shape, "10", unclipped))(key)
    np.testing.assert_allclose(found, y, rtol=0, atol=2e-5)


def test_no_signal_is_an_error():
    schedule = Schedule([0.5, 1.0])
    with pytest.raises(UserError, match="t = 1 has alpha_bar = 0"):
        ddim_sample(lambda x, t: x, schedule, jax.random.key(0), (1, 2), 2)
    ddim_sample(lambda x, t: x, schedule, jax.random.key(0), (1, 2), [0])
