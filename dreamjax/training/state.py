"""What the training of a network carries from step to step, as a plain pytree.

No random keys are kept: a step draws from `fold_in(base_key, step)`, so a resumed run repeats the
uninterrupted one.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PyTree


class NetState(NamedTuple):
    """A network in training: finished steps, parameters, their moving average, the optimizer.

    `memory` is what a loss remembers of earlier steps; most have none.
    """

    step: Int[Array, ""]
    params: PyTree
    ema: PyTree
    opt_state: PyTree
    memory: PyTree = ()


def init_state(params: PyTree, tx: optax.GradientTransformation, memory: PyTree = ()) -> NetState:
    """Return the state before the first step; the average starts as a copy of `params`."""
    # A true copy: both are donated to the step, and one buffer cannot be donated twice.
    ema = jax.tree.map(jnp.array, params)
    return NetState(jnp.zeros((), jnp.int32), params, ema, tx.init(params), memory)


def ema_update(ema: PyTree, params: PyTree, decay: float, step: Int[Array, ""]) -> PyTree:
    """Return the moving average after `step` finished steps.

    The decay warms up as min(decay, (1 + step) / (10 + step)), so that the random start is
    forgotten early on; leaves keep the dtype of `ema`.
    """
    step = jnp.asarray(step, jnp.float32)
    keep: Float[Array, ""] = jnp.minimum(decay, (1 + step) / (10 + step))
    return jax.tree.map(lambda e, p: (e + (1 - keep) * (p - e)).astype(e.dtype), ema, params)
