"""What every optimizer has beside its own direction: the rate over the run, clipping and decay."""

import jax
import jax.numpy as jnp
import optax
from jaxtyping import PyTree

from dreamjax.settings import NonNegative, Positive, Share, settings


@settings
class Descent:
    """A learning rate that rises linearly, then stays or falls as a cosine; clipping and decay."""

    learning_rate: Positive = 1e-3  # the highest rate, reached at the end of the warm-up
    final_learning_rate: Positive | None = None  # at the end of the cosine; None: stays constant
    warmup: Share = 0.0  # fraction of the run in which the rate rises to its highest
    clip_norm: NonNegative = 0.0  # largest norm of the whole gradient; 0: no clipping
    weight_decay: NonNegative = 0.0  # decoupled, on arrays of two or more dimensions

    def rate(self, total_steps: int) -> optax.Schedule:
        """Return the rate as a function of the steps taken (skipped ones do not count)."""
        peak, warmup = self.learning_rate, round(self.warmup * total_steps)
        if self.final_learning_rate is None:
            after = optax.constant_schedule(peak)
        else:
            after = optax.cosine_decay_schedule(
                peak, max(total_steps - warmup, 1), alpha=self.final_learning_rate / peak
            )
        if warmup == 0:
            return after
        # The first step already moves: rate peak / warmup at count 0, the peak at warmup - 1.
        rise = optax.linear_schedule(peak / warmup, peak, max(warmup - 1, 1))
        return optax.join_schedules([rise, after], [warmup])

    def along(
        self, direction: optax.GradientTransformation, total_steps: int
    ) -> optax.GradientTransformation:
        """Return what clips, follows `direction` and decays, in a run of `total_steps` steps."""
        parts = [_clipped(direction, self.clip_norm) if self.clip_norm > 0 else direction]
        if self.weight_decay > 0:
            parts.append(optax.add_decayed_weights(self.weight_decay, _is_matrix))
        parts.append(optax.scale_by_learning_rate(self.rate(total_steps)))
        return optax.chain(*parts)


def _clipped(direction: optax.GradientTransformation, norm: float) -> optax.GradientTransformation:
    """`direction` of a clipped gradient, with no state beside its own.

    So a checkpoint made without clipping can be gone on with.
    """
    clip = optax.clip_by_global_norm(norm)

    def update(updates, state, params=None):
        clipped, _ = clip.update(updates, optax.EmptyState())
        return direction.update(clipped, state, params)

    return optax.GradientTransformation(direction.init, update)


def _is_matrix(params: PyTree) -> PyTree:
    return jax.tree.map(lambda p: jnp.ndim(p) >= 2, params)
