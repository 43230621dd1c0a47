"""The training losses against float64 means of squares."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamjax.diffusion.losses import (
    hybrid_loss,
    min_snr_weight,
    prediction_loss,
    v_weight,
    vlb_loss,
)
from dreamjax.diffusion.reverse import Parameterisation
from dreamjax.diffusion.schedule import extract, linear, zero_terminal_snr
from dreamjax.errors import UserError

from . import float64

SCHEDULE = linear(1000)
T = np.array([0, 1, 500, 999])


@pytest.fixture(scope="module")
def drawn():
    rng = np.random.default_rng(4)
    return rng.uniform(-1, 1, (4, 3, 3, 3)), rng.standard_normal((4, 3, 3, 3))


def network(x_t, t):
    """Some function of both arguments."""
    return jnp.sin(x_t) + 0.001 * t.reshape(-1, 1, 1, 1)


def test_v_error_is_the_eps_error_over_alpha_bar(drawn):
    """The same guess in both forms, v = (eps - sigma x_t) / sqrt(alpha_bar)."""
    x_0, eps = map(jnp.float32, drawn)
    t = jnp.array([100, 200, 300, 400])
    alpha_bar = jnp.float32(SCHEDULE.alpha_bar[np.asarray(t)])

    def as_v(x_t, t):
        a = alpha_bar.reshape(-1, 1, 1, 1)
        return (network(x_t, t) - jnp.sqrt(1 - a) * x_t) / jnp.sqrt(a)

    np.testing.assert_allclose(
        prediction_loss(as_v, SCHEDULE, Parameterisation("v"), x_0, t, eps) * alpha_bar,
        prediction_loss(network, SCHEDULE, Parameterisation("eps"), x_0, t, eps),
        rtol=1e-4,
    )


def test_half_precision_outputs_are_compared_in_float32(drawn):
    x_0, eps = map(jnp.float32, drawn)

    def net(x_t, t):
        return network(x_t, t).astype(jnp.bfloat16)

    loss = prediction_loss(net, SCHEDULE, Parameterisation("eps"), x_0, jnp.asarray(T), eps)
    assert loss.dtype == jnp.float32


@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.parametrize("prediction", ["eps", "x0", "v", "mean"])
def test_prediction_loss_against_float64(drawn, prediction, jit):
    x_0, eps = drawn
    beta = SCHEDULE.betas[T].reshape(4, 1, 1, 1)
    alpha_bar = np.cumprod(1.0 - SCHEDULE.betas)[T].reshape(4, 1, 1, 1)
    before = alpha_bar / (1 - beta)
    x_t = np.sqrt(alpha_bar) * x_0 + np.sqrt(1 - alpha_bar) * eps
    mean = np.sqrt(before) * beta * x_0 + np.sqrt(1 - beta) * (1 - before) * x_t
    target = {
        "eps": eps,
        "x0": x_0,
        "v": np.sqrt(alpha_bar) * eps - np.sqrt(1 - alpha_bar) * x_0,
        "mean": mean / (1 - alpha_bar),
    }[prediction]
    output = np.sin(x_t) + 0.001 * T.reshape(4, 1, 1, 1)
    expected = ((target - output) ** 2).reshape(4, -1).mean(1)

    def net(x_t, t):  # the second half is about the variance and must not count
        return jnp.concatenate([network(x_t, t), 100 * x_t], axis=-1)

    p = Parameterisation(prediction, "learned_range")

    def run(*arrays):
        return prediction_loss(net, SCHEDULE, p, *arrays)

    found = (jax.jit(run) if jit else run)(jnp.float32(x_0), jnp.asarray(T), jnp.float32(eps))
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def learned(x_t, t):
    return jnp.concatenate([network(x_t, t), 0.5 * jnp.cos(x_t)], axis=-1)


@pytest.mark.parametrize("jit", [False, True])
def test_vlb_and_hybrid_loss_against_float64(drawn, jit):
    """T times the term in bits, and a thousandth of it with the mean square of eps."""
    x_0, eps = (np.float32(a).astype(np.float64) for a in drawn)
    x_0 = np.float32(np.round((x_0 + 1) * 127.5) / 127.5 - 1).astype(np.float64)
    p = Parameterisation("eps", "learned_range")  # its clipping must not count
    vlb, simple = np.empty(4), np.empty(4)
    for i, t in enumerate(T):
        x_t = float64.q_sample(SCHEDULE.betas, x_0[i], t, eps[i])
        output = np.concatenate([np.sin(x_t) + 0.001 * t, 0.5 * np.cos(x_t)], axis=-1)
        term = float64.term(SCHEDULE.betas, p.variance, x_0[i], x_t, t, output)
        vlb[i] = 1000 * term / np.log(2)
        simple[i] = np.mean((eps[i] - output[..., :3]) ** 2)

    def run(x_0, eps):
        losses = vlb_loss, hybrid_loss
        return tuple(loss(learned, SCHEDULE, p, x_0, jnp.asarray(T), eps) for loss in losses)

    found = (jax.jit(run) if jit else run)(jnp.float32(x_0), jnp.float32(eps))
    np.testing.assert_allclose(found[0], vlb, rtol=1e-5)
    np.testing.assert_allclose(found[1], simple + 0.001 * vlb, rtol=1e-5)


def test_hybrid_loss_trains_the_mean_by_the_simple_and_the_variance_by_the_bound(drawn):
    x_0, eps = map(jnp.float32, drawn)
    t, p = jnp.array([1, 20, 500, 900]), Parameterisation("eps", "learned_range")
    start = jnp.array([0.3, 0.7])

    def net_for(w):
        def net(x_t, t):
            mean, raw = w[0] * x_t, w[1] * jnp.cos(x_t)
            return jnp.concatenate([mean, raw], axis=-1)

        return net

    def gradient(loss):
        return jax.grad(lambda w: loss(net_for(w), SCHEDULE, p, x_0, t, eps).sum())(start)

    hybrid, vlb = gradient(hybrid_loss), gradient(vlb_loss)
    simple = gradient(prediction_loss)
    np.testing.assert_allclose(hybrid[0], simple[0], rtol=1e-5)
    np.testing.assert_allclose(hybrid[1], 0.001 * vlb[1], rtol=1e-5)
    assert simple[1] == 0 and abs(0.001 * vlb[0]) > 1e-4 * abs(simple[0])
    with pytest.raises(UserError, match="learned variance; got 'fixed_small'"):
        hybrid_loss(network, SCHEDULE, Parameterisation(), x_0, t, eps)


@pytest.mark.parametrize("gamma", [1.0, 5.0])
def test_min_snr_weights_make_one_loss_on_x0(drawn, gamma):
    """One guess of x_0 in all three forms: weighted, the three losses are the same."""
    x_0, eps = map(jnp.float32, drawn)
    t = jnp.array([100, 300, 500, 700])
    scale, sigma = (extract(a, t, 4) for a in (SCHEDULE.sqrt_alpha_bar, SCHEDULE.sigma))
    guess = network
    forms = {
        "x0": guess,
        "eps": lambda x_t, t: (x_t - scale * guess(x_t, t)) / sigma,
        "v": lambda x_t, t: (scale * x_t - guess(x_t, t)) / sigma,
    }
    losses = []
    for prediction, net in forms.items():
        p = Parameterisation(prediction)
        weight = min_snr_weight(SCHEDULE, prediction, t, gamma)
        losses.append(weight * prediction_loss(net, SCHEDULE, p, x_0, t, eps))
    snr = np.float64(SCHEDULE.alpha_bar / (1 - SCHEDULE.alpha_bar))[np.asarray(t)]
    weight = min_snr_weight(SCHEDULE, "x0", t, gamma)
    np.testing.assert_allclose(weight, np.minimum(snr, gamma), rtol=1e-5)
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-3)
    np.testing.assert_allclose(losses[2], losses[0], rtol=1e-3)


@pytest.mark.parametrize("jit", [False, True])
def test_weights_against_float64(jit):
    alpha_bar = np.cumprod(1.0 - SCHEDULE.betas)[T]
    snr = alpha_bar / (1 - alpha_bar)
    capped = np.minimum(snr, 5.0)
    expected = {
        "x0": (capped, snr + 1),
        "eps": (capped / snr, (snr + 1) / snr),
        "v": (capped / (snr + 1), 1 + 0 * snr),
    }
    for prediction, (min_snr, v) in expected.items():
        for function, weight in ((min_snr_weight, min_snr), (v_weight, v)):

            def run(t, f=function, p=prediction):
                return f(SCHEDULE, p, t)

            found = (jax.jit(run) if jit else run)(jnp.asarray(T))
            np.testing.assert_allclose(found, weight, rtol=1e-6)


def test_v_weights_make_the_loss_of_v(drawn):
    x_0, eps = map(jnp.float32, drawn)
    t = jnp.array([100, 300, 500, 700])
    scale, sigma = (extract(a, t, 4) for a in (SCHEDULE.sqrt_alpha_bar, SCHEDULE.sigma))
    forms = {
        "v": network,
        "x0": lambda x_t, t: scale * x_t - sigma * network(x_t, t),
        "eps": lambda x_t, t: sigma * x_t + scale * network(x_t, t),
    }
    v, *others = (
        v_weight(SCHEDULE, name, t)
        * prediction_loss(net, SCHEDULE, Parameterisation(name), x_0, t, eps)
        for name, net in forms.items()
    )
    for other in others:
        np.testing.assert_allclose(other, v, rtol=1e-5)
    with pytest.raises(UserError, match="'mean'"):
        v_weight(SCHEDULE, "mean", t)
    with pytest.raises(UserError, match="alpha_bar, which is 0 at T-1"):
        v_weight(zero_terminal_snr(linear(10)), "eps", t)


def test_min_snr_at_no_signal_and_mistakes():
    schedule = zero_terminal_snr(linear(10))
    last = jnp.array([9])
    found = [float(min_snr_weight(schedule, p, last)[0]) for p in ("x0", "eps", "v")]
    assert found == [0.0, 1.0, 0.0]
    with pytest.raises(UserError, match="'mean'"):
        min_snr_weight(schedule, "mean", last)
    with pytest.raises(UserError, match="gamma"):
        min_snr_weight(schedule, "v", last, 0.0)
