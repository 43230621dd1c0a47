"""Adam against NumPy, the rate's shape, and steps that are not finite."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dreamjax.errors import UserError
from dreamjax.training.optimizer import (
    Adam,
    Shampoo,
    apply_gradients,
    skip_nonfinite,
    skipped_in_row,
)
from dreamjax.training.state import ema_update, init_state


def numpy_adam(config, params, grads, rates):
    """Clipped AdamW in float64."""
    x = {k: np.asarray(v, np.float64) for k, v in params.items()}
    m = {k: np.zeros_like(v) for k, v in x.items()}
    s = {k: np.zeros_like(v) for k, v in x.items()}
    for i, (g, rate) in enumerate(zip(grads, rates, strict=True), start=1):
        norm = np.sqrt(sum(np.sum(np.float64(v) ** 2) for v in g.values()))
        for k in x:
            gk = np.float64(g[k]) * min(1.0, config.clip_norm / norm)
            m[k] = config.b1 * m[k] + (1 - config.b1) * gk
            s[k] = config.b2 * s[k] + (1 - config.b2) * gk**2
            u = m[k] / (1 - config.b1**i) / (np.sqrt(s[k] / (1 - config.b2**i)) + config.eps)
            u += config.weight_decay * x[k] if x[k].ndim >= 2 else 0
            x[k] = x[k] - rate * u
    return x


def test_steps_match_numpy_adam():
    config = Adam(
        learning_rate=0.03, final_learning_rate=0.001, warmup=0.5, b1=0.8, b2=0.95, eps=1e-3,
        clip_norm=2.0, weight_decay=0.1,
    )  # fmt: skip
    rng = np.random.default_rng(0)
    params = {"w": rng.normal(size=(3, 2)), "b": rng.normal(size=2)}
    grads = [{k: rng.normal(size=v.shape) * 4**i for k, v in params.items()} for i in range(-2, 4)]
    tx = config.make(total_steps=6)
    x = jax.tree.map(lambda p: jnp.asarray(p, jnp.float32), params)
    state = tx.init(x)
    step = jax.jit(lambda g, x, s: apply_gradients(tx, g, jnp.float32(1), x, s))
    for g in grads:
        x, state, metrics = step(jax.tree.map(lambda v: jnp.asarray(v, jnp.float32), g), x, state)
    cosine = [0.001 + 0.029 * (1 + np.cos(np.pi * i / 3)) / 2 for i in range(3)]
    want = numpy_adam(config, params, grads, [0.01, 0.02, 0.03, *cosine])
    for k in params:
        np.testing.assert_allclose(x[k], want[k], rtol=2e-5)
    norm = np.sqrt(sum(np.sum(v**2) for v in grads[-1].values()))
    np.testing.assert_allclose(metrics["grad_norm"], norm, rtol=1e-6)  # before clipping


def test_rate_rises_falls_and_ends_where_it_should():
    rate = Adam(1.0, final_learning_rate=0.25, warmup=4 / 104).rate(104)
    np.testing.assert_allclose([rate(i) for i in range(5)], [0.25, 0.5, 0.75, 1.0, 1.0], rtol=1e-6)
    np.testing.assert_allclose([rate(54), rate(104), rate(999)], [0.625, 0.25, 0.25], rtol=1e-6)
    constant = Adam(0.5, warmup=0.2).rate(10)
    np.testing.assert_allclose([constant(i) for i in (0, 1, 9)], [0.25, 0.5, 0.5])


def test_twice_the_steps_stretch_the_rate():
    short, long = (Adam(1.0, final_learning_rate=0.1, warmup=0.25).rate(n) for n in (80, 160))
    at = np.arange(20, 80, 7)
    np.testing.assert_allclose([long(2 * i) for i in at], [short(i) for i in at], rtol=1e-5)


@pytest.mark.parametrize("loss, grad", [(1.0, np.nan), (1.0, np.inf), (np.nan, 1.0)])
def test_step_that_is_not_finite_changes_nothing_and_counts(loss, grad):
    tx = Adam(clip_norm=1.0).make(10)
    params = {"a": jnp.array([1.0, -2.0]), "b": jnp.array([3.0])}
    good = jax.tree.map(jnp.ones_like, params)
    bad = {**good, "b": jnp.array([grad])}
    params, state, _ = apply_gradients(tx, good, jnp.float32(1), params, tx.init(params))
    kept, skipped, metrics = apply_gradients(tx, bad, jnp.float32(loss), params, state)
    jax.tree.map(np.testing.assert_array_equal, (kept, skipped.inner), (params, state.inner))
    assert (metrics["skipped"], metrics["skipped_in_row"]) == (1, 1)
    # The next good step is what it would have been, and ends the row but not the count.
    with_gap = apply_gradients(tx, good, jnp.float32(1), kept, skipped)
    without = apply_gradients(tx, good, jnp.float32(1), params, state)
    jax.tree.map(np.testing.assert_array_equal, with_gap[0], without[0])
    assert (with_gap[2]["skipped"], with_gap[2]["skipped_in_row"]) == (1, 0)


def test_a_step_that_would_spoil_the_parameters_is_skipped():
    def burst(updates, state, params=None):
        return jax.tree.map(lambda u: u / 0.0, updates), state

    tx = skip_nonfinite(optax.GradientTransformation(lambda params: optax.EmptyState(), burst))
    params = {"a": jnp.array([1.0, -2.0])}
    kept, _, metrics = apply_gradients(tx, params, jnp.float32(1), params, tx.init(params))
    np.testing.assert_array_equal(kept["a"], params["a"])
    assert (metrics["skipped"], metrics["skipped_in_row"]) == (1, 1)


def test_rows_of_skipped_steps_are_read_of_one_step_and_of_several():
    assert skipped_in_row({"skipped_in_row": jnp.array([3, 4, 0])}).tolist() == [3, 4, 0]
    assert skipped_in_row({"skipped_in_row": jnp.int32(7)}).tolist() == [7]
    assert skipped_in_row({}).tolist() == [0]


def test_clipping_leaves_the_state_as_it_was():
    params = {"a": jnp.arange(3.0)}
    plain, clipped = Adam().make(10), Adam(clip_norm=0.1).make(10)
    assert jax.tree.structure(plain.init(params)) == jax.tree.structure(clipped.init(params))


def test_settings_out_of_range_are_refused():
    for make, says in (
        (lambda: Adam(b2=1.0), "b2 is 1.0"),
        (lambda: Adam(learning_rate=0.0), "learning_rate is 0.0"),
        (lambda: Adam(learning_rate=float("inf")), "learning_rate is inf"),
        (lambda: Adam(final_learning_rate=-1e-5), "final_learning_rate is -1e-05"),
        (lambda: Adam(warmup=100), "warmup is 100.0: expected at least 0 and at most 1"),
        (lambda: Shampoo(eps=1e-8), "eps is 1e-08: expected at least 1e-06"),
        (lambda: Shampoo(root=0), "root is 0"),
        (lambda: Shampoo(block_size=0), "block_size is 0"),
    ):
        with pytest.raises(UserError, match=says):
            make()


def test_shampoo_is_dreamfusions():
    """Betas 0.9, eps 1e-6, 3000 of 15000 steps up to 1e-4, then a cosine down to 1e-6."""
    shampoo = Shampoo()
    assert (shampoo.b1, shampoo.b2, shampoo.eps) == (0.9, 0.9, 1e-6)
    assert (shampoo.block_size, shampoo.root) == (128, 2)
    rate = shampoo.rate(15_000)
    np.testing.assert_allclose([rate(2999), rate(15_000)], [1e-4, 1e-6], rtol=1e-5)
    np.testing.assert_allclose(rate(0), 1e-4 / 3000, rtol=1e-3)  # beside the peak, in float32


def test_average_forgets_the_start_then_moves_slowly():
    ema = {"w": jnp.array([1.0])}
    params = {"w": jnp.array([3.0])}
    early = ema_update(ema, params, 0.999, jnp.int32(1))  # keeps 2 / 11
    np.testing.assert_allclose(early["w"], 1 * 2 / 11 + 3 * 9 / 11, rtol=1e-6)
    late = ema_update(ema, params, 0.999, jnp.int32(100_000))
    np.testing.assert_allclose(late["w"], 1 * 0.999 + 3 * 0.001, rtol=1e-6)


def test_average_does_not_share_buffers_with_the_parameters():
    params = {"w": jnp.ones(8)}
    state = init_state(params, Adam().make(1))
    assert state.ema["w"].unsafe_buffer_pointer() != params["w"].unsafe_buffer_pointer()
