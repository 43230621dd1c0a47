"""Adam, and Shampoo as DreamFusion used it; both skip steps that are not finite.

Gradients are never repaired: a step whose loss, gradient or change is not finite leaves the
parameters and the optimizer alone and is counted in the optimizer's state, so the counts are part
of a checkpoint.
"""

from collections.abc import Mapping
from typing import Annotated, Any, NamedTuple, Protocol, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, PyTree

from dreamjax.settings import Positive, Range, Share, settings
from dreamjax.training.descent import Descent
from dreamjax.training.shampoo import SMALLEST_EPS, scale_by_shampoo

SKIPPED_IN_ROW = 20  # steps in a row that may not be skipped: the run is stopped
Decay = Annotated[float, Range(0.0, 1.0, below=True)]  # of a running mean; 0 keeps nothing


class Optimizer(Protocol):
    """What turns gradients into steps."""

    def make(self, total_steps: int) -> optax.GradientTransformationExtraArgs:
        """Return the optimizer of a run of `total_steps`, made by `skip_nonfinite`.

        `apply_gradients` uses it.
        """
        ...


@settings
class Adam(Descent):
    """Adam (arXiv 1412.6980), with decoupled weight decay (arXiv 1711.05101)."""

    b1: Decay = 0.9  # decay of the mean of gradients
    b2: Decay = 0.999  # decay of the mean of their squares
    eps: Positive = 1e-8  # added to the root of the latter

    def make(self, total_steps: int) -> optax.GradientTransformationExtraArgs:
        """Return the optimizer of a run of `total_steps`; use it through `apply_gradients`."""
        direction = optax.scale_by_adam(b1=self.b1, b2=self.b2, eps=self.eps)
        return skip_nonfinite(self.along(direction, total_steps))


@settings
class Shampoo(Descent):
    """Shampoo (arXiv 1802.09568); the defaults are DreamFusion's."""

    learning_rate: Positive = 1e-4  # the highest rate, reached at the end of the warm-up
    final_learning_rate: Positive | None = 1e-6  # at the end of the cosine; None: stays constant
    warmup: Share = 0.2  # fraction of the run in which the rate rises
    b1: Decay = 0.9  # momentum, a plain sum, looked at ahead (Nesterov)
    b2: Decay = 0.9  # decay of the statistics, the means of G G^T
    eps: Annotated[float, Range(SMALLEST_EPS, 1.0)] = 1e-6  # ridge, times the largest eigenvalue
    block_size: Annotated[int, Range(1, 4096)] = 128  # largest side of a block of weights
    root: Annotated[int, Range(1, 16)] = 2  # statistics are raised to -1 / root (exponent override)

    def make(self, total_steps: int) -> optax.GradientTransformationExtraArgs:
        """Return the optimizer of a run of `total_steps`; use it through `apply_gradients`."""
        direction = scale_by_shampoo(self.b1, self.b2, self.eps, self.block_size, self.root)
        return skip_nonfinite(self.along(direction, total_steps))


class SkipState(NamedTuple):
    """The inner optimizer's state, and how many steps were skipped."""

    inner: PyTree
    skipped: Int[Array, ""]
    skipped_in_row: Int[Array, ""]


def skip_nonfinite(inner: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """Wrap `inner` so that its `update(..., ok=bool)` does nothing but count where `ok` is false.

    So it does where what `inner` makes of the gradient is not finite.

    optax's `apply_if_finite` sees only the gradient, and gives in after a number of errors.
    """

    def init(params):
        # Two arrays: a buffer cannot be donated twice.
        return SkipState(inner.init(params), jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32))

    def update(updates, state, params=None, *, ok: Array):
        new_updates, new_inner = inner.update(updates, state.inner, params)
        ok = ok & jnp.isfinite(optax.tree.norm(new_updates))
        new_updates = jax.tree.map(lambda u: jnp.where(ok, u, jnp.zeros_like(u)), new_updates)
        new_inner = jax.tree.map(lambda new, old: jnp.where(ok, new, old), new_inner, state.inner)
        miss = jnp.where(ok, 0, 1).astype(jnp.int32)
        return new_updates, SkipState(
            new_inner, state.skipped + miss, (state.skipped_in_row + 1) * miss
        )

    return optax.GradientTransformationExtraArgs(init, cast(Any, update))


def apply_gradients(
    tx: optax.GradientTransformationExtraArgs,
    grads: PyTree,
    loss: Float[Array, ""],
    params: PyTree,
    opt_state: SkipState,
) -> tuple[PyTree, SkipState, dict[str, Array]]:
    """Take one step, or skip it where the loss or the gradient's norm is not finite.

    `grads` and `loss` must already be reduced over devices, so that all of them decide alike.
    Returns params, opt_state, and metrics: `grad_norm` (before clipping), `skipped` (steps so far),
    `skipped_in_row`.
    """
    norm = optax.tree.norm(grads)
    ok = jnp.isfinite(norm) & jnp.isfinite(loss)
    updates, state = tx.update(grads, opt_state, params, ok=ok)
    params, state = optax.apply_updates(params, updates), cast(SkipState, state)
    metrics = {
        "grad_norm": norm,
        "skipped": state.skipped,
        "skipped_in_row": state.skipped_in_row,
    }
    return params, state, metrics


def skipped_in_row(metrics: Mapping[str, Any]) -> Int[np.ndarray, " steps"]:
    """How many steps in a row up to each had been skipped; 0 where metrics do not say."""
    return np.atleast_1d(np.asarray(metrics.get("skipped_in_row", 0)))
