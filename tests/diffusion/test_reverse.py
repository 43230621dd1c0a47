"""What a network's output stands for, against float64 written from the papers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamjax.diffusion.reverse import (
    Parameterisation,
    clip,
    dynamic,
    eps_of,
    predicted_eps,
    reverse,
    split_output,
    unclipped,
)
from dreamjax.diffusion.schedule import cosine, linear, scaled_linear
from dreamjax.errors import UserError

SHAPE = (4, 3, 2)
EPS32 = np.finfo(np.float32).eps
T = np.array([0, 1, 500, 999])


def f32(array):
    """Float32 numbers in float64, so that the reference sees exactly what the code sees."""
    return np.float32(array).astype(np.float64)


def column(values):
    return values[T].reshape(4, 1, 1)


@pytest.mark.parametrize("schedule", [linear(1000), scaled_linear(1000), cosine(1000)], ids="lsc")
@pytest.mark.parametrize("prediction", ["eps", "x0", "v", "mean"])
@pytest.mark.parametrize("threshold", [unclipped, clip, dynamic(0.9)], ids=["none", "clip", "dyn"])
def test_mean_and_estimates(schedule, prediction, threshold):
    rng = np.random.default_rng(1)
    beta, alpha_bar = column(schedule.betas), column(np.cumprod(1.0 - schedule.betas))
    before = column(np.append(1.0, np.cumprod(1.0 - schedule.betas)[:-1]))
    x_0, eps = 2.0 * rng.uniform(-1, 1, SHAPE), rng.standard_normal(SHAPE)
    x_t = f32(np.sqrt(alpha_bar) * x_0 + np.sqrt(1 - alpha_bar) * eps)
    from_x0 = np.sqrt(before) * beta / (1 - alpha_bar)
    from_xt = np.sqrt(1 - beta) * (1 - before) / (1 - alpha_bar)
    output = f32(
        {
            "eps": eps,
            "x0": x_0,
            "v": np.sqrt(alpha_bar) * eps - np.sqrt(1 - alpha_bar) * x_0,
            "mean": from_x0 * x_0 + from_xt * x_t,
        }[prediction]
    )
    estimate = {
        "eps": (x_t - np.sqrt(1 - alpha_bar) * output) / np.sqrt(alpha_bar),
        "x0": output,
        "v": np.sqrt(alpha_bar) * x_t - np.sqrt(1 - alpha_bar) * output,
        "mean": (output - from_xt * x_t) / from_x0,
    }[prediction]
    s = np.maximum(np.quantile(np.abs(estimate), 0.9, axis=(1, 2), keepdims=True), 1.0)
    used = {unclipped: estimate, clip: np.clip(estimate, -1, 1)}
    used = used.get(threshold, np.clip(estimate, -s, s) / s)
    mean = output if prediction == "mean" else from_x0 * used + from_xt * x_t
    p = Parameterisation(prediction, "fixed_large", threshold)

    def run(x_t, output):
        return reverse(schedule, p, x_t, jnp.asarray(T), output)

    # Recovering x_0 divides by sqrt(alpha_bar), or by the small share of x_0 in the mean.
    condition = {"eps": 1 / np.sqrt(alpha_bar), "mean": 2 / from_x0}.get(prediction, 1.0)
    size = np.maximum(1.0, np.abs(estimate))
    for found in (f(jnp.float32(x_t), jnp.float32(output)) for f in (run, jax.jit(run))):
        assert (np.abs(found.x_0 - used) <= 1e-5 * np.maximum(condition, 1.0) * size).all()
        tolerance = 1e-5 * np.maximum(condition * from_x0, 1.0) * np.maximum(size, np.abs(mean))
        assert (np.abs(found.mean - mean) <= tolerance).all()
        back = (x_t - np.sqrt(alpha_bar) * used) / np.sqrt(1 - alpha_bar)
        tolerance = 1e-5 * np.maximum(condition, 1.0) * size / np.sqrt(1 - alpha_bar)
        assert (np.abs(found.eps - back) <= tolerance).all()


@pytest.mark.parametrize("prediction", ["eps", "x0", "v", "mean"])
@pytest.mark.parametrize("jit", [False, True])
def test_eps_behind_a_prediction(prediction, jit):
    """The eps that was added comes back from x_0, v or the posterior mean that it makes."""
    schedule = linear(1000)
    rng = np.random.default_rng(6)
    alpha_bar = column(np.cumprod(1.0 - schedule.betas))
    beta, before = column(schedule.betas), alpha_bar / (1 - column(schedule.betas))
    x_0, eps = rng.uniform(-1, 1, SHAPE), rng.standard_normal(SHAPE)
    x_t = np.sqrt(alpha_bar) * x_0 + np.sqrt(1 - alpha_bar) * eps
    from_x0 = np.sqrt(before) * beta / (1 - alpha_bar)
    given = {
        "eps": eps,
        "x0": x_0,
        "v": np.sqrt(alpha_bar) * eps - np.sqrt(1 - alpha_bar) * x_0,
        "mean": from_x0 * x_0 + np.sqrt(1 - beta) * (1 - before) / (1 - alpha_bar) * x_t,
    }[prediction]
    p = Parameterisation(prediction)

    def run(x_t, given):
        return eps_of(schedule, p, x_t, jnp.asarray(T), given)

    found = (jax.jit(run) if jit else run)(jnp.float32(x_t), jnp.float32(given))
    # Taking x_0 away divides by sigma; finding x_0 in the mean first divides by its share there.
    condition = {"x0": 1 / np.sqrt(1 - alpha_bar)}.get(prediction, 1.0)
    if prediction == "mean":
        condition = 4 / (from_x0 * np.sqrt(1 - alpha_bar))
    assert (np.abs(found - eps) <= 1e-5 * np.maximum(condition, 1.0) * 4.0).all()
    # The same behind a whole output, whose second half is about the variance.
    p = Parameterisation(prediction, "learned_range")
    whole = jnp.concatenate([jnp.float32(given), 9.0 * jnp.ones_like(found)], -1)
    again = predicted_eps(schedule, p, jnp.float32(x_t), jnp.asarray(T), whole)
    assert (np.abs(again - eps) <= 1e-5 * np.maximum(condition, 1.0) * 4.0).all()
    half = predicted_eps(schedule, p, jnp.float32(x_t), jnp.asarray(T), jnp.float16(whole))
    assert half.dtype == jnp.float32
    with pytest.raises(UserError, match="must map"):
        predicted_eps(schedule, p, jnp.float32(x_t), jnp.asarray(T), whole[..., :-1])


@pytest.mark.parametrize("jit", [False, True])
def test_variances(jit):
    schedule = linear(1000)
    betas, alpha_bar = schedule.betas, np.cumprod(1.0 - schedule.betas)
    small = betas[1:] * (1 - alpha_bar[:-1]) / (1 - alpha_bar[1:])
    small = np.append(small[0], small)
    raw = f32(np.random.default_rng(2).uniform(-1, 1, SHAPE))
    large = np.append(small[0], betas[1:])
    share = (raw + 1) / 2
    expected = {
        "fixed_small": column(np.log(small)) + 0 * raw,
        "fixed_large": column(np.log(large)) + 0 * raw,
        "learned": raw,
        "learned_range": share * column(np.log(betas)) + (1 - share) * column(np.log(small)),
    }
    x_t = jnp.zeros(SHAPE)
    for variance, log_var in expected.items():
        p = Parameterisation("eps", variance)
        output = np.concatenate([0 * raw, raw], -1) if p.learns_variance else 0 * raw

        def run(o, p=p):
            return reverse(schedule, p, x_t, jnp.asarray(T), o)

        found = (jax.jit(run) if jit else run)(jnp.float32(output))
        np.testing.assert_allclose(found.log_var + 0 * raw, log_var, rtol=2e-6, atol=2e-6)
        # exp turns a rounding of the logarithm, up to 10 here, into a relative one.
        # The posterior has none at t = 0, where its logarithm borrows that of t = 1.
        none = (variance == "fixed_small") & (np.reshape(T, (-1, *[1] * (raw.ndim - 1))) == 0)
        var = np.where(none, 0.0, np.exp(log_var))
        np.testing.assert_allclose(found.var + 0 * raw, var, rtol=1e-5)


def test_dynamic_thresholding_leaves_modest_examples_alone():
    rng = np.random.default_rng(3)
    x_0 = np.stack([rng.uniform(-0.9, 0.9, (8, 8, 3)), rng.standard_normal((8, 8, 3)) * 3])
    s = np.quantile(np.abs(x_0[1]), 0.9)
    for threshold in (dynamic(0.9), jax.jit(dynamic(0.9))):
        found = threshold(jnp.float32(x_0))
        np.testing.assert_allclose(found[0], x_0[0], rtol=1e-6)
        np.testing.assert_allclose(found[1], np.clip(x_0[1], -s, s) / s, rtol=2e-6)
    assert np.abs(found[1]).max() <= 1.0
    # Imagen's point: where static clipping saturates most, dynamic keeps most distinct.
    assert (np.abs(found[1]) == 1.0).mean() < 0.2 < (np.abs(clip(x_0[1])) == 1.0).mean()


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Parameterisation("score"), "prediction.*'score'"),
        (lambda: Parameterisation("eps", "big"), "variance.*'big'"),
        (lambda: dynamic(1.5), "quantile.*1.5"),
        (
            lambda: reverse(
                linear(10),
                Parameterisation(variance="learned"),
                jnp.zeros((1, 2, 2, 3)),
                jnp.array([0]),
                jnp.zeros((1, 2, 2, 3)),
            ),
            "6 channels",
        ),
        (
            lambda: reverse(
                linear(10),
                Parameterisation(),
                jnp.zeros((1, 2, 2, 3)),
                jnp.array([0]),
                jnp.zeros((1, 2, 2, 6)),
            ),
            "fixed_small.*3 channels",
        ),
    ],
)
def test_mistakes_are_named(make, says):
    with pytest.raises(UserError, match=says):
        make()


def test_a_t_out_of_range_does_not_pass_for_its_neighbour():
    x = jnp.zeros((2, 3))

    def run(t):
        return reverse(linear(10), Parameterisation(), x, t, x)

    assert np.isnan(jax.jit(run)(jnp.array([-1, 10])).mean).all()
    with pytest.raises(UserError, match="in 0..9; got 10"):
        run(jnp.array([9, 10]))


@pytest.mark.parametrize("jit", [False, True])
def test_split_output(jit):
    output = np.arange(24.0).reshape(2, 2, 6)
    p, x_t = Parameterisation(variance="learned"), jnp.zeros((2, 2, 3))
    split = (jax.jit(split_output, static_argnums=0) if jit else split_output)(
        p, x_t, jnp.bfloat16(output)
    )
    for found, expected in zip(split, (output[..., :3], output[..., 3:]), strict=True):
        assert found.dtype == jnp.float32
        np.testing.assert_array_equal(found, expected)
    whole, raw = split_output(Parameterisation(), x_t, jnp.float32(output[..., :3]))
    np.testing.assert_array_equal(whole, output[..., :3])
    assert raw is None
