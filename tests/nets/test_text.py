"""The text transformer: masks, padding, places, the null text."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamjax.nets.text import TextConfig, TextEncoder, attend

CONFIG = TextConfig(vocabulary_size=11, length=8, dim=16, layers=2, heads=2)
ENCODER = TextEncoder(CONFIG)
apply = jax.jit(ENCODER.apply)
IDS = jnp.array([[3, 4, 5, 0, 0, 0, 0, 0], [7, 1, 2, 9, 10, 6, 5, 4], [0] * 8])


@pytest.fixture(scope="module")
def params():
    return jax.jit(ENCODER.init)(jax.random.key(0), IDS)


@pytest.fixture(scope="module")
def text(params):
    return apply(params, IDS)


def test_shapes_and_mask(text):
    assert text.tokens.shape == (3, 8, 16)
    assert text.tokens.dtype == jnp.float32
    np.testing.assert_array_equal(text.mask, IDS > 0)
    np.testing.assert_array_equal(text.tokens[~text.mask], 0.0)
    assert jnp.abs(text.tokens[text.mask]).min(-1).max() > 0


def test_null_text_is_finite_and_has_finite_gradients(params, text):
    np.testing.assert_array_equal(text.tokens[2], 0.0)

    def loss(params):
        return jnp.square(apply(params, IDS).tokens - 1.0).sum()

    grads = jax.jit(jax.grad(loss))(params)
    assert all(bool(jnp.isfinite(g).all()) for g in jax.tree.leaves(grads))
    np.testing.assert_array_equal(grads["params"]["word"]["embedding"][0], 0.0)
    assert jnp.abs(grads["params"]["word"]["embedding"][3]).max() > 0


def test_more_padding_changes_nothing(params, text):
    short = apply(params, IDS[:1, :3])
    np.testing.assert_allclose(short.tokens[0], text.tokens[0, :3], atol=1e-5)


def test_neighbours_change_nothing(params, text):
    alone = apply(params, IDS[1:2])
    np.testing.assert_allclose(alone.tokens[0], text.tokens[1], atol=1e-5)


def test_words_see_the_whole_text_and_their_place(params, text):
    other_last = apply(params, IDS.at[1, 7].set(3)).tokens[1, 0]
    assert jnp.abs(other_last - text.tokens[1, 0]).max() > 1e-4
    swapped = apply(params, IDS.at[0, :2].set(jnp.array([4, 3]))).tokens[0]
    assert jnp.abs(swapped[2] - text.tokens[0, 2]).max() > 1e-6  # "red on blue", "blue on red"
    assert jnp.abs(swapped[0] - text.tokens[0, 1]).max() > 1e-4


def test_too_long_a_text(params):
    with pytest.raises(ValueError, match="9 tokens; the encoder has 8"):
        apply(params, jnp.ones((1, 9), jnp.int32))


def test_attend_against_numpy():
    rng = np.random.default_rng(0)
    q, k, v = (rng.normal(size=(2, n, 3, 4)) for n in (5, 6, 6))
    mask = rng.random((2, 6)) < 0.6
    mask[:, 0] = True
    got = attend(*(jnp.asarray(x, jnp.float32) for x in (q, k, v)), jnp.asarray(mask))
    for b in range(2):
        for h in range(3):
            weights = np.exp(q[b, :, h] @ k[b, :, h].T / 2.0) * mask[b]
            weights /= weights.sum(-1, keepdims=True)
            np.testing.assert_allclose(got[b, :, h], weights @ v[b, :, h], atol=2e-6)


def test_attend_where_all_is_masked_is_uniform():
    q, k, v = jax.random.normal(jax.random.key(0), (3, 1, 4, 1, 8))
    got = attend(q, k, v, jnp.zeros((1, 4), bool))
    np.testing.assert_allclose(got, jnp.broadcast_to(v.mean(1, keepdims=True), v.shape), atol=1e-6)
