"""The general ADM UNet: published sizes, its parts against NumPy, its conditioning."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamjax.errors import UserError
from dreamjax.nets import adm
from dreamjax.nets.adm import ADM, ADMClassifier, ADMConfig, imagenet, parameter_count

pytestmark = pytest.mark.usefixtures("quick_compilation")
TINY = ADMConfig(
    image_size=8,
    channels=32,
    channel_mults=(1, 2),
    res_blocks=1,
    attention_sizes=(4,),
    head_dim=16,
    resblock_updown=True,
    num_classes=5,
    learns_variance=True,
)


@pytest.mark.parametrize(
    ("size", "classes", "count"),
    [
        (64, 1000, 295_904_454),  # 296M in the paper's table 12
        (128, 1000, 421_529_606),  # 422M
        (256, 1000, 553_838_086),  # 554M
        (256, 0, 552_814_086),
    ],
)
def test_the_published_networks_have_their_size(size, classes, count):
    config = imagenet(size, classes)
    assert parameter_count(ADM(config), config) == count


def perturbed(params):
    """Parameters whose zero-initialised parts are not zero."""
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(9), len(leaves))
    moved = [x + 0.05 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)]
    return jax.tree.unflatten(tree, moved)


@pytest.mark.slow
@pytest.mark.parametrize("as_published", [True, False])
def test_it_depends_on_image_time_and_class(as_published):
    config = dataclasses.replace(TINY, resblock_updown=as_published, scale_shift_norm=as_published)
    net = ADM(config)
    x = jax.random.normal(jax.random.key(0), (2, 8, 8, 3))
    t, label = jnp.array([3.0, 700.0]), jnp.array([0, 4])
    params = jax.jit(net.init)(jax.random.key(1), x, t, label)
    apply = jax.jit(net.apply)
    assert not np.any(apply(params, x, t, label))  # zero at the start
    params = perturbed(params)
    out = apply(params, x, t, label)
    assert out.shape == (2, 8, 8, 6) and out.dtype == jnp.float32
    for other in ((x + 0.1, t, label), (x, t + 50, label), (x, t, label[::-1])):
        assert np.abs(apply(params, *other) - out).max() > 1e-3
    # Examples do not see each other.
    beside = apply(params, x.at[0].set(0.3), t.at[0].set(9.0), label.at[0].set(2))
    np.testing.assert_allclose(beside[1], out[1], atol=1e-5)


def test_both_orders_of_heads():
    rng = np.random.default_rng(0)
    qkv = rng.standard_normal((2, 4, 96)).astype(np.float32)  # 32 channels, 2 heads of 16
    for first in (False, True):
        config = ADMConfig(image_size=8, channels=32, head_dim=16, split_qkv_first=first)
        q, k, v = adm.split_heads(config, jnp.asarray(qkv))
        for head in range(2):
            start = 16 * head if first else 48 * head
            step = 32 if first else 16
            for i, part in enumerate((q, k, v)):
                cut = slice(start + i * step, start + i * step + 16)
                np.testing.assert_array_equal(part[:, :, head], qkv[:, :, cut])


def test_halving_and_doubling():
    x = np.random.default_rng(1).standard_normal((1, 4, 6, 2)).astype(np.float32)
    mean = (x[:, ::2, ::2] + x[:, 1::2, ::2] + x[:, ::2, 1::2] + x[:, 1::2, 1::2]) / 4
    np.testing.assert_allclose(adm.halve(x), mean, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(adm.double(jnp.asarray(x)), np.kron(x, np.ones((1, 2, 2, 1))))


def test_the_published_timestep_embedding():
    t, half = np.array([0.0, 1.0, 999.0]), 8
    freqs = np.exp(-np.log(10000.0) * np.arange(half) / half)
    angles = t[:, None] * freqs
    expected = np.concatenate([np.cos(angles), np.sin(angles)], axis=-1)
    found = adm.timestep_embedding(jnp.asarray(t), 2 * half)
    np.testing.assert_allclose(found, expected, atol=1e-4)  # float32 angles up to 999


@pytest.mark.slow
def test_the_classifier_has_a_gradient_with_respect_to_the_image():
    config = ADMConfig(8, channels=32, channel_mults=(1, 2), res_blocks=1, attention_sizes=(4,))
    net = ADMClassifier(config, out_classes=7)
    x = jax.random.normal(jax.random.key(0), (3, 8, 8, 3))
    t = jnp.array([0, 10, 999])
    params = perturbed(jax.jit(net.init)(jax.random.key(1), x, t))

    @jax.jit
    def log_probability(x):
        logits = jax.nn.log_softmax(net.apply(params, x, t))
        return logits[:, 2].sum(), logits

    (_, logits), gradient = jax.value_and_grad(log_probability, has_aux=True)(x)
    assert logits.shape == (3, 7)
    assert (np.abs(gradient).max((1, 2, 3)) > 1e-5).all()


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: imagenet(512), "64, 128 and 256 pixels; got 512"),
        (lambda: ADMConfig(12, channel_mults=(1, 2, 4, 8)), "12 must divide by 8"),
        (lambda: ADMConfig(8, channels=40, channel_mults=(1,)), "40 channels"),
        (lambda: ADMConfig(8, channels=96, channel_mults=(1,), head_dim=64), "heads of 64"),
        (lambda: ADMConfig(8, channels=32, channel_mults=(1,), heads=3), "3 heads"),
        (
            lambda: ADM(TINY).init(jax.random.key(0), jnp.zeros((1, 8, 8, 3)), jnp.zeros(1)),
            "5 classes was given no",
        ),
    ],
)
def test_mistakes_are_named(make, says):
    with pytest.raises(UserError, match=says):
        make()
