"""Attention among many places, which goes by blocks on a CPU, against float64 NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamjax.nets.stable_diffusion.blocks import MANY_WEIGHTS, ROWS, attend

RNG = np.random.default_rng(3)


def numpy_attention(q, k, v):
    """Per image and head, softmax(q k^T / sqrt d) v in float64."""
    out = np.zeros((*q.shape[:3], v.shape[-1]))
    for b in range(q.shape[0]):
        for h in range(q.shape[2]):
            logits = q[b, :, h] @ k[b, :, h].T / np.sqrt(q.shape[-1])
            weights = np.exp(logits - logits.max(axis=1, keepdims=True))
            out[b, :, h] = weights @ v[b, :, h] / weights.sum(axis=1, keepdims=True)
    return out


@pytest.mark.parametrize("places, others", [(1024, 1024), (2048, 512), (1000, 1100), (1024, 77)])
def test_attention_against_numpy(places, others):
    q = 3.0 * RNG.normal(size=(2, places, 2, 8))
    k, v = RNG.normal(size=(2, 2, others, 2, 8))
    found = jax.jit(attend)(*map(jnp.float32, (q, k, v)))
    np.testing.assert_allclose(found, numpy_attention(q, k, v), atol=3e-6)


def test_the_gradient_by_blocks_is_the_whole_ones():
    shape = (1, MANY_WEIGHTS // 1024, 1, 4)
    assert shape[1] % ROWS == 0
    q, k, v, wanted = map(jnp.float32, RNG.normal(size=(4, *shape)))

    def loss(attention):
        return lambda *qkv: jnp.sum((attention(*qkv) - wanted) ** 2)

    blocks = jax.jit(jax.grad(loss(attend), argnums=(0, 1, 2)))(q, k, v)
    whole = jax.jit(jax.grad(loss(jax.nn.dot_product_attention), argnums=(0, 1, 2)))(q, k, v)
    for ours, theirs in zip(blocks, whole, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=2e-5)


def test_half_precision_by_blocks_is_no_worse_than_its_rounding():
    q, k, v = RNG.normal(size=(3, 1, 1024, 1, 16))
    found = jax.jit(attend)(*(jnp.asarray(x, jnp.bfloat16) for x in (q, k, v)))
    assert found.dtype == jnp.bfloat16
    np.testing.assert_allclose(found.astype(jnp.float32), numpy_attention(q, k, v), atol=0.02)
