"""What a run carries from step to step, as plain pytrees; `step` counts finished steps.

No random keys are kept: a step draws from `fold_in(base_key, step)`, so a resumed run repeats the
uninterrupted one.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int


class PriorState(NamedTuple):
    """The state of a network being trained, with the moving average of its parameters."""

    step: Int[Array, ""]
    params: Any
    ema: Any
    opt_state: optax.OptState


def init_prior_state(params, tx: optax.GradientTransformation) -> PriorState:
    """Return the state before the first step; the average starts as a copy of `params`."""
    # A true copy: both are donated to the step, and one buffer cannot be donated twice.
    return PriorState(
        jnp.zeros((), jnp.int32), params, jax.tree.map(jnp.array, params), tx.init(params)
    )


def ema_update(ema, params, decay: float, step: Int[Array, ""]):
    """Return the moving average after `step` finished steps.

    The decay warms up as min(decay, (1 + step) / (10 + step)), so that the random start is
    forgotten early on; leaves keep the dtype of `ema`.
    """
    step = jnp.asarray(step, jnp.float32)
    keep: Float[Array, ""] = jnp.minimum(decay, (1 + step) / (10 + step))
    return jax.tree.map(lambda e, p: (e + (1 - keep) * (p - e)).astype(e.dtype), ema, params)
