"""The training losses against float64 means of squares."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamjax.diffusion.losses import simple_loss, v_loss
from dreamjax.diffusion.schedule import linear

SCHEDULE = linear(1000)
T = np.array([0, 1, 500, 999])


@pytest.fixture(scope="module")
def drawn():
    rng = np.random.default_rng(4)
    return rng.uniform(-1, 1, (4, 3, 3, 3)), rng.standard_normal((4, 3, 3, 3))


def network(x_t, t):
    """Some function of both arguments."""
    return jnp.sin(x_t) + 0.001 * t.reshape(-1, 1, 1, 1)


@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.parametrize("loss", [simple_loss, v_loss])
def test_against_float64(drawn, loss, jit):
    x_0, eps = drawn
    alpha_bar = np.cumprod(1.0 - SCHEDULE.betas)[T].reshape(4, 1, 1, 1)
    x_t = np.sqrt(alpha_bar) * x_0 + np.sqrt(1 - alpha_bar) * eps
    output = np.sin(x_t) + 0.001 * T.reshape(4, 1, 1, 1)
    v = np.sqrt(alpha_bar) * eps - np.sqrt(1 - alpha_bar) * x_0
    target = eps if loss is simple_loss else v
    expected = ((target - output) ** 2).reshape(4, -1).mean(1)
    function = jax.jit(loss, static_argnums=(0, 1)) if jit else loss
    found = function(network, SCHEDULE, jnp.float32(x_0), jnp.asarray(T), jnp.float32(eps))
    assert found.shape == (4,) and found.dtype == jnp.float32
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_v_error_is_the_eps_error_over_alpha_bar(drawn):
    """The same guess in both forms, v = (eps - sigma x_t) / sqrt(alpha_bar)."""
    x_0, eps = map(jnp.float32, drawn)
    t = jnp.array([100, 200, 300, 400])
    alpha_bar = jnp.float32(SCHEDULE.alpha_bar[np.asarray(t)])

    def as_v(x_t, t):
        a = alpha_bar.reshape(-1, 1, 1, 1)
        return (network(x_t, t) - jnp.sqrt(1 - a) * x_t) / jnp.sqrt(a)

    np.testing.assert_allclose(
        v_loss(as_v, SCHEDULE, x_0, t, eps) * alpha_bar,
        simple_loss(network, SCHEDULE, x_0, t, eps),
        rtol=1e-4,
    )


def test_half_precision_outputs_are_compared_in_float32(drawn):
    x_0, eps = map(jnp.float32, drawn)
    loss = simple_loss(
        lambda x_t, t: network(x_t, t).astype(jnp.bfloat16), SCHEDULE, x_0, jnp.asarray(T), eps
    )
    assert loss.dtype == jnp.float32
