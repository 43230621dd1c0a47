"""A prior whose data are Gaussian given the text, so that its best eps_hat is known exactly.

Symbols: x_0 ~ N(mu, diag(var)), both [S, S, 3] in the space [-1, 1]; then x_t is Gaussian with mean
sqrt(alpha_bar_t) mu and variance alpha_bar_t var + sigma_t^2, and eps_hat = E[eps | x_t].
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from dreamjax.diffusion.schedule import Schedule, extract
from dreamjax.errors import UserError
from dreamjax.priors.base import PAPER_VIEWS, Text, encode_pixels


class AnalyticParams(NamedTuple):
    """Means [N, S, S, 3], one for each of the prior's prompts, and their common var [S, S, 3]."""

    mu: Float[Array, "n s s 3"]
    var: Float[Array, "s s 3"]


@dataclass(frozen=True)
class AnalyticPrior:
    """Gaussian images of side image_size in pixel space; prompts[i] has the mean params.mu[i].

    Give "" a row as well where a null text is needed.
    """

    schedule: Schedule
    image_size: int
    prompts: tuple[str, ...]

    prediction: ClassVar[str] = "eps"
    view_names: tuple[tuple[float, tuple[str, ...]], ...] = PAPER_VIEWS

    def embed(self, params: AnalyticParams, prompts: Sequence[str]) -> Text:
        """Means as one token [N, 1, S*S*3] a prompt; UserError for a prompt without a mean."""
        for prompt in prompts:
            if prompt not in self.prompts:
                raise UserError(f"no mean for the prompt {prompt!r}, only for {self.prompts}")
        rows = jnp.array([self.prompts.index(prompt) for prompt in prompts], jnp.int32)
        tokens = params.mu[rows].reshape(len(prompts), 1, -1)
        return Text(tokens, jnp.ones((len(prompts), 1), bool))

    def encode(
        self, params: AnalyticParams, rgb: Float[Array, "b h w 3"], key: Key[Array, ""]
    ) -> Float[Array, "b s s 3"]:
        """Images resized to image_size and scaled to [-1, 1]; nothing is drawn."""
        return encode_pixels(rgb, self.image_size)

    def predict_eps(
        self,
        params: AnalyticParams,
        z_t: Float[Array, "b s s 3"],
        t: Int[Array, " b"],
        text: Text,
    ) -> Float[Array, "b s s 3"]:
        """E[eps | z_t] = sigma_t (z_t - sqrt(alpha_bar_t) mu) / (alpha_bar_t var + sigma_t^2)."""
        mu = text.tokens[:, 0].reshape(z_t.shape)
        centred = z_t - extract(self.schedule.sqrt_alpha_bar, t, z_t.ndim) * mu
        variance = extract(self.schedule.alpha_bar, t, z_t.ndim) * params.var + extract(
            self.schedule.variance, t, z_t.ndim
        )
        return extract(self.schedule.sigma, t, z_t.ndim) * centred / variance
