"""Score distillation via inversion (SDI, arXiv 2405.15891).

SDS is DDIM with fresh noise in every step, hence its blur. SDI takes the noise that DDIM itself
would have come from: the rendering z_0 is inverted, step by step, to z_t, and eps is what that z_t
holds, (z_t - sqrt(alpha_bar_t) z_0) / sigma_t. t falls through the run. The paper inverts with
guidance to the other side (s = -7.5), which keeps what the prompt has not put there yet.

Symbols: B draws; n inversion steps at tau_k = t k / n, k from 0 to n, the last one t.
"""

import dataclasses
from typing import Annotated

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from dreamjax.clock import Clock, Ramp
from dreamjax.diffusion.schedule import extract
from dreamjax.distill.objective import Frozen
from dreamjax.distill.sds import GuidanceScale, Noised, Sds
from dreamjax.distill.weighting import CleanSpace, Weighting
from dreamjax.priors.base import Prior
from dreamjax.scene.views import Views
from dreamjax.settings import Home, NonNegative, Range, settings


@settings
class Sdi(Sds):
    """Score distillation with the noise that inverting the rendering finds."""

    guidance_scale: GuidanceScale = 7.5  # s of the prediction
    t_low: Ramp = Ramp(0.96, 0.02)  # the least t, as a fraction of T: t falls through the run
    t_high: Ramp = Ramp(0.98, 0.04)  # the largest t, as a fraction of T
    weighting: Annotated[Weighting, Home("dreamjax.distill.weighting")] = CleanSpace()  # w(t)
    inversion_scale: GuidanceScale = -7.5  # s while inverting
    inversion_steps: Annotated[int, Range(1, 1000)] = 10  # n, each two predictions a draw
    eta: NonNegative = 0.3  # fresh noise added to the inverted z_t, in units of sigma_t

    def noise(
        self,
        prior: Prior,
        frozen: Frozen,
        z_0: Float[Array, "v ..."],
        keys: Key[Array, "v 2"],
        views: Views,
        clock: Clock,
    ) -> Noised:
        """Each view's encoding inverted to its draws' t; no gradient."""
        fresh = super().noise(prior, frozen, z_0, keys, views, clock)
        z_0 = jax.lax.stop_gradient(jnp.repeat(z_0, self.draws, axis=0))
        scale, sigma = (
            extract(x, fresh.t, z_0.ndim)
            for x in (prior.schedule.sqrt_alpha_bar, prior.schedule.sigma)
        )
        z_t = self.invert(prior, frozen, fresh._replace(z_t=z_0), views)
        z_t = z_t + self.eta * sigma * fresh.eps
        return Noised(z_t, fresh.t, (z_t - scale * z_0) / sigma)

    def invert(
        self, prior: Prior, frozen: Frozen, clean: Noised, views: Views
    ) -> Float[Array, "b ..."]:
        """z_t of the clean z_0 in `clean.z_t`, by n DDIM steps (arXiv 2010.02502 eq. 12)."""
        n, ndim = self.inversion_steps, clean.z_t.ndim
        guide = dataclasses.replace(self, guidance_scale=self.inversion_scale, perp_neg=0.0)

        def scales(tau):
            schedule = prior.schedule
            return (extract(x, tau, ndim) for x in (schedule.sqrt_alpha_bar, schedule.sigma))

        def step(z, k):
            tau, following = clean.t * k // n, clean.t * (k + 1) // n
            eps_hat = guide.predict(prior, frozen, clean._replace(z_t=z, t=tau), views).eps_hat
            scale, sigma = scales(tau)
            z_0 = jnp.where(k == 0, z, (z - sigma * eps_hat) / scale)  # the first z is clean
            scale, sigma = scales(following)
            return scale * z_0 + sigma * eps_hat, None

        return jax.lax.scan(step, clean.z_t, jnp.arange(n))[0]
