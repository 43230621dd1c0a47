"""A prior whose data are Gaussian given the text, so that its best eps_hat is known exactly.

Symbols: x_0 ~ N(mu, diag(var)), both [S, S, 3] in the space [-1, 1]; then x_t is Gaussian with mean
sqrt(alpha_bar_t) mu and variance alpha_bar_t var + sigma_t^2, and eps_hat = E[eps | x_t]. It is the
oracle that tests hold distillation losses against.
"""

import functools
from collections.abc import Sequence
from typing import Annotated, Literal, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, PyTree

from dreamjax.diffusion.reverse import Parameterisation, unclipped
from dreamjax.diffusion.schedule import Schedule, cosine, extract, linear
from dreamjax.errors import UserError
from dreamjax.nets.text import Text
from dreamjax.priors import words
from dreamjax.priors.base import Conditions, Pixels, Prompt
from dreamjax.scene.views import ViewNames, Views
from dreamjax.settings import Range, Seed, settings

Size = Annotated[int, Range(1, 64)]
Steps = Annotated[int, Range(2, 10_000)]


class AnalyticParams(NamedTuple):
    """Means [N, S, S, 3], one for each of the prior's texts, and their common var [S, S, 3]."""

    mu: Float[Array, "n s s 3"]
    var: Float[Array, "s s 3"]


@settings
class Analytic(Pixels):
    """Gaussian pictures, texts[i] having the mean params.mu[i]; for tests."""

    texts: tuple[str, ...] = ("",)  # that it can read: those of all views, and the null text ""
    image_size: Size = 4  # H = W in pixels
    noise: Literal["linear", "cosine"] = "linear"  # shape of the schedule
    steps: Steps = 1000  # T
    prediction: Literal["eps", "x0", "v"] = "eps"  # what it predicts
    interpolate_views: bool = False  # mix the texts of neighbouring views
    textureless_words: str = ""  # added to the text of views that show shape alone
    view_names: ViewNames = words.PAPER_VIEWS  # (greatest elevation, names from front to back)
    seed: Seed = 0  # of the means and variances that `load` draws

    @functools.cached_property
    def schedule(self) -> Schedule:
        """The noise schedule."""
        return {"linear": linear, "cosine": cosine}[self.noise](self.steps)

    @property
    def parameterisation(self) -> Parameterisation:
        """What its output stands for; nothing is clipped, as Gaussians have no bounds."""
        return Parameterisation(self.prediction, "fixed_small", unclipped)

    @property
    def shape(self) -> tuple[int, int, int]:
        """H, W, C of a picture."""
        return (self.image_size, self.image_size, 3)

    @property
    def levels(self) -> int:
        """How many values a pixel of a picture has."""
        return 256

    def load(self) -> AnalyticParams:
        """Random means in [-0.8, 0.8] and variances in [0.01, 0.5]."""
        rng = np.random.default_rng(self.seed)
        mu = rng.uniform(-0.8, 0.8, (len(self.texts), *self.shape))
        return AnalyticParams(jnp.float32(mu), jnp.float32(rng.uniform(0.01, 0.5, self.shape)))

    def embed_texts(self, params: AnalyticParams, texts: Sequence[str]) -> Text:
        """Means as one token [N, 1, S*S*3] a text; UserError for a text without a mean."""
        for text in texts:
            if text not in self.texts:
                raise UserError(f"no mean for the text {text!r}, only for {self.texts}")
        rows = jnp.array([self.texts.index(text) for text in texts], jnp.int32)
        tokens = params.mu[rows].reshape(len(texts), 1, -1)
        return Text(tokens, jnp.ones((len(texts), 1), bool))

    def embed(self, params: AnalyticParams, prompt: Prompt) -> words.ViewTexts:
        """The texts of all views; UserError for a prompt without a mean for each of them."""
        more = f"{prompt.text} {self.textureless_words}" if self.textureless_words else ""
        read = functools.partial(self.embed_texts, params)
        return words.embed_views(read, prompt, self.view_names, more)

    def condition(self, embedded: words.ViewTexts, views: Views) -> Conditions:
        """Each view's own text, the null text, and Perp-Neg's."""
        return words.condition(embedded, views, self.view_names, self.interpolate_views)

    def predict(
        self,
        params: AnalyticParams,
        z_t: Float[Array, "b s s 3"],
        t: Int[Array, " b"],
        condition: Text,
    ) -> Float[Array, "b s s 3"]:
        """E[eps | z_t] = sigma_t (z_t - sqrt(alpha_bar_t) mu) / (alpha_bar_t var + sigma_t^2).

        Or the x_0 or v of that eps, where `prediction` says so.
        """
        return self._answer(condition.tokens[:, 0].reshape(z_t.shape), params.var, z_t, t)

    def init_adapter(self, key: Key[Array, ""], params: AnalyticParams, rank: int) -> PyTree:
        """Another mean and variance in every place, at first the same; `rank` is not used."""
        zeros = jnp.zeros(self.shape)
        return {"shift": zeros, "log_scale": zeros}

    def predict_adapted(
        self,
        params: AnalyticParams,
        adapter: PyTree,
        z_t: Float[Array, "b s s 3"],
        t: Int[Array, " b"],
        condition: Text,
        camera: Float[Array, "b k"],
    ) -> Float[Array, "b s s 3"]:
        """What is right for data of mean mu + shift and variance var exp(log_scale)."""
        mu = condition.tokens[:, 0].reshape(z_t.shape) + adapter["shift"]
        return self._answer(mu, params.var * jnp.exp(adapter["log_scale"]), z_t, t)

    def _answer(self, mu: Array, var: Array, z_t: Array, t: Array) -> Array:
        scale, sigma, alpha_bar, noise_variance = (
            extract(values, t, z_t.ndim)
            for values in (
                self.schedule.sqrt_alpha_bar,
                self.schedule.sigma,
                self.schedule.alpha_bar,
                self.schedule.variance,
            )
        )
        standard = (z_t - scale * mu) / (alpha_bar * var + noise_variance)
        eps, x_0 = sigma * standard, mu + scale * var * standard
        return {"eps": eps, "x0": x_0, "v": scale * eps - sigma * x_0}[self.prediction]
