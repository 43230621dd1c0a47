"""Shampoo (arXiv 1802.09568) as DreamFusion used it: every side of a block of weights whitened.

Symbols: G [d_1, ..., d_k] is one block of one parameter's gradient, S_i [d_i, d_i] the running mean
of its Gram matrix along axis i, lambda S_i's largest eigenvalue, and

    P_i = (S_i + eps max(lambda, 1e-6) I)^(-1 / root),    U = P_1 G P_2 for a matrix, and so on.

DreamFusion names the settings of google-research's `distributed_shampoo` (arXiv 2002.09018), whose
conventions these are where the papers leave a choice:

- axes beside each other are merged up to 4096 elements, so that a bias and a small kernel are one
  vector; then every axis is cut into blocks of at most `block_size`, the last one shorter;
- vectors are preconditioned too, and a scalar is a vector of one;
- S_i starts at eps I and becomes b2 S_i + (1 - b2) Gram, without correction for the start;
- `root` is the exponent override: the same for any number of axes, so that 2 on both sides of a
  matrix inverts its singular values (the original is 2 k);
- grafting SQRT_N: U of a whole parameter is brought to the norm of its gradient's signs, so that
  the step is as long as one of sign descent;
- momentum is a plain sum, m <- b1 m + U, looked at ahead (Nesterov) as U + b1 m: the rate acts
  1 / (1 - b1) times stronger than Adam's;
- roots are taken at every step, by its coupled Newton iteration: products of matrices alone, which
  every device has in float32. (An eigendecomposition is no more accurate there, and several at once
  can wait for each other for ever in jaxlib 0.10.2 on a CPU with few cores.)

Left out: its first 5 steps with the grafted update alone (a warm-up makes them immaterial), other
grafts, roots at every n-th step only, axes over 4096 left alone (blocks bound the cost here), old
roots in place of those that did not converge (with eps of 1e-6 or more they do), weight decay
inside of the momentum, quantised and sharded states.
"""

import itertools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PyTree

MERGE_UP_TO = 4096
SMALLEST_EPS = 1e-6
SMALLEST_LAMBDA = 1e-6  # where all gradients so far are next to nothing
HIGHEST = jax.lax.Precision.HIGHEST


class ShampooState(NamedTuple):
    """The momentum, and S_i of each axis of each block of each parameter in its leaves' order."""

    momentum: PyTree
    statistics: tuple[tuple[tuple[Float[Array, "_ _"], ...], ...], ...]


def scale_by_shampoo(
    b1: float = 0.9, b2: float = 0.9, eps: float = 1e-6, block_size: int = 128, root: int = 2
) -> optax.GradientTransformation:
    """Return the transformation above; `optax.scale_by_learning_rate` belongs behind it.

    Roots in float32 may not converge for an eps below `SMALLEST_EPS`.
    """

    def init(params):
        statistics = tuple(
            tuple(tuple(eps * jnp.eye(side) for side in block.shape) for block in split(p))
            for p in jax.tree.leaves(params)
        )
        return ShampooState(jax.tree.map(jnp.zeros_like, params), statistics)

    def update(updates, state, params=None):
        del params
        grads, structure = jax.tree.flatten(updates)
        blocks = [split(g.astype(jnp.float32)) for g in grads]
        statistics = tuple(
            tuple(
                tuple(b2 * s + (1 - b2) * gram(block, axis) for axis, s in enumerate(sides))
                for block, sides in zip(one, old, strict=True)
            )
            for one, old in zip(blocks, state.statistics, strict=True)
        )
        steps = []
        for g, one, roots in zip(grads, blocks, inverse_roots(statistics, eps, root), strict=True):
            direction = join([precondition(*pair) for pair in zip(one, roots, strict=True)], g)
            steps.append(graft(direction, g).astype(g.dtype))
        steps = structure.unflatten(steps)
        momentum = jax.tree.map(lambda m, u: b1 * m + u, state.momentum, steps)
        ahead = jax.tree.map(lambda m, u: u + b1 * m, momentum, steps)
        return ahead, ShampooState(momentum, statistics)

    def split(g):
        shape = merged_shape(g.shape)
        return [g.reshape(shape)[where] for where in blocks_of(shape, block_size)]

    def join(blocks, like):
        shape = merged_shape(like.shape)
        whole = jnp.zeros(shape)
        for where, block in zip(blocks_of(shape, block_size), blocks, strict=True):
            whole = whole.at[where].set(block)
        return whole.reshape(like.shape)

    return optax.GradientTransformation(init, update)


def merged_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Neighbouring axes merged, from the first on, up to `MERGE_UP_TO` elements; no axis of one."""
    merged = [1]
    for side in shape:
        if merged[-1] * side <= MERGE_UP_TO:
            merged[-1] *= side
        else:
            merged.append(side)
    return tuple(side for side in merged if side != 1) or (1,)


def blocks_of(shape: tuple[int, ...], block_size: int) -> list[tuple[slice, ...]]:
    """Where the blocks of an array lie, each axis cut at the multiples of `block_size`."""
    sides = [
        [slice(start, min(start + block_size, side)) for start in range(0, side, block_size)]
        for side in shape
    ]
    return list(itertools.product(*sides))


def gram(g: Float[Array, "..."], axis: int) -> Float[Array, "d d"]:
    """Products of the slices of `g` along `axis` with each other."""
    rows = jnp.moveaxis(g, axis, 0).reshape(g.shape[axis], -1)
    return jnp.matmul(rows, rows.T, precision=HIGHEST)


def inverse_roots(statistics: PyTree, eps: float, root: int) -> PyTree:
    """P_i of every S_i, those of one size together."""
    leaves, structure = jax.tree.flatten(statistics)
    for size in sorted({len(leaf) for leaf in leaves}):
        same = [i for i, leaf in enumerate(leaves) if len(leaf) == size]
        found = _inverse_root(jnp.stack([leaves[i] for i in same]), eps, root)
        for i, p in zip(same, found, strict=True):
            leaves[i] = p
    return structure.unflatten(leaves)


def _inverse_root(s: Float[Array, "n d d"], eps: float, root: int) -> Float[Array, "n d d"]:
    """Coupled Newton: M = H^root (S_i + ridge) z goes to I while H goes to P_i."""
    eye = jnp.eye(s.shape[-1])
    scale = jnp.maximum(largest_eigenvalue(s), SMALLEST_LAMBDA)[:, None, None]
    z = (1 + root) / (2 * scale)

    def improve(_, state):
        m, h = state
        factor = ((root + 1) * eye - m) / root
        h = _product(h, factor)
        for _ in range(root):
            m = _product(factor, m)
        return m, h

    # Eigenvalues near 0, of which eps is the smallest, at least double; at the end digits do.
    steps = max(math.ceil(-math.log2(eps)), 0) + 10
    start = (z * (s + eps * scale * eye), z ** (1 / root) * eye)
    _, h = jax.lax.fori_loop(0, steps, improve, start)
    return 0.5 * (h + jnp.swapaxes(h, 1, 2))


def largest_eigenvalue(s: Float[Array, "n d d"]) -> Float[Array, " n"]:
    """lambda of positive semidefinite matrices: S weighted by S^256, within some per cent below."""

    def normalised(x):
        trace = jnp.trace(x, axis1=1, axis2=2)[:, None, None]
        return x / jnp.maximum(trace, jnp.finfo(jnp.float32).tiny)

    weight = normalised(s)
    for _ in range(8):
        weight = normalised(_product(weight, weight))
    return jnp.sum(weight * s, axis=(1, 2))


def _product(a: Float[Array, "n d d"], b: Float[Array, "n d d"]) -> Float[Array, "n d d"]:
    return jnp.matmul(a, b, precision=HIGHEST)


def precondition(g: Float[Array, "..."], roots: tuple[Float[Array, "_ _"], ...]) -> Array:
    """`g` multiplied by P_i along each axis i."""
    for p in roots:  # each product moves its axis to the end, so that the last restores the order
        g = jnp.tensordot(g, p, axes=(0, 0), precision=HIGHEST)
    return g


def graft(direction: Float[Array, "..."], g: Float[Array, "..."]) -> Float[Array, "..."]:
    """`direction` as long as the signs of `g` (grafting SQRT_N)."""
    return direction * (jnp.linalg.norm(jnp.sign(g)) / (jnp.linalg.norm(direction) + 1e-16))
