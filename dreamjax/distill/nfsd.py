"""Noise-free score distillation (NFSD, arXiv 2310.17590).

SDS asks a rendering to hold noise that it cannot hold: eps_uncond - eps is mostly the network's
error. NFSD splits eps_uncond into what denoises and what moves z_t towards pictures as such, the
domain. Where there is little noise (t < 0.2 T) eps_uncond is nearly all domain and stays, without
eps; where there is much, the paper takes eps_uncond less the prediction for a text of bad pictures.
"""

from typing import Annotated

import jax.numpy as jnp
from jaxtyping import Array, Float

from dreamjax.distill.objective import Frozen
from dreamjax.distill.sds import GuidanceScale, Noised, Sds
from dreamjax.priors.base import Prior
from dreamjax.scene.views import Views
from dreamjax.settings import Range, settings


@settings
class Nfsd(Sds):
    """Noise-free score distillation: guidance and, at little noise, the pull towards pictures."""

    guidance_scale: GuidanceScale = 7.5  # s
    small: Annotated[float, Range(0.0, 1.0)] = 0.2  # t below which noise is little, share of T

    def residual(
        self, prior: Prior, frozen: Frozen, noised: Noised, views: Views
    ) -> Float[Array, "b ..."]:
        """delta_D + s delta_C, NFSD eq. 9, with delta_D = eps_uncond at little noise, else 0.

        The paper's delta_D at much noise is eps_null - eps_negative. A negative prompt takes the
        null text's place here as everywhere, so it is in s delta_C = s (eps_cond - eps_negative).
        """
        guided = self.predict(prior, frozen, noised, views)
        little = noised.t < self.small * prior.schedule.num_steps
        little = little.reshape(-1, *[1] * (guided.eps_hat.ndim - 1))
        return guided.eps_hat - jnp.where(little, 0.0, guided.eps_uncond)
