"""The reverse process p(x_{t-1} | x_t) of a network: what its output stands for.

A network `net(x_t, t) -> output` predicts eps, x_0, v or the mean of x_{t-1} as an array of the
shape of x_t. Where its variance is learned it gives twice the channels, the second half being about
the variance. `reverse` turns either into a Gaussian and the estimates of x_0 and eps behind it.
Images are [B, ..., C] in about [-1, 1], t is an integer index [B] in 0..T-1, arithmetic is float32.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from dreamjax.diffusion.process import (
    eps_from_v,
    eps_from_x0,
    posterior,
    x0_from_eps,
    x0_from_v,
)
from dreamjax.diffusion.schedule import Schedule, extract
from dreamjax.errors import UserError

Threshold = Callable[[Float[Array, "b *shape"]], Float[Array, "b *shape"]]


class Reverse(NamedTuple):
    """p(x_{t-1} | x_t): mean [B, ...], var and log_var that broadcast to it, and x_0 and eps.

    With "fixed_small" variance var is 0 at t = 0, where log_var is t = 1's, as `posterior`'s are.
    """

    mean: Float[Array, "*shape"]
    var: Float[Array, "*#shape"]
    log_var: Float[Array, "*#shape"]
    x_0: Float[Array, "*shape"]
    eps: Float[Array, "*shape"]


def unclipped(x_0: Float[Array, "b *shape"]) -> Float[Array, "b *shape"]:
    """x_0 as it is."""
    return x_0


def clip(x_0: Float[Array, "b *shape"]) -> Float[Array, "b *shape"]:
    """x_0 cut off at -1 and 1 (DDPM's code; Imagen's static thresholding)."""
    return jnp.clip(x_0, -1.0, 1.0)


def dynamic(quantile: float = 0.995, largest: float = math.inf) -> Threshold:
    """Imagen's dynamic thresholding (arXiv 2205.11487 section 2.3).

    With s the `quantile` of |x_0| in each example, at least 1 and at most `largest` (DeepFloyd IF's
    1.5): cut off at -s and s, divided by s. Raises UserError for a quantile outside (0, 1].
    """
    if not 0.0 < quantile <= 1.0:
        raise UserError(f"quantile must be in (0, 1]; got {quantile}")

    def threshold(x_0):
        s = jnp.quantile(jnp.abs(x_0).reshape(len(x_0), -1), quantile, axis=1)
        s = jnp.clip(s, 1.0, largest).reshape(-1, *[1] * (x_0.ndim - 1))
        return jnp.clip(x_0, -s, s) / s

    return threshold


def _x0_from_mean(schedule: Schedule, x_t: Array, t: Array, mean: Array) -> Array:
    """The x_0 whose posterior has this mean (DDPM eq. 7 solved for x_0)."""
    from_x0 = extract(schedule.posterior_x0_scale, t, x_t.ndim)
    return (mean - extract(schedule.posterior_xt_scale, t, x_t.ndim) * x_t) / from_x0


def _x0_itself(schedule: Schedule, x_t: Array, t: Array, x_0: Array) -> Array:
    return x_0


PREDICTIONS = {
    "eps": x0_from_eps,
    "x0": _x0_itself,
    "v": x0_from_v,
    "mean": _x0_from_mean,
}


def _fixed_small(schedule: Schedule, t: Array, raw: None, ndim: int) -> Array:
    return extract(schedule.posterior_log_variance, t, ndim)


def _fixed_large(schedule: Schedule, t: Array, raw: None, ndim: int) -> Array:
    return extract(schedule.large_log_variance, t, ndim)


def _learned(schedule: Schedule, t: Array, raw: Array, ndim: int) -> Array:
    return raw


def _learned_range(schedule: Schedule, t: Array, raw: Array, ndim: int) -> Array:
    share = 0.5 * (raw + 1.0)
    low = extract(schedule.posterior_log_variance, t, ndim)
    return share * extract(schedule.log_betas, t, ndim) + (1.0 - share) * low


VARIANCES = {
    "fixed_small": _fixed_small,
    "fixed_large": _fixed_large,
    "learned": _learned,
    "learned_range": _learned_range,
}


@dataclass(frozen=True)
class Parameterisation:
    """What a network's output stands for.

    prediction: "eps", "x0", "v", or "mean" of x_{t-1}. variance: "fixed_small" is the posterior's
    (beta tilde), "fixed_large" beta (DDPM section 3.2); with "learned" the second half of the
    output's channels is the log-variance, with "learned_range" v in -1..1 that interpolates between
    those two in the logarithm (arXiv 2102.09672 eq. 15; their v is half of ours plus a half).
    threshold is what is done to every estimate of x_0. Raises UserError for unknown names.
    """

    prediction: str = "eps"
    variance: str = "fixed_small"
    threshold: Threshold = clip

    def __post_init__(self):
        for name, known in (("prediction", PREDICTIONS), ("variance", VARIANCES)):
            if getattr(self, name) not in known:
                raise UserError(
                    f"{name} must be one of {', '.join(known)}; got {getattr(self, name)!r}"
                )

    @property
    def learns_variance(self) -> bool:
        """Whether the network gives twice the channels."""
        return self.variance in ("learned", "learned_range")


def split_output(
    p: Parameterisation, x_t: Float[Array, "b *shape c"], output: Float[Array, "b *shape d"]
) -> tuple[Float[Array, "b *shape c"], Float[Array, "b *shape c"] | None]:
    """The prediction, and what the output says of the variance (None where that is fixed).

    Raises UserError where the output has not as many channels as the parameterisation asks.
    """
    wanted = x_t.shape[-1] * (2 if p.learns_variance else 1)
    if output.shape != (*x_t.shape[:-1], wanted):
        raise UserError(
            f"a network with {p.variance} variance must map {list(x_t.shape)} to {wanted} "
            f"channels; its output is {list(output.shape)}"
        )
    output = output.astype(jnp.float32)
    if not p.learns_variance:
        return output, None
    prediction, raw = jnp.split(output, 2, axis=-1)
    return prediction, raw


def eps_of(
    schedule: Schedule,
    p: Parameterisation,
    x_t: Float[Array, "b *shape c"],
    t: Int[Array, " b"],
    prediction: Float[Array, "b *shape c"],
) -> Float[Array, "b *shape c"]:
    """eps_hat behind a network's prediction (the first half of `split_output`), not thresholded."""
    if p.prediction == "eps":
        return prediction
    if p.prediction == "v":
        return eps_from_v(schedule, x_t, t, prediction)
    return eps_from_x0(schedule, x_t, t, x0_of(schedule, p, x_t, t, prediction))


def x0_of(
    schedule: Schedule,
    p: Parameterisation,
    x_t: Float[Array, "b *shape c"],
    t: Int[Array, " b"],
    prediction: Float[Array, "b *shape c"],
) -> Float[Array, "b *shape c"]:
    """x_0 behind a network's prediction (the first half of `split_output`), not thresholded."""
    return PREDICTIONS[p.prediction](schedule, x_t, t, prediction)


def predicted_eps(
    schedule: Schedule,
    p: Parameterisation,
    x_t: Float[Array, "b *shape c"],
    t: Int[Array, " b"],
    output: Float[Array, "b *shape d"],
) -> Float[Array, "b *shape c"]:
    """eps_hat behind a network's whole output, float32 and not thresholded.

    Raises UserError for a wrong channel count.
    """
    return eps_of(schedule, p, x_t, t, split_output(p, x_t, output)[0])


def reverse(
    schedule: Schedule,
    p: Parameterisation,
    x_t: Float[Array, "b *shape c"],
    t: Int[Array, " b"],
    output: Float[Array, "b *shape d"],
) -> Reverse:
    """p(x_{t-1} | x_t) of a network's output (DDPM eq. 11), x_0 thresholded first.

    A network that predicts the mean has its mean taken as it is; thresholding then only touches
    the x_0 and eps returned, as in the papers' code. Raises UserError for a wrong channel count.
    """
    prediction, raw = split_output(p, x_t, output)
    x_0 = p.threshold(x0_of(schedule, p, x_t, t, prediction))
    mean = prediction if p.prediction == "mean" else posterior(schedule, x_0, x_t, t).mean
    log_var = VARIANCES[p.variance](schedule, t, raw, x_t.ndim)
    if p.prediction == "eps" and p.threshold is unclipped:
        eps = prediction  # exact, where going through x_0 and back would round
    else:
        eps = eps_from_x0(schedule, x_t, t, x_0)
    if p.variance == "fixed_small":
        var = extract(schedule.posterior_variance, t, x_t.ndim)
    else:
        var = jnp.exp(log_var)
    return Reverse(mean, var, log_var, x_0, eps)
