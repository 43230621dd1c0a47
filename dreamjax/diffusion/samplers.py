"""Samplers: from noise to x_0, each one `lax.scan` over falling timesteps.

Symbols: x_t [B, ...] with t an integer index [B] in 0..T-1; alpha_bar before the first step is 1.
A network is given as `predict(x_t, t) -> eps_hat`, or `-> Estimates` for a schedule that ends
without signal, or for the ancestral sampler, which needs its variance too, as `net(x_t, t) ->
output` with what the output stands for. The initial noise and that
of the step from t depend on the key and on t alone, so two samplers can be compared from the same
start. A sampler returns the finished x_0 and, with `frames`, its estimate of x_0 after every step.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, Num

from dreamjax.diffusion.process import q_sample
from dreamjax.diffusion.reverse import Parameterisation, Reverse, Threshold, clip, reverse
from dreamjax.diffusion.schedule import Schedule, checked_steps, respaced, section_steps
from dreamjax.errors import UserError


class Given(NamedTuple):
    """A picture to start from or to keep a part of.

    `image` [B, ...] in [-1, 1]. Without `mask` sampling starts from the image noised to the first
    of the steps (SDEdit, arXiv 2108.01073): give rising steps that end early to stay near it. With
    `mask`, that broadcasts to the image, it is kept where the mask is 1 and painted anew where it
    is 0: after every step the kept part is replaced by the image at the noise level just reached
    (RePaint's eq. 8, arXiv 2201.09865, without its resampling).
    """

    image: Float[Array, "b *shape"]
    mask: Num[Array, "..."] | None = None


class Estimates(NamedTuple):
    """What a network says of x_0 and of eps; x_0 counts where alpha_bar is 0, else eps."""

    x_0: Array
    eps: Array


def spaced_steps(num_steps: int, count: int) -> np.ndarray:
    """Choose count of the timesteps 0..num_steps-1, rising, evenly spread, T-1 always among them.

    Raises UserError unless count is whole and 1 <= count <= num_steps.
    """
    if not 1 <= count <= num_steps or count != int(count):
        raise UserError(f"the number of sampling steps must be in 1..{num_steps}; got {count}")
    return np.round(np.linspace(num_steps - 1, 0, int(count))).astype(np.int32)[::-1]


def trailing_steps(num_steps: int, count: int) -> Int[np.ndarray, " s"]:
    """Choose count of the timesteps 0..num_steps-1, rising, at equal strides down from T-1.

    "Trailing" of arXiv 2305.08891 table 2, for schedules that end without signal. Raises UserError
    as `spaced_steps`.
    """
    spaced_steps(num_steps, count)
    falling = np.round(num_steps - np.arange(count) * (num_steps / count))
    return (falling - 1).astype(np.int32)[::-1]


def steps_on(
    schedule: Schedule, steps: int | str | Sequence[int] | np.ndarray
) -> Int[np.ndarray, " s"]:
    """`sampling_steps` of a schedule: a count is trailing where it ends without signal."""
    if schedule.alpha_bar[-1] == 0.0 and (np.ndim(steps) == 0 and str(steps).isdecimal()):
        return trailing_steps(schedule.num_steps, int(cast(int | str, steps)))
    return sampling_steps(schedule.num_steps, steps)


def sampling_steps(
    num_steps: int, steps: int | str | Sequence[int] | np.ndarray
) -> Int[np.ndarray, " s"]:
    """The timesteps of 0..num_steps-1 that a sampler visits, rising.

    steps is how many (`spaced_steps`; "50" is 50), sections as "ddim50" or "10,15,20"
    (`section_steps`), or the timesteps themselves. Raises UserError as those do, and for timesteps
    that do not rise or leave the range.
    """
    if isinstance(steps, str) and not steps.isdecimal():
        return section_steps(num_steps, steps)
    if isinstance(steps, str):
        return spaced_steps(num_steps, int(steps))
    if np.ndim(steps) == 0:
        return spaced_steps(num_steps, cast(int, steps))
    return checked_steps(num_steps, cast(Sequence[int], steps))


def ancestral_sample(
    net: Callable[[Array, Array], Array],
    schedule: Schedule,
    p: Parameterisation,
    key: Key[Array, ""],
    shape: tuple[int, ...],
    steps: int | str | Sequence[int] | np.ndarray,
    guide: Callable[[Array, Array, Reverse], Reverse] = lambda x_t, t, model: model,
    given: Given | None = None,
    frames: bool = False,
) -> Float[Array, "b *shape"] | tuple[Float[Array, "b *shape"], Float[Array, "s b *shape"]]:
    """Draw x_0 by sampling p(x_{t-1} | x_t) at every step (DDPM algorithm 2).

    With fewer steps than T the process is respaced (arXiv 2102.09672 section 4). `guide` may move
    each step's Gaussian (`guidance.guide_mean`). Raises UserError for wrong steps.
    """
    ts = steps_on(schedule, steps)
    short = respaced(schedule, ts)

    def step(x_t, memory, i, t, noise):
        model = reverse(short, p, x_t, jnp.full(shape[:1], i), net(x_t, t))
        model = guide(x_t, t, model)
        # The last step gives the mean (DDPM algorithm 2, line 3).
        return model.mean + jnp.where(i > 0, jnp.sqrt(model.var), 0.0) * noise, memory, model.x_0

    return _walk(step, None, schedule, ts, key, shape, given, frames)


def ddim_sample(
    predict: Callable[[Array, Array], Array | Estimates],
    schedule: Schedule,
    key: Key[Array, ""],
    shape: tuple[int, ...],
    steps: int | str | Sequence[int] | np.ndarray,
    eta: float = 0.0,
    threshold: Threshold = clip,
    given: Given | None = None,
    frames: bool = False,
) -> Float[Array, "b *shape"] | tuple[Float[Array, "b *shape"], Float[Array, "s b *shape"]]:
    """Draw x_0 of the given shape [B, ...] by DDIM (arXiv 2010.02502 eq. 12 and 16).

    steps are `steps_on`'s. eta = 0 is deterministic given x_T, eta = 1 with every step is DDPM
    with the posterior's variance. Each estimate of x_0 is thresholded and eps derived again from
    it. Raises UserError for wrong steps, eta outside [0, 1], an eps_hat or a `given` of another
    shape, and for an eps_hat alone at a step whose alpha_bar is 0, where it does not determine x_0.
    """
    if not 0.0 <= eta <= 1.0:
        raise UserError(f"eta must be in [0, 1]; got {eta}")
    ts = steps_on(schedule, steps)
    denoise = _denoiser(schedule, ts)
    log_alpha_bar = schedule.log_alpha_bar[ts]
    log_alpha_bar_prev = np.append(0.0, log_alpha_bar[:-1])
    variance = schedule.variance[ts]
    variance_prev = np.append(0.0, variance[:-1])
    step_beta = -np.expm1(log_alpha_bar - log_alpha_bar_prev)
    noise_variance = eta**2 * variance_prev / variance * step_beta
    table = _table(
        np.exp(0.5 * log_alpha_bar),
        np.sqrt(variance),
        np.exp(0.5 * log_alpha_bar_prev),
        np.sqrt(np.maximum(variance_prev - noise_variance, 0.0)),
        np.sqrt(noise_variance),
    )

    def step(x_t, memory, i, t, noise):
        scale, sigma, scale_prev, eps_scale, noise_scale = table[i]
        x_0, eps_hat = denoise(x_t, predict(x_t, t), scale, sigma, threshold)
        x_prev = scale_prev * x_0 + eps_scale * eps_hat
        return (x_prev + noise_scale * noise if eta > 0.0 else x_prev), memory, x_0

    return _walk(step, None, schedule, ts, key, shape, given, frames)


def dpm_solver_sample(
    predict: Callable[[Array, Array], Array | Estimates],
    schedule: Schedule,
    key: Key[Array, ""],
    shape: tuple[int, ...],
    steps: int | str | Sequence[int] | np.ndarray,
    threshold: Threshold = clip,
    given: Given | None = None,
    frames: bool = False,
) -> Float[Array, "b *shape"] | tuple[Float[Array, "b *shape"], Float[Array, "s b *shape"]]:
    """Draw x_0 by DPM-Solver++(2M), second order and multistep (arXiv 2211.01095 algorithm 2).

    Deterministic given x_T. With lambda = log(sqrt(alpha_bar) / sigma) and h its rise over a step,
    x_prev = (sigma_prev / sigma) x_t - sqrt(alpha_bar_prev) (exp(-h) - 1) D, where D extends the
    line through this estimate of x_0 and the one before by half a step; the first and the last step
    are of first order, D = x_0. Raises UserError as `ddim_sample`.
    """
    ts = steps_on(schedule, steps)
    denoise = _denoiser(schedule, ts)
    half_log_snr = 0.5 * schedule.log_snr[ts]
    h = np.diff(np.append(np.inf, half_log_snr)) * -1.0  # rises backwards; infinite to x_0
    extend = np.zeros(len(ts))
    extend[1:-1] = 0.5 * h[1:-1] / h[2:]  # h[i + 1] is that of the step taken before
    sigma = schedule.sigma[ts]
    table = _table(
        schedule.sqrt_alpha_bar[ts],
        sigma,
        np.append(0.0, sigma[:-1]) / sigma,
        np.append(1.0, schedule.sqrt_alpha_bar[ts][:-1]) * -np.expm1(-h),
        extend,
    )

    def step(x_t, before, i, t, noise):
        scale, sigma, ratio, x0_scale, extend = table[i]
        x_0, _ = denoise(x_t, predict(x_t, t), scale, sigma, threshold)
        d = x_0 + extend * (x_0 - before)
        return ratio * x_t + x0_scale * d, x_0, x_0

    return _walk(step, jnp.zeros(shape), schedule, ts, key, shape, given, frames)


def _denoiser(schedule: Schedule, ts: np.ndarray):
    """How a step makes x_0 and eps, both thresholded, of what is predicted."""
    without = ts[schedule.sqrt_alpha_bar[ts].astype(np.float32) == 0.0]

    def denoise(x_t, found, scale, sigma, threshold) -> tuple[Array, Array]:
        eps_hat = found.eps if isinstance(found, Estimates) else found
        if eps_hat.shape != x_t.shape:
            raise UserError(
                f"predict(x_t, t) must be of shape {list(x_t.shape)}; got {eps_hat.shape}"
            )
        noise = sigma * eps_hat.astype(jnp.float32)
        if not without.size:
            x_0 = (x_t - noise) / scale
        elif isinstance(found, Estimates):
            x_0 = (x_t - noise) / jnp.where(scale > 0.0, scale, 1.0)
            x_0 = jnp.where(scale > 0.0, x_0, found.x_0)
        else:
            raise UserError(
                f"sampling step t = {without[0]} has alpha_bar = 0, where eps does not determine "
                "x_0: predict `Estimates`, leave it out, as sections like 'ddim50' do, or sample "
                "by the ancestral sampler"
            )
        x_0 = threshold(x_0)
        return x_0, (x_t - scale * x_0) / sigma

    return denoise


def _walk(step, memory, schedule, ts, key, shape, given, frames) -> Array | tuple[Array, Array]:
    """From the last of ts on: `step(x_t, memory, i, t, noise) -> (x_prev, memory, x_0)`."""
    key_start, key_noise = jax.random.split(key)
    key_known = jax.random.fold_in(key_noise, schedule.num_steps)
    x_T = jax.random.normal(key_start, shape)
    _check_given(given, shape)
    if given is not None and given.mask is None:
        x_T = q_sample(schedule, given.image, jnp.full(shape[:1], ts[-1]), x_T)

    def keep(x_prev, i, t):
        if given is None or given.mask is None:
            return x_prev
        noise = jax.random.normal(jax.random.fold_in(key_known, t), shape)
        level = jnp.full(shape[:1], jnp.asarray(np.append(0, ts[:-1]))[i])
        known = jnp.where(i > 0, q_sample(schedule, given.image, level, noise), given.image)
        return jnp.where(given.mask > 0.5, known, x_prev)

    def body(carry, inputs):
        x_t, memory = carry
        i, t = inputs
        noise = jax.random.normal(jax.random.fold_in(key_noise, t), shape)
        x_prev, memory, x_0 = step(x_t, memory, i, jnp.full(shape[:1], t), noise)
        return (keep(x_prev, i, t), memory), x_0 if frames else None

    falling = jnp.arange(len(ts))[::-1], jnp.asarray(ts[::-1])
    (x_0, _), seen = jax.lax.scan(body, (x_T, memory), falling)
    return x_0 if seen is None else (x_0, seen)


def _check_given(given: Given | None, shape: tuple[int, ...]) -> None:
    if given is None:
        return
    if given.image.shape != tuple(shape):
        raise UserError(f"given.image must be of shape {list(shape)}; got {given.image.shape}")
    mask = jnp.shape(given.mask if given.mask is not None else 1.0)
    ends = zip(mask[::-1], shape[::-1], strict=False)
    if len(mask) > len(shape) or any(m not in (1, n) for m, n in ends):
        raise UserError(f"given.mask must broadcast to {list(shape)}; it is of shape {mask}")


def _table(*columns: np.ndarray) -> Float[Array, "s c"]:
    return jnp.asarray(np.stack(columns, axis=1), jnp.float32)
