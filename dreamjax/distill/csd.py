"""Classifier score distillation (CSD, arXiv 2310.19415): guidance alone.

SDS's residual is (eps_uncond - eps) + s (eps_cond - eps_uncond). The second part, the score of an
implicit classifier p(text | z_t), does the work; CSD leaves the first out.
"""

from jaxtyping import Array, Float

from dreamjax.distill.objective import Frozen
from dreamjax.distill.sds import Noised, Sds
from dreamjax.priors.base import Prior
from dreamjax.scene.views import Views
from dreamjax.settings import settings


@settings
class Csd(Sds):
    """Classifier score distillation: SDS without its part eps_uncond - eps."""

    def residual(
        self, prior: Prior, frozen: Frozen, noised: Noised, views: Views
    ) -> Float[Array, "b ..."]:
        """s (eps_cond - eps_uncond); a negative prompt takes the null text's place."""
        guided = self.predict(prior, frozen, noised, views)
        return guided.eps_hat - guided.eps_uncond
