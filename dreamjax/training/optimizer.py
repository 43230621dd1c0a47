"""Adam or Shampoo with warm-up, cosine decay and clipping, which skips steps that are not finite.

Gradients are never repaired: a step whose loss or gradient is not finite leaves the parameters and
the optimiser alone and is counted in the optimiser's state, so the counts are part of a checkpoint.
"""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from dreamjax.errors import UserError
from dreamjax.training.shampoo import SMALLEST_EPS, scale_by_shampoo


@dataclass(frozen=True)
class ShampooConfig:
    """What Shampoo has beyond b1, b2 and eps: the blocks' largest side, and the exponent -1 / root.

    DreamFusion's; its learning_rate is 1e-4, its b1 and b2 are 0.9 and its eps is 1e-6.
    """

    block_size: int = 128
    root: int = 2

    def __post_init__(self):
        """Refuse settings that cannot be meant; raises ValueError."""
        for name in ("block_size", "root"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, which is out of range")


@dataclass(frozen=True)
class OptimizerConfig:
    """Adam's settings, or Shampoo's where `shampoo` is given, which reads b1, b2 and eps its way.

    The rate rises linearly over `warmup_steps`, then falls as a cosine.
    """

    learning_rate: float = 1e-3
    final_learning_rate: float | None = None  # None: constant after the warm-up
    warmup_steps: int = 0
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    clip_norm: float = 0.0  # of the whole gradient; 0: no clipping
    weight_decay: float = 0.0  # decoupled, on arrays of two or more dimensions
    shampoo: ShampooConfig | None = None  # None: Adam

    def __post_init__(self):
        """Refuse settings that cannot be meant; raises ValueError."""
        for name, good in (
            ("learning_rate", self.learning_rate > 0),
            ("final_learning_rate", (self.final_learning_rate or 0.0) >= 0),
            ("warmup_steps", self.warmup_steps >= 0),
            ("b1", 0 <= self.b1 < 1),
            ("b2", 0 <= self.b2 < 1),
            ("eps", self.eps > 0),
            ("clip_norm", self.clip_norm >= 0),
            ("weight_decay", self.weight_decay >= 0),
        ):
            if not good:
                raise ValueError(f"{name} is {getattr(self, name)}, which is out of range")
        if self.shampoo and self.eps < SMALLEST_EPS:
            raise ValueError(f"eps is {self.eps}: with shampoo it must be {SMALLEST_EPS} or more")


class SkipState(NamedTuple):
    """The inner optimiser's state, and how many steps were skipped."""

    inner: optax.OptState
    skipped: Int[Array, ""]
    skipped_in_row: Int[Array, ""]


def learning_rate(config: OptimizerConfig, total_steps: int) -> optax.Schedule:
    """Return the rate as a function of the count of steps taken (skipped ones do not count)."""
    peak, warmup = config.learning_rate, config.warmup_steps
    if config.final_learning_rate is None:
        after = optax.constant_schedule(peak)
    else:
        after = optax.cosine_decay_schedule(
            peak, max(total_steps - warmup, 1), alpha=config.final_learning_rate / peak
        )
    if warmup == 0:
        return after
    # The first step already moves: rate peak / warmup at count 0, the peak at count warmup - 1.
    rise = optax.linear_schedule(peak / warmup, peak, max(warmup - 1, 1))
    return optax.join_schedules([rise, after], [warmup])


def make_optimizer(
    config: OptimizerConfig, total_steps: int
) -> optax.GradientTransformationExtraArgs:
    """Return the optimiser of a run of `total_steps`; use it through `apply_gradients`."""
    parts = []
    if config.clip_norm > 0:
        parts.append(optax.clip_by_global_norm(config.clip_norm))
    common = {"b1": config.b1, "b2": config.b2, "eps": config.eps}
    if config.shampoo is None:
        parts.append(optax.scale_by_adam(**common))
    else:
        block_size, root = config.shampoo.block_size, config.shampoo.root
        parts.append(scale_by_shampoo(**common, block_size=block_size, root=root))
    if config.weight_decay > 0:
        matrices = lambda params: jax.tree.map(lambda p: jnp.ndim(p) >= 2, params)  # noqa: E731
        parts.append(optax.add_decayed_weights(config.weight_decay, matrices))
    parts.append(optax.scale_by_learning_rate(learning_rate(config, total_steps)))
    return skip_nonfinite(optax.chain(*parts))


def skip_nonfinite(inner: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """Wrap `inner` so that its `update(..., ok=bool)` does nothing but count where `ok` is false.

    optax's `apply_if_finite` sees only the gradient, and gives in after a number of errors.
    """

    def init(params):
        # Two arrays: a buffer cannot be donated twice.
        return SkipState(inner.init(params), jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32))

    def update(updates, state, params=None, *, ok: Array):
        new_updates, new_inner = inner.update(updates, state.inner, params)
        new_updates = jax.tree.map(lambda u: jnp.where(ok, u, jnp.zeros_like(u)), new_updates)
        new_inner = jax.tree.map(lambda new, old: jnp.where(ok, new, old), new_inner, state.inner)
        miss = jnp.where(ok, 0, 1).astype(jnp.int32)
        return new_updates, SkipState(
            new_inner, state.skipped + miss, (state.skipped_in_row + 1) * miss
        )

    return optax.GradientTransformationExtraArgs(init, update)


def apply_gradients(
    tx: optax.GradientTransformationExtraArgs,
    grads,
    loss: Float[Array, ""],
    params,
    opt_state: SkipState,
) -> tuple[object, SkipState, dict[str, Array]]:
    """Take one step, or skip it where the loss or the gradient's norm is not finite.

    `grads` and `loss` must already be reduced over devices, so that all of them decide alike.
    Returns params, opt_state, and metrics: `grad_norm` (before clipping), `skipped` (steps so far),
    `skipped_in_row`.
    """
    norm = optax.tree.norm(grads)
    ok = jnp.isfinite(norm) & jnp.isfinite(loss)
    updates, opt_state = tx.update(grads, opt_state, params, ok=ok)
    params = optax.apply_updates(params, updates)
    metrics = {
        "grad_norm": norm,
        "skipped": opt_state.skipped,
        "skipped_in_row": opt_state.skipped_in_row,
    }
    return params, opt_state, metrics


def check_skipped(metrics, step: int, limit: int = 20) -> None:
    """Stop a run of which `limit` steps in a row were skipped; `metrics` may be stacked over steps.

    Raises UserError.
    """
    in_row = int(jnp.max(metrics["skipped_in_row"]))
    if in_row >= limit:
        raise UserError(
            f"{in_row} steps in a row up to step {step} had a loss or gradient that is not finite: "
            "lower optimizer.learning_rate or set optimizer.clip_norm; JAX_DEBUG_NANS=True names "
            "the first operation that made a NaN"
        )
