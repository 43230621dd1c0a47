"""The UNet: sizes, cost, initialisation, conditioning, and what must not matter."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamjax.nets.text import Text, TextConfig, TextEncoder
from dreamjax.nets.unet import (
    GroupNorm,
    UNet,
    UNetConfig,
    depth_to_space,
    space_to_depth,
    timestep_embedding,
)

pytestmark = pytest.mark.usefixtures("quick_compilation")

TINY = UNetConfig(
    channels=16, channel_mults=(1, 2), down_blocks=(1,), middle_blocks=1, up_blocks=(1,),
    attention_levels=(1,), head_dim=8, text_dim=16,
)  # fmt: skip
T = jnp.array([3, 500, 999])


def images(size=16):
    return jax.random.normal(jax.random.key(1), (3, size, size, 3))


def texts(length=5):
    mask = jnp.arange(length) < jnp.array([[3], [5], [0]])
    tokens = jax.random.normal(jax.random.key(2), (3, 5, TINY.text_dim))
    tokens = jnp.pad(tokens, ((0, 0), (0, length - 5), (0, 0)))
    return Text(tokens * mask[..., None], mask)


@functools.partial(jax.jit, static_argnames="config")
def apply(params, x, t, text, config=TINY):
    return UNet(config).apply(params, x, t, text)


@jax.jit
def gradient(params):
    def loss(params):
        return jnp.square(apply(params, images(), T, texts()) - images()).mean()

    return jax.grad(loss)(params)


@pytest.fixture(scope="module")
def fresh():
    return jax.jit(UNet(TINY).init)(jax.random.key(0), images(), T, texts())


@pytest.fixture(scope="module")
def params(fresh):
    """Parameters away from the zeros of the initialisation."""
    leaves, tree = jax.tree.flatten(fresh)
    keys = jax.random.split(jax.random.key(3), len(leaves))
    noisy = [x + 0.1 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)]
    return jax.tree.unflatten(tree, noisy)


@pytest.fixture(scope="module")
def output(params):
    return apply(params, images(), T, texts())


@pytest.mark.parametrize("size", [32, 64])
def test_the_default_keeps_its_promises(size):
    config, text_config = UNetConfig(), TextConfig(vocabulary_size=200)
    x, t, ids = jnp.zeros((1, size, size, 3)), jnp.zeros(1, int), jnp.zeros((1, 24), int)
    encoder, unet = TextEncoder(text_config), UNet(config)

    def predict(params, x, t, ids):
        return unet.apply(params[0], x, t, encoder.apply(params[1], ids))

    text_params = jax.eval_shape(encoder.init, jax.random.key(0), ids)
    text = jax.eval_shape(encoder.apply, text_params, ids)
    unet_params = jax.eval_shape(unet.init, jax.random.key(0), x, t, text)
    count = sum(math.prod(p.shape) for p in jax.tree.leaves((unet_params, text_params)))
    assert 4e6 < count < 12e6
    assert all(p.dtype == jnp.float32 for p in jax.tree.leaves(unet_params))
    lowered = jax.jit(predict).lower((unet_params, text_params), x, t, ids)
    assert lowered.out_info.shape == x.shape
    assert lowered.out_info.dtype == jnp.float32
    assert 0.1e9 < lowered.cost_analysis()["flops"] < 1.5e9 * (size / 64) ** 2 * 1.1


def test_starts_at_zero_with_a_gradient_at_the_output(fresh):
    np.testing.assert_array_equal(apply(fresh, images(), T, texts()), 0.0)
    grads = gradient(fresh)["params"]
    assert jnp.abs(grads["conv_out"]["kernel"]).max() > 1e-3
    assert jnp.abs(grads["conv_in"]["kernel"]).max() == 0


def test_every_parameter_has_a_finite_gradient(params):
    for path, grad in jax.tree_util.tree_leaves_with_path(gradient(params)):
        assert jnp.isfinite(grad).all() and jnp.abs(grad).max() > 0, jax.tree_util.keystr(path)


def test_one_set_of_weights_serves_several_sizes(params, output):
    assert output.shape == (3, 16, 16, 3)
    larger = apply(params, images(32), T, texts())
    assert larger.shape == (3, 32, 32, 3)
    assert jnp.isfinite(larger).all()


def test_sides_must_divide(params):
    with pytest.raises(ValueError, match="sides must divide by 4"):
        apply(params, images(18), T, texts())


def test_what_stands_at_padding_changes_nothing(params, output):
    text = texts()
    text = text._replace(tokens=jnp.where(text.mask[..., None], text.tokens, 7.0))
    np.testing.assert_allclose(apply(params, images(), T, text), output, atol=1e-5)


def test_neighbours_more_padding_and_the_type_of_t_change_nothing(params, output):
    for i in range(3):
        text = jax.tree.map(lambda a, i=i: a[i : i + 1], texts(length=9))
        t = T[i : i + 1].astype(jnp.float32)
        alone = apply(params, images()[i : i + 1], t, text)
        np.testing.assert_allclose(alone[0], output[i], atol=1e-5)


def test_text_and_time_condition(params, output):
    text = texts()
    other = text._replace(tokens=text.tokens.at[:, 0].multiply(-1.0))
    moved = jnp.abs(apply(params, images(), T, other) - output).max((1, 2, 3))
    assert moved[0] > 1e-2 and moved[1] > 1e-2
    assert moved[2] < 1e-5  # the null text has no words to change
    moved = jnp.abs(apply(params, images(), T + 20, text) - output).max((1, 2, 3))
    assert moved.min() > 1e-2


def test_the_order_of_the_words_reaches_the_image_by_their_embeddings_alone(params, output):
    text = texts()
    turned = Text(text.tokens[:, ::-1], text.mask[:, ::-1])
    np.testing.assert_allclose(apply(params, images(), T, turned), output, atol=1e-5)


def test_cross_attention_reaches_beyond_the_pooled_text(params, output):
    """Two words changed so that their sum, all that the pooled text sees, stays."""
    text, change = texts(), jnp.linspace(-2.0, 2.0, TINY.text_dim)
    tokens = text.tokens.at[:2, 0].add(change).at[:2, 1].add(-change)
    moved = jnp.abs(apply(params, images(), T, text._replace(tokens=tokens)) - output)
    assert moved[:2].max((1, 2, 3)).min() > 1e-3


def test_bfloat16_activations(params, output):
    config = dataclasses.replace(TINY, dtype="bfloat16")
    got = apply(params, images(), T, texts(), config)
    assert got.dtype == jnp.float32
    error = jnp.abs(got - output).mean() / jnp.abs(output).mean()
    assert 1e-5 < error < 0.05
    shapes = jax.eval_shape(UNet(config).init, jax.random.key(0), images(), T, texts())
    assert all(p.dtype == jnp.float32 for p in jax.tree.leaves(shapes))


def test_without_attention():
    config = dataclasses.replace(
        TINY, attention_levels=(), channel_mults=(1, 2, 2), down_blocks=(0, 1), up_blocks=(1, 2)
    )
    shapes = jax.eval_shape(UNet(config).init, jax.random.key(0), images(), T, texts())["params"]
    assert not any("attention" in name for name in shapes)
    assert sorted(name for name in shapes if name.startswith(("down", "up", "middle"))) == [
        "down_0", "down_1", "down_1_0", "middle_0", "up_0", "up_0_0", "up_1", "up_1_0", "up_1_1",
    ]  # fmt: skip


def test_folding():
    x = jnp.arange(2 * 4 * 6 * 3.0).reshape(2, 4, 6, 3)
    folded = space_to_depth(x, 2)
    assert folded.shape == (2, 2, 3, 12)
    np.testing.assert_array_equal(folded[1, 1, 2, 3:6], x[1, 2, 5])  # row 0, column 1 of the patch
    np.testing.assert_array_equal(depth_to_space(folded, 2), x)


def test_timestep_embedding_against_numpy():
    got = timestep_embedding(T, 8)
    angles = np.array([3.0, 500.0, 999.0])[:, None] * 10000.0 ** -(np.arange(4) / 4)
    np.testing.assert_allclose(got, np.c_[np.sin(angles), np.cos(angles)], atol=2e-4)


@pytest.mark.parametrize("dtype, atol", [("float32", 1e-4), ("bfloat16", 0.1)])
def test_group_norm_against_numpy(dtype, atol):
    x = (3.0 + jax.random.normal(jax.random.key(0), (2, 4, 4, 16))).astype(dtype)
    film = jax.random.normal(jax.random.key(1), (2, 32))
    scale, bias = jnp.linspace(0.5, 2.0, 16), jnp.linspace(-1.0, 1.0, 16)
    got = GroupNorm().apply({"params": {"scale": scale, "bias": bias}}, x, film)
    assert got.dtype == jnp.dtype(dtype)
    groups = np.asarray(x, np.float64).reshape(2, 16, 2, 8)
    mean, std = groups.mean((1, 3), keepdims=True), groups.std((1, 3), keepdims=True)
    normal = ((groups - mean) / std).reshape(2, 4, 4, 16) * np.float64(scale) + np.float64(bias)
    film = np.asarray(film, np.float64)[:, None, None]
    want = normal * (1 + film[..., :16]) + film[..., 16:]
    np.testing.assert_allclose(np.asarray(got, np.float64), want, atol=atol)


def test_group_norm_of_a_constant_is_finite():
    x = jnp.full((1, 4, 4, 16), 1e3)
    variables = GroupNorm().init(jax.random.key(0), x)
    value, grad = jax.value_and_grad(lambda x: GroupNorm().apply(variables, x).sum())(x)
    assert jnp.isfinite(value) and jnp.isfinite(grad).all()
