"""Score distillation sampling (DreamFusion, arXiv 2209.14988, section 3.1).

Symbols: z_0 [V, ...] is the prior's encoding of V renderings rgb; z_t its diffusion by eps at t, an
integer index; eps_hat the guided prediction; the residual is w(t) (eps_hat - eps). B = V times
`draws`, the draws of a view beside each other.

Normalisation: the gradient with respect to rgb is

    (1 / V) sum over views and over all elements of z_0 of  w(t) (eps_hat - eps) d z_0 / d rgb,

a mean over views (and over the draws of each) and a plain sum over z_0's elements, the factor
sqrt(alpha_bar_t) of d z_t / d z_0 being part of w(t) as in the paper. Averaging the gradients of
devices that hold equally many views gives the same over the global batch. With `clip_residual` each
view's residual, the mean over its draws, is first shortened to that norm.
"""

from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, PyTree

from dreamjax.clock import Clock, Ramp
from dreamjax.diffusion import timesteps
from dreamjax.diffusion.guidance import classifier_free, perp_neg
from dreamjax.diffusion.process import q_sample
from dreamjax.diffusion.reverse import predicted_eps
from dreamjax.distill.objective import Frozen, Losses, load_frozen
from dreamjax.distill.weighting import SigmaSquared, Weighting
from dreamjax.errors import UserError
from dreamjax.priors.base import Conditions, Prior, Prompt
from dreamjax.scene.views import Views
from dreamjax.settings import Home, NonNegative, Range, settings

GuidanceScale = Annotated[float, Range(-1e4, 1e4)]
Draws = Annotated[int, Range(1, 256)]


class Noised(NamedTuple):
    """Noisy encodings z_t [B, ...] with their t [B] and eps [B, ...]."""

    z_t: Float[Array, "b ..."]
    t: Int[Array, " b"]
    eps: Float[Array, "b ..."]


class Guided(NamedTuple):
    """The guided prediction [B, ...] and the two that it is made of."""

    eps_hat: Float[Array, "b ..."]
    eps_cond: Float[Array, "b ..."]
    eps_uncond: Float[Array, "b ..."]


@settings
class Sds:
    """Score distillation: a rendering moves to where the prior sees less noise in it."""

    guidance_scale: GuidanceScale = 101.0  # s in eps_uncond + s (eps_cond - eps_uncond)
    draws: Draws = 1  # noise draws a view, each in its own part of the range of t
    t_low: Ramp = Ramp(0.02, 0.02)  # the least t, as a fraction of T
    t_high: Ramp = Ramp(0.98, 0.98)  # the largest t, as a fraction of T
    weighting: Annotated[Weighting, Home("dreamjax.distill.weighting")] = SigmaSquared()  # w(t)
    perp_neg: NonNegative = 0.0  # Perp-Neg's strength against second faces; 1 is threestudio's
    clip_residual: NonNegative = 0.0  # the largest norm of a view's residual; 0: any

    def __post_init__(self):
        for low, high in ((self.t_low.start, self.t_high.start), (self.t_low.end, self.t_high.end)):
            if not 0.0 <= low < high <= 1.0:
                raise UserError(
                    f"t_low and t_high are {low} and {high}: expected 0 <= t_low < t_high <= 1"
                )

    def load(self, prior: Prior, prompt: Prompt, params: PyTree = None) -> Frozen:
        """The prior's parameters and its reading of the prompt."""
        return load_frozen(prior, prompt, params)

    def init(self, key: Key[Array, ""], prior: Prior, frozen: Frozen) -> PyTree:
        """Nothing is trained beside the scene."""
        return {}

    def loss(
        self,
        prior: Prior,
        frozen: Frozen,
        trained: PyTree,
        rgb: Float[Array, "v h w 3"],
        views: Views,
        key: Key[Array, ""],
        clock: Clock,
        cheap: bool,
    ) -> Losses:
        """The loss whose gradient is DreamFusion eq. 3 under the normalisation above.

        Its value is half the squared norm of the residual, mean over views. Nothing is
        differentiated through the network. Metrics, means over views: "loss", "residual_norm" and
        "t"; loss and norm are those before clipping.
        """
        frozen = jax.lax.stop_gradient(frozen)
        keys = jax.vmap(lambda i: jax.random.split(jax.random.fold_in(key, i), 3))(views.index)
        z_0 = prior.encode(frozen.params, rgb, keys[:, 0], cheap).astype(jnp.float32)
        noised = self.noise(prior, frozen, z_0, keys[:, 1:], views, clock)
        residual = self.residual(prior, frozen, noised, views)
        loss, metrics = self.weigh(prior, z_0, noised.t, residual)
        return Losses(loss, jnp.zeros(()), metrics)

    def weigh(
        self,
        prior: Prior,
        z_0: Float[Array, "v ..."],
        t: Int[Array, " b"],
        residual: Float[Array, "b ..."],
    ) -> tuple[Float[Array, ""], dict[str, Array]]:
        """The loss, and its metrics, that pushes z_0 by w(t) times the residual of its draws."""
        w = self.weighting(prior.schedule, t).reshape(-1, *[1] * (z_0.ndim - 1))
        residual = jax.lax.stop_gradient(w * residual)
        residual = jnp.mean(residual.reshape(len(z_0), self.draws, *z_0.shape[1:]), axis=1)
        loss, norm = push(z_0, residual, self.clip_residual)
        metrics = {"loss": loss, "residual_norm": norm, "t": jnp.mean(t * 1.0)}
        return loss, jax.lax.stop_gradient(metrics)

    def noise(
        self,
        prior: Prior,
        frozen: Frozen,
        z_0: Float[Array, "v ..."],
        keys: Key[Array, "v 2"],
        views: Views,
        clock: Clock,
    ) -> Noised:
        """Each view's encoding noised `draws` times; no gradient.

        Views that the prior sees together have one t. Raises UserError for several draws of them.
        """
        together = getattr(prior, "views_together", 1)
        if together > 1 and self.draws > 1:
            raise UserError(
                f"draws is {self.draws}: expected 1 with a prior that sees {together} views at once"
            )
        first = jnp.arange(len(keys)) // together * together
        t = self.timesteps(prior, keys[first, 0], clock)
        shape = (self.draws, *z_0.shape[1:])
        eps = jax.vmap(lambda k: jax.random.normal(k, shape))(keys[:, 1])
        eps = eps.reshape(-1, *z_0.shape[1:])
        z_t = q_sample(prior.schedule, jnp.repeat(z_0, self.draws, axis=0), t, eps)
        return Noised(jax.lax.stop_gradient(z_t), t, eps)

    def timesteps(self, prior: Prior, keys: Key[Array, " v"], clock: Clock) -> Int[Array, " b"]:
        """The t of every draw, each of a view's in its own part of the range."""
        ends = self.t_low(clock), self.t_high(clock)
        low, high = timesteps.from_fractions(prior.schedule, ends)
        t = jax.vmap(lambda k: timesteps.stratified(k, self.draws, low, high))(keys)
        return t.reshape(-1)

    def residual(
        self, prior: Prior, frozen: Frozen, noised: Noised, views: Views
    ) -> Float[Array, "b ..."]:
        """eps_hat - eps, before w(t)."""
        return self.predict(prior, frozen, noised, views).eps_hat - noised.eps

    def predict(self, prior: Prior, frozen: Frozen, noised: Noised, views: Views) -> Guided:
        """The guided eps_hat of noisy encodings of the views."""
        conditions = prior.condition(frozen.embedded, views)
        if self.perp_neg and not conditions.negatives:
            raise UserError(f"perp_neg is {self.perp_neg}, but the prior has no texts to avoid")
        asked = [conditions.cond, conditions.uncond]
        if self.perp_neg:
            asked += [condition for condition, _ in conditions.negatives]
        predictions = predict_each(prior, frozen.params, noised, asked, self.draws)
        eps_cond, eps_uncond, *eps_negative = predictions
        if not self.perp_neg:
            eps_hat = classifier_free(eps_cond, eps_uncond, self.guidance_scale)
            return Guided(eps_hat, eps_cond, eps_uncond)
        weights = self.perp_neg * negative_weights(conditions, self.draws)
        negatives = jnp.stack(eps_negative)
        eps_hat = perp_neg(eps_cond, eps_uncond, negatives, self.guidance_scale, weights)
        return Guided(eps_hat, eps_cond, eps_uncond)


def predict_each(
    prior: Prior, params: PyTree, noised: Noised, conditions: list[PyTree], draws: int
) -> list[Float[Array, "b ..."]]:
    """eps_hat under each of the conditions (rows by view), all asked in one batch."""
    count = len(conditions)
    rows = [jax.tree.map(lambda x: jnp.repeat(x, draws, axis=0), c) for c in conditions]
    z_t, t = jnp.concatenate([noised.z_t] * count), jnp.concatenate([noised.t] * count)
    output = prior.predict(params, z_t, t, jax.tree.map(lambda *x: jnp.concatenate(x), *rows))
    output = output.astype(jnp.float32)
    eps_hat = predicted_eps(prior.schedule, prior.parameterisation, z_t, t, output)
    return jnp.split(eps_hat, count)


def negative_weights(conditions: Conditions, draws: int) -> Float[Array, "n b"]:
    """How far each draw is guided away from each negative."""
    return jnp.repeat(jnp.stack([weight for _, weight in conditions.negatives]), draws, axis=1)


def push(
    z_0: Float[Array, "v ..."], residual: Float[Array, "v ..."], longest: float = 0.0
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """(the loss whose gradient with respect to z_0 is residual / V, the residuals' mean norm).

    The value is half the mean squared norm. Residuals longer than `longest`, where that is not 0,
    are shortened to it before they push.
    """
    squares = jnp.sum(jnp.square(residual).reshape(len(residual), -1), axis=1)
    norms = jnp.sqrt(squares)
    if longest > 0:
        shorter = jnp.minimum(1.0, longest / norms)
        residual = residual * shorter.reshape(-1, *[1] * (z_0.ndim - 1))
    # z_0 less itself is exactly 0, so it adds the gradient and leaves the value alone.
    pull = jnp.sum(residual * (z_0 - jax.lax.stop_gradient(z_0))) / len(z_0)
    return pull + 0.5 * jnp.mean(squares), jnp.mean(norms)
