"""Shampoo against float64 NumPy and closed forms, and on ill-conditioned quadratics."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dreamjax.training.optimizer import Shampoo, apply_gradients
from dreamjax.training.shampoo import (
    blocks_of,
    inverse_roots,
    largest_eigenvalue,
    merged_shape,
    scale_by_shampoo,
)

pytestmark = pytest.mark.usefixtures("quick_compilation")


class NumpyShampoo:
    """One parameter's in float64, a dictionary of blocks, roots from singular values."""

    def __init__(self, shape, b1=0.9, b2=0.9, eps=1e-6, block_size=128, root=2):
        self.b1, self.b2, self.eps, self.root = b1, b2, eps, root
        self.size, self.merged = block_size, self.merge(shape)
        self.momentum = np.zeros(shape)
        self.s = {}

    @staticmethod
    def merge(shape):
        merged, product = [], 1
        for side in shape:
            if product * side > 4096:
                merged, product = merged + [product] * (product > 1), 1
            product *= side
        return merged + [product] * (product > 1) or [1]

    def power(self, s):
        u, values, _ = np.linalg.svd(s, hermitian=True)
        return u @ np.diag((values + self.eps * max(values[0], 1e-6)) ** (-1 / self.root)) @ u.T

    def step(self, g):
        g = np.float64(g).reshape(self.merged)
        u = np.empty_like(g)
        letters = "abcd"[: g.ndim]
        for corner in np.ndindex(*(-(-side // self.size) for side in g.shape)):
            where = tuple(slice(i * self.size, (i + 1) * self.size) for i in corner)
            out = block = g[where]
            for axis, letter in enumerate(letters):
                other = letters.replace(letter, "z")
                new = np.einsum(f"{letters},{other}->{letter}z", block, block)
                old = self.s.get((corner, axis), self.eps * np.eye(len(new)))
                s = self.s[corner, axis] = self.b2 * old + (1 - self.b2) * new
                out = np.einsum(f"{letters},{letter}z->{other}", out, self.power(s))
            u[where] = out
        u *= np.sqrt(np.count_nonzero(g)) / (np.linalg.norm(u) + 1e-16)
        u = u.reshape(self.momentum.shape)
        self.momentum = self.b1 * self.momentum + u
        return u + self.b1 * self.momentum


# The parameter's shape, its merged shape and the sides of its blocks of at most 128.
SHAPES = {
    (): ((1,), [(1,)]),
    (1,): ((1,), [(1,)]),
    (7,): ((7,), [(7,)]),
    (130,): ((130,), [(128,), (2,)]),
    (130, 40): ((130, 40), [(128, 40), (2, 40)]),
    (200, 140): ((200, 140), [(128, 128), (128, 12), (72, 128), (72, 12)]),
    (1, 130, 1, 64): ((130, 64), [(128, 64), (2, 64)]),
    (3, 3, 16, 30): ((144, 30), [(128, 30), (16, 30)]),
    (70, 70, 65): ((70, 70, 65), [(70, 70, 65)]),
    (5000,): ((5000,), [(128,)] * 39 + [(8,)]),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_axes_are_merged_then_cut(shape):
    merged, sides = SHAPES[shape]
    assert merged_shape(shape) == tuple(NumpyShampoo.merge(shape)) == merged
    blocks = blocks_of(merged, 128)
    assert [np.zeros(merged)[block].shape for block in blocks] == sides
    covered = np.zeros(merged)
    for block in blocks:
        covered[block] += 1
    np.testing.assert_array_equal(covered, 1)


# What float32 costs: in directions that no gradient had yet, all that is left of S is the ridge.
SETTINGS = [
    ({"block_size": 66}, 2e-2),
    ({"block_size": 66, "root": 4, "b1": 0.5, "b2": 0.7, "eps": 1e-3}, 2e-5),
]


@pytest.mark.parametrize("settings, bound", SETTINGS, ids=["dreamfusions", "others"])
def test_steps_match_numpy(settings, bound):
    rng = np.random.default_rng(0)
    shapes = [(), (7,), (130,), (70, 70), (3, 3, 10, 50), (66, 63, 66)]
    # Gradients whose scale changes between steps and whose sides are correlated.
    mix = {n: rng.normal(size=(n, n)) / np.sqrt(n) + np.eye(n) for s in shapes for n in s[-1:]}
    tx = scale_by_shampoo(**settings)
    state = tx.init([jnp.zeros(shape) for shape in shapes])
    references = [NumpyShampoo(shape, **settings) for shape in shapes]
    update = jax.jit(tx.update)
    for i in range(5):
        grads = [3.0**i * rng.normal(size=shape) for shape in shapes]
        grads = [np.float32(g @ mix[g.shape[-1]] if g.ndim else g) for g in grads]
        grads[1][2] = 0.0  # has no sign
        found, state = update([jnp.asarray(g) for g in grads], state)
        for reference, u, g, shape in zip(references, found, grads, shapes, strict=True):
            want = reference.step(g)
            error = np.abs(np.float64(u) - want).max() / np.abs(want).max()
            assert error < (bound if shape else 1e-6), (i, shape, error)


@pytest.mark.parametrize("root, power", [(2, -1.0), (4, 0.0), (8, 0.5)])
def test_first_step_raises_singular_values_to_a_power(root, power):
    """U V^T for the original Shampoo (root 4); the paper's 2 inverts them: 1 - 4 / root."""
    rng = np.random.default_rng(2)
    left, right = (np.linalg.qr(rng.normal(size=(65, 65)))[0] for _ in range(2))
    values = np.geomspace(0.3, 3.0, 65)
    g = jnp.float32(left * values @ right.T)
    want = left * values**power @ right.T
    want *= np.sqrt(g.size) / np.linalg.norm(want)
    tx = scale_by_shampoo(b1=0.0, b2=0.0, eps=1e-6, root=root)
    for update in (tx.update, jax.jit(tx.update)):
        u, _ = update(g, tx.init(g))
        np.testing.assert_allclose(u, want, rtol=0, atol=2e-4 * np.abs(want).max())


def test_the_steps_length_is_that_of_sign_descent():
    """Whatever the gradient's scale; with the momentum of a steady gradient ten times that."""
    rng = np.random.default_rng(3)
    grads = jnp.float32(rng.normal(size=(70, 60)))
    tx = scale_by_shampoo()
    update = jax.jit(tx.update)
    for scale in (1e-6, 1.0, 1e6):
        u, _ = update(scale * grads, tx.init(grads))
        np.testing.assert_allclose(jnp.linalg.norm(u), 1.9 * np.sqrt(4200), rtol=1e-4)
    state = tx.init(jnp.ones(1))
    for _ in range(100):
        u, state = update(jnp.full(1, -4.0), state)
    np.testing.assert_allclose(u, -10.0, rtol=1e-3)


def test_no_gradient_no_step_and_a_rank_of_one_is_finite():
    params = {"w": jnp.zeros((70, 60)), "b": jnp.zeros(128)}
    tx = scale_by_shampoo(b1=0.0)
    still = jax.tree.map(jnp.zeros_like, params)
    update = jax.jit(tx.update)
    u, state = update(still, tx.init(params))
    jax.tree.map(lambda x: np.testing.assert_array_equal(x, 0.0), u)
    ones = jax.tree.map(jnp.ones_like, params)
    for scale in (1e-3, 1e3, 1e-3):
        u, state = update(jax.tree.map(lambda x: scale * x, ones), state)  # noqa: B023
        jax.tree.map(lambda x: np.testing.assert_allclose(x, 1.0, rtol=3e-2), u)


def spread(rng, n, smallest):
    """A matrix of condition 1 / smallest whose axes are none of ours."""
    q, _ = np.linalg.qr(rng.normal(size=(n, n)))
    return jnp.float32(q * np.geomspace(smallest, 1.0, n) @ q.T)


@pytest.mark.parametrize("shape, root", [((128, 1), 2), ((70, 60), 4)], ids=["vector", "matrix"])
def test_an_ill_conditioned_quadratic(shape, root):
    """tr(A W B W^T) / 2 of condition 1e6: far below what the bare graft, sign descent, reaches.

    With the exponents that whiten: the paper's on both sides of a matrix goes beyond that.
    """
    rng = np.random.default_rng(4)
    a, b = (spread(rng, n, 1e-6 ** (np.log(n) / np.log(np.prod(shape)))) for n in shape)
    start = jnp.float32(rng.normal(size=shape))
    steps = 150
    rate = optax.cosine_decay_schedule(0.03, steps)

    def run(direction):
        tx = optax.chain(direction, optax.scale_by_learning_rate(rate))

        def step(carry, _):
            w, state = carry
            loss, g = jax.value_and_grad(lambda w: 0.5 * jnp.sum(a @ w @ b * w))(w)
            u, state = tx.update(g, state)
            return (w + u, state), loss

        return jax.jit(lambda w: jax.lax.scan(step, (w, tx.init(w)), None, steps)[1])(start)

    graft = optax.chain(
        optax.stateless(lambda g, _: jax.tree.map(jnp.sign, g)), optax.trace(0.9, nesterov=True)
    )
    shampoo, bare = run(scale_by_shampoo(root=root)), run(graft)
    assert shampoo[-1] < 1e-2 * bare[-1] < 1e-2 * bare[0]


def test_roots_of_matrices_that_are_hard():
    """Low rank, gaps, repeated eigenvalues, nothing at all: the iteration ends where it should."""
    rng = np.random.default_rng(6)
    q, _ = np.linalg.qr(rng.normal(size=(64, 64)))
    spectra = [np.r_[np.ones(k), np.zeros(64 - k)] for k in (0, 1, 9, 40, 64)]
    spectra += [np.geomspace(1e-8, 1.0, 64), np.r_[1.0, np.full(63, 1e-6)]]
    s = np.float32([q * spectrum @ q.T for spectrum in spectra])
    s = np.concatenate([s, 1e-9 * s, 1e9 * s])
    largest = largest_eigenvalue(jnp.asarray(s))
    true = np.linalg.eigvalsh(np.float64(s))[:, -1]
    np.testing.assert_allclose(largest, true, rtol=0.02, atol=1e-15)
    true = np.maximum(true, 1e-6)[:, None, None]
    for root, eps, bound in [(2, 1e-6, 0.8), (3, 1e-6, 0.8), (3, 1e-3, 1e-3)]:
        found = inverse_roots(list(jnp.asarray(s)), eps, root)
        # P^root (S + ridge) = I, but for the rounding of S beside the ridge.
        product = np.linalg.matrix_power(np.float64(found), root) @ (s + eps * true * np.eye(64))
        assert np.abs(product - np.eye(64)).max() < bound, (root, eps)


def test_the_optimizer_takes_it_in_adams_place():
    """Clipped, warmed up and decayed like Adam, and left alone by a step that is not finite."""
    config = Shampoo(
        learning_rate=0.03, final_learning_rate=0.001, warmup=0.5, b1=0.8, b2=0.7, eps=1e-4,
        clip_norm=1.0, block_size=16, root=4,
    )  # fmt: skip
    rng = np.random.default_rng(5)
    params = {"b": jnp.float32(rng.normal(size=5)), "w": jnp.float32(rng.normal(size=(70, 60)))}
    want = {k: np.float64(v) for k, v in params.items()}
    settings = {"b1": 0.8, "b2": 0.7, "eps": 1e-4, "block_size": 16, "root": 4}
    references = {k: NumpyShampoo(v.shape, **settings) for k, v in params.items()}
    tx = config.make(total_steps=4)
    state = tx.init(params)
    step = jax.jit(lambda g, x, s: apply_gradients(tx, g, jnp.float32(1), x, s))
    for rate in (0.015, None, 0.03, 0.03, 0.0155):
        grads = {k: np.float32(rng.normal(size=v.shape)) for k, v in params.items()}
        if rate is None:
            grads["b"][1] = np.nan
        else:
            norm = np.sqrt(sum(np.sum(np.float64(g) ** 2) for g in grads.values()))
            for k, reference in references.items():
                want[k] -= rate * reference.step(grads[k] / norm)
        params, state, _ = step(jax.tree.map(jnp.asarray, grads), params, state)
    for k, value in want.items():
        np.testing.assert_allclose(params[k], value, rtol=0, atol=1e-4)
    assert state.skipped == 1
