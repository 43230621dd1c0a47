"""LoRA (arXiv 2106.09685): changes of low rank to a network's kernels, as a function of parameters.

A kernel [*K, I, O], of a linear map or of a convolution over K, becomes

    kernel + scale * down up,  with down [*K, I, R] and up [R, O].

A network needs no change for it: it is applied with the merged parameters, and gradients reach
`down` and `up` through these.

The factors are a tree of the modules that have them, each with {"down", "up"} in place of its
{"kernel", ...}.
"""

from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array, Key, PyTree

Path = tuple[str, ...]  # of a module in a tree of parameters


def init(key: Key[Array, ""], params: PyTree, rank: int, wanted: Callable[[Path], bool]) -> PyTree:
    """Factors of the kernels of the modules that are `wanted`, which change nothing yet.

    `down` is normal with standard deviation 1 / rank, `up` is 0 (as in diffusers' layers).
    """
    flat = cast(dict[Path, Array], flatten_dict(params))
    kernels = [path[:-1] for path in flat if path[-1] == "kernel" and wanted(path[:-1])]
    factors = {}
    for number, module in enumerate(sorted(kernels)):
        shape = flat[(*module, "kernel")].shape
        noise = jax.random.normal(jax.random.fold_in(key, number), (*shape[:-1], rank))
        factors[(*module, "down")] = noise / rank
        factors[(*module, "up")] = jnp.zeros((rank, shape[-1]))
    return unflatten_dict(factors)


def merge(params: PyTree, factors: PyTree, scale: float = 1.0) -> PyTree:
    """The parameters with every kernel that has factors changed by `scale` times their product."""
    flat, found = (cast(dict[Path, Any], flatten_dict(tree)) for tree in (params, factors))
    for *module, leaf in found:
        if leaf == "down":
            down, up = (found[(*module, name)] for name in ("down", "up"))
            change = jnp.matmul(down, up, precision=jax.lax.Precision.HIGHEST)
            flat[(*module, "kernel")] = flat[(*module, "kernel")] + scale * change
    return unflatten_dict(flat)
