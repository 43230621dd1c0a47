"""What a diffusion network is trained on: one scalar an example, the mean over its elements.

Symbols: x_0 [B, ...] data in [-1, 1]; t [B] integer index 0..T-1; eps [B, ...] standard normal;
x_t and v as in `process`. Averaging over the batch is the caller's.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from dreamjax.diffusion.likelihood import bits, bound_term
from dreamjax.diffusion.process import posterior, q_sample, v_from_x0_eps
from dreamjax.diffusion.reverse import Parameterisation, reverse, split_output, unclipped
from dreamjax.diffusion.schedule import Schedule, extract
from dreamjax.errors import UserError


def prediction_loss(
    net: Callable[[Array, Array], Array],
    schedule: Schedule,
    p: Parameterisation,
    x_0: Float[Array, "b *shape"],
    t: Int[Array, " b"],
    eps: Float[Array, "b *shape"],
) -> Float[Array, " b"]:
    """Mean square error of what the network predicts, eps, x_0, v or the posterior's mean.

    For eps this is L_simple (DDPM eq. 14), for v see arXiv 2202.00512 section 4. What the output
    says of a learned variance does not count.
    """
    x_t = q_sample(schedule, x_0, t, eps)
    prediction, _ = split_output(p, x_t, net(x_t, t))
    return _mean_square(_target(schedule, p.prediction, x_0, x_t, t, eps), prediction)


def vlb_loss(
    net: Callable[[Array, Array], Array],
    schedule: Schedule,
    p: Parameterisation,
    x_0: Float[Array, "b *shape"],
    t: Int[Array, " b"],
    eps: Float[Array, "b *shape"],
    levels: int = 256,
) -> Float[Array, " b"]:
    """T times the bound's term at t, bits per dimension: with t uniform, the bound without L_T.

    x_0 is not thresholded, whatever p says, as its gradient would be cut off with it
    (arXiv 2102.09672 section 3.3; DDPM eq. 5).
    """
    x_t = q_sample(schedule, x_0, t, eps)
    return _vlb(schedule, p, x_0, x_t, t, net(x_t, t), levels)


def hybrid_loss(
    net: Callable[[Array, Array], Array],
    schedule: Schedule,
    p: Parameterisation,
    x_0: Float[Array, "b *shape"],
    t: Int[Array, " b"],
    eps: Float[Array, "b *shape"],
    weight: float = 0.001,
    levels: int = 256,
) -> Float[Array, " b"]:
    """L_simple + weight L_vlb, in which the bound trains the variance alone.

    The prediction is held fixed inside L_vlb (arXiv 2102.09672 eq. 16), in bits per dimension.
    Raises UserError where the variance is fixed, so that L_vlb would have no gradient.
    """
    if not p.learns_variance:
        raise UserError(f"the hybrid loss needs a learned variance; got {p.variance!r}")
    x_t = q_sample(schedule, x_0, t, eps)
    output = net(x_t, t)
    prediction, raw = split_output(p, x_t, output)
    simple = _mean_square(_target(schedule, p.prediction, x_0, x_t, t, eps), prediction)
    assert raw is not None  # as the variance is learned
    frozen = jnp.concatenate([jax.lax.stop_gradient(prediction), raw], axis=-1)
    return simple + weight * _vlb(schedule, p, x_0, x_t, t, frozen, levels)


def min_snr_weight(
    schedule: Schedule, prediction: str, t: Int[Array, " b"], gamma: float = 5.0
) -> Float[Array, " b"]:
    """The factor on the loss of a prediction that makes it min(SNR, gamma) on x_0's.

    min(SNR, gamma) for "x0", over SNR for "eps", over SNR + 1 for "v" (arXiv 2303.09556 section
    3.4). Raises UserError for another prediction, or gamma not above 0.
    """
    if gamma <= 0:
        raise UserError(f"gamma must be above 0; got {gamma}")
    snr = np.exp(schedule.log_snr)
    of_x0 = np.minimum(snr, gamma)
    # As a share of SNR it is written so that an SNR of 0 gives 1.
    share = np.minimum(1.0, gamma * np.exp(-schedule.log_snr))
    tables = {"x0": of_x0, "eps": share, "v": of_x0 / (snr + 1.0)}
    return extract(_one_of(tables, prediction), t, 1)


def v_weight(schedule: Schedule, prediction: str, t: Int[Array, " b"]) -> Float[Array, " b"]:
    """The factor on the loss of a prediction that makes it the loss of v.

    SNR + 1 for "x0" (arXiv 2202.00512 section 4), 1 / alpha_bar for "eps", 1 for "v". Raises
    UserError for another prediction, and for "eps" on a schedule that ends without signal.
    """
    if prediction == "eps" and schedule.alpha_bar[-1] == 0.0:
        raise UserError(
            "v-weighting of eps divides by alpha_bar, which is 0 at T-1: predict v or x0"
        )
    tables = {
        "x0": 1.0 / schedule.variance,
        "eps": np.exp(-schedule.log_alpha_bar),
        "v": np.ones(schedule.num_steps),
    }
    return extract(_one_of(tables, prediction), t, 1)


def _one_of(tables: dict, prediction: str):
    if prediction not in tables:
        raise UserError(f"prediction must be one of {', '.join(tables)}; got {prediction!r}")
    return tables[prediction]


def _vlb(schedule, p, x_0, x_t, t, output, levels) -> Array:
    model = reverse(schedule, dataclasses.replace(p, threshold=unclipped), x_t, t, output)
    term = bits(bound_term(schedule, x_0, x_t, t, model, levels))
    return schedule.num_steps * term


def _target(schedule, prediction: str, x_0, x_t, t, eps) -> Array:
    if prediction == "v":
        return v_from_x0_eps(schedule, x_0, t, eps)
    if prediction == "mean":
        return posterior(schedule, x_0, x_t, t).mean
    return eps if prediction == "eps" else x_0


def _mean_square(target: Array, output: Array) -> Array:
    error = target - output.astype(jnp.float32)
    return jnp.mean(jnp.square(error).reshape(error.shape[0], -1), axis=1)
