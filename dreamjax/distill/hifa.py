"""SDS with annealed t and rescaled guidance, as HiFA has it (arXiv 2305.18766).

t falls with the root of the run's fraction, the same for all draws, so that coarse things are
settled first and once. Guided predictions are brought back to the spread of the conditional ones
(arXiv 2305.08891), which large scales overexpose. The loss is in z_0: the residual is z_0 less the
prediction of it. HiFA's loss of decoded pictures is left out.
"""

from typing import Annotated

import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from dreamjax.clock import Clock, Ramp
from dreamjax.diffusion.guidance import rescaled
from dreamjax.distill.objective import Frozen
from dreamjax.distill.sds import Noised, Sds
from dreamjax.distill.weighting import CleanSpace, Weighting
from dreamjax.priors.base import Prior
from dreamjax.scene.views import Views
from dreamjax.settings import Home, Share, settings


@settings
class Hifa(Sds):
    """SDS at one falling t, its guidance rescaled, its residual in z_0."""

    t_low: Ramp = Ramp(0.2, 0.2)  # where t ends, as a fraction of T
    weighting: Annotated[Weighting, Home("dreamjax.distill.weighting")] = CleanSpace()  # w(t)
    rescale: Share = 0.7  # how far guided predictions get the spread of the conditional ones

    def timesteps(self, prior: Prior, keys: Key[Array, " v"], clock: Clock) -> Int[Array, " b"]:
        """t_high - (t_high - t_low) sqrt(fraction of the run) for every draw, HiFA eq. 11."""
        low, high = self.t_low(clock), self.t_high(clock)
        t = (high - (high - low) * jnp.sqrt(clock.fraction)) * prior.schedule.num_steps
        t = jnp.clip(jnp.round(t).astype(jnp.int32), 0, prior.schedule.num_steps - 1)
        return jnp.full(len(keys) * self.draws, t)

    def residual(
        self, prior: Prior, frozen: Frozen, noised: Noised, views: Views
    ) -> Float[Array, "b ..."]:
        """The rescaled guided eps_hat less eps."""
        guided = self.predict(prior, frozen, noised, views)
        return rescaled(guided.eps_hat, guided.eps_cond, self.rescale) - noised.eps
