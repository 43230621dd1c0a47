"""Beta schedules of the forward process and the float64 quantities that follow from them.

Symbols (DDPM, arXiv 2006.11239): beta_t is the variance added at step t; alpha_t = 1 - beta_t;
alpha_bar_t is the product of alpha_0..alpha_t; sigma_t^2 = 1 - alpha_bar_t. t is an integer index
0..T-1, so the paper's beta_1 is betas[0], and alpha_bar before t = 0 is 1. Everything here is NumPy
float64; `extract` casts to float32, once.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, Int

from dreamjax.errors import UserError


@dataclass(frozen=True, eq=False)
class Schedule:
    """The noise schedule: betas [T] and what follows from them, each float64 [T] and read-only.

    Two schedules are equal when their betas are, so a schedule may be static under `jax.jit`.
    Raises UserError unless betas are one-dimensional, not empty, finite and in (0, 1].
    """

    betas: np.ndarray

    def __post_init__(self):
        try:
            betas = np.array(self.betas, np.float64)
        except (TypeError, ValueError) as error:
            raise UserError(f"betas must be an array of numbers: {error}") from error
        if betas.ndim != 1 or betas.size == 0:
            raise UserError(f"betas must be a non-empty 1-D array; got shape {betas.shape}")
        wrong = np.flatnonzero(~((betas > 0.0) & (betas <= 1.0)))  # true for NaN too
        if wrong.size:
            t = wrong[0]
            raise UserError(f"betas must be finite and in (0, 1]; betas[{t}] is {betas[t]}")
        betas.setflags(write=False)
        object.__setattr__(self, "betas", betas)

    def __eq__(self, other):
        return isinstance(other, Schedule) and np.array_equal(self.betas, other.betas)

    def __hash__(self):
        return hash(self.betas.tobytes())

    @property
    def num_steps(self) -> int:
        """T."""
        return self.betas.size

    @functools.cached_property
    def alphas(self) -> np.ndarray:
        """alpha_t = 1 - beta_t."""
        return _frozen(1.0 - self.betas)

    @functools.cached_property
    def log_alpha_bar(self) -> np.ndarray:
        """log alpha_bar_t; -inf from a beta of 1 onwards."""
        with np.errstate(divide="ignore"):
            return _frozen(np.cumsum(np.log1p(-self.betas)))

    @functools.cached_property
    def alpha_bar(self) -> np.ndarray:
        """alpha_bar_t, the share of the variance of x_t that is signal."""
        return _frozen(np.exp(self.log_alpha_bar))

    @functools.cached_property
    def alpha_bar_prev(self) -> np.ndarray:
        """alpha_bar_{t-1}, which is 1 at t = 0."""
        return _frozen(np.append(1.0, self.alpha_bar[:-1]))

    @functools.cached_property
    def variance(self) -> np.ndarray:
        """sigma_t^2 = 1 - alpha_bar_t, exact for tiny betas too."""
        return _frozen(-np.expm1(self.log_alpha_bar))

    @functools.cached_property
    def variance_prev(self) -> np.ndarray:
        """1 - alpha_bar_{t-1}, which is 0 at t = 0."""
        return _frozen(np.append(0.0, self.variance[:-1]))

    @functools.cached_property
    def sqrt_alpha_bar(self) -> np.ndarray:
        """Scale of x_0 in x_t."""
        return _frozen(np.exp(0.5 * self.log_alpha_bar))

    @functools.cached_property
    def sigma(self) -> np.ndarray:
        """Scale of eps in x_t, sqrt(1 - alpha_bar_t)."""
        return _frozen(np.sqrt(self.variance))

    @functools.cached_property
    def log_snr(self) -> np.ndarray:
        """log(alpha_bar_t / (1 - alpha_bar_t))."""
        return _frozen(self.log_alpha_bar - np.log(self.variance))

    @functools.cached_property
    def posterior_variance(self) -> np.ndarray:
        """Variance of q(x_{t-1} | x_t, x_0), "beta tilde"; 0 at t = 0 (DDPM eq. 7)."""
        return _frozen(self.variance_prev / self.variance * self.betas)

    @functools.cached_property
    def posterior_log_variance(self) -> np.ndarray:
        """Log of the posterior variance, with t = 1's value at t = 0 in place of -inf."""
        return _frozen(np.log(_first_from_second(self.posterior_variance, self)))

    @functools.cached_property
    def large_log_variance(self) -> np.ndarray:
        """log beta_t, the larger fixed variance, with the posterior's t = 1 value at t = 0."""
        return _frozen(np.append(self.posterior_log_variance[0], np.log(self.betas[1:])))

    @functools.cached_property
    def log_betas(self) -> np.ndarray:
        """log beta_t."""
        return _frozen(np.log(self.betas))

    @functools.cached_property
    def posterior_x0_scale(self) -> np.ndarray:
        """Scale of x_0 in the posterior mean (DDPM eq. 7)."""
        return _frozen(np.sqrt(self.alpha_bar_prev) * self.betas / self.variance)

    @functools.cached_property
    def posterior_xt_scale(self) -> np.ndarray:
        """Scale of x_t in the posterior mean (DDPM eq. 7)."""
        return _frozen(np.sqrt(self.alphas) * self.variance_prev / self.variance)


def linear(num_steps: int = 1000, start: float = 1e-4, end: float = 0.02) -> Schedule:
    """Betas evenly spaced from start to end (DDPM section 4; made for 1000 steps)."""
    return Schedule(np.linspace(start, end, _checked(num_steps)))


def scaled_linear(num_steps: int = 1000, start: float = 0.00085, end: float = 0.012) -> Schedule:
    """Betas whose roots are evenly spaced, as in Stable Diffusion."""
    if start < 0 or end < 0:
        raise UserError(f"scaled_linear needs betas >= 0; got start {start}, end {end}")
    return Schedule(np.linspace(np.sqrt(start), np.sqrt(end), _checked(num_steps)) ** 2)


def cosine(num_steps: int = 1000, offset: float = 0.008, max_beta: float = 0.999) -> Schedule:
    """Betas that give alpha_bar the shape of a squared cosine (arXiv 2102.09672 eq. 17)."""
    u = np.arange(_checked(num_steps) + 1) / num_steps
    f = np.cos((u + offset) / (1.0 + offset) * np.pi / 2.0) ** 2
    return Schedule(np.minimum(1.0 - f[1:] / f[:-1], max_beta))


def zero_terminal_snr(schedule: Schedule) -> Schedule:
    """The schedule rescaled so that nothing of x_0 is left at T-1 (arXiv 2305.08891 algorithm 1).

    sqrt(alpha_bar) is shifted to 0 at T-1 and scaled to keep its value at t = 0, so the last beta
    is 1: eps does not determine x_0 there, and a network must predict v or x_0. Raises UserError
    for a schedule of fewer than two steps.
    """
    if schedule.num_steps < 2:
        raise UserError("zero terminal SNR needs at least 2 steps; got 1")
    root = schedule.sqrt_alpha_bar
    with np.errstate(divide="ignore", invalid="ignore"):  # `Schedule` refuses what is not finite
        root = (root - root[-1]) * root[0] / (root[0] - root[-1])
        before = np.append(1.0, root[:-1])
        betas = 1.0 - (root / before) ** 2
    return Schedule(betas)


def respaced(schedule: Schedule, steps: Sequence[int] | np.ndarray) -> Schedule:
    """The schedule of the process seen only at `steps`: index i stands for timestep steps[i].

    Betas are computed anew from alpha_bar at the steps (arXiv 2102.09672 section 4). Raises
    UserError for steps that are not whole, do not rise or leave 0..T-1.
    """
    ts = checked_steps(schedule.num_steps, steps)
    log_alpha_bar = schedule.log_alpha_bar[ts]
    with np.errstate(invalid="ignore"):
        return Schedule(-np.expm1(np.diff(log_alpha_bar, prepend=0.0)))


def section_steps(num_steps: int, sections: str | Sequence[int]) -> np.ndarray:
    """Choose timesteps of 0..T-1 as guided-diffusion's `timestep_respacing` does, rising.

    "ddim50" takes every k-th step from 0, k whole, 50 in all, at least two; "10,15,20" (or
    [10, 15, 20]) cuts the steps into as many equal sections (the first ones a step longer where
    they cannot be equal) and spreads that many steps evenly over each, both ends among them. Raises
    UserError where that cannot be.
    """
    num_steps = _checked(num_steps)
    if isinstance(sections, str) and sections.startswith("ddim"):
        count = _whole(sections[4:], sections)
        # As published: one step would be t = 0, where x_T is no noise.
        for stride in range(1, max(num_steps, 2)):
            steps = np.arange(0, num_steps, stride)
            if len(steps) == count:
                return steps.astype(np.int32)
        raise UserError(f"no whole stride takes {count} of {num_steps} steps; got {sections!r}")
    if isinstance(sections, str):
        sections = [_whole(part, sections) for part in sections.split(",")]
    if not len(sections):
        raise UserError(f"sections must be a non-empty list of whole numbers; got {sections!r}")
    size, extra = divmod(num_steps, len(sections))
    start, chosen = 0, []
    for i, count in enumerate(sections):
        length = size + (i < extra)
        if not 1 <= count <= length or count != int(count):
            raise UserError(f"section {i} has {length} steps and cannot give {count}: {sections!r}")
        # Steps of equal fractional length, each rounded (half to even) to a whole timestep.
        stride = (length - 1) / (count - 1) if count > 1 else 1.0
        places = np.cumsum(np.append(0.0, np.full(int(count) - 1, stride)))
        chosen.append(start + np.round(places).astype(np.int32))
        start += length
    return np.concatenate(chosen)


def checked_steps(num_steps: int, steps: Sequence[int] | np.ndarray) -> np.ndarray:
    """The steps as int32; raises UserError unless they are whole, rise, and lie in 0..T-1."""
    ts = np.asarray(steps)
    if ts.ndim != 1 or ts.size == 0 or not np.issubdtype(ts.dtype, np.integer):
        raise UserError(f"steps must be a non-empty list of whole timesteps; got {steps!r}")
    ts = ts.astype(np.int64)  # differences of unsigned ones would never fall
    if np.any(np.diff(ts) <= 0) or ts[0] < 0 or ts[-1] >= num_steps:
        raise UserError(f"steps must rise within 0..{num_steps - 1}; got {steps!r}")
    return ts.astype(np.int32)


def log_snr_at(schedule: Schedule, t: Float[Array, "..."] | float) -> Float[Array, "..."]:
    """log(alpha_bar / (1 - alpha_bar)) at any real t in 0..T-1, linear between whole steps.

    Where alpha_bar is 0 it is taken as -80, the logarithm of about the smallest float32 there is.
    A t out of range is treated as by `extract`.
    """
    _check_range(t, schedule.num_steps)
    index = jnp.arange(schedule.num_steps, dtype=jnp.float32)
    return jnp.interp(t, index, _finite_log_snr(schedule), left=jnp.nan, right=jnp.nan)


def t_at(schedule: Schedule, log_snr: Float[Array, "..."] | float) -> Float[Array, "..."]:
    """The real t of a log-SNR, the inverse of `log_snr_at`; beyond the ends, 0 or T-1."""
    index = jnp.arange(schedule.num_steps, dtype=jnp.float32)
    return jnp.interp(log_snr, _finite_log_snr(schedule)[::-1], index[::-1])


def extract(
    values: Float[Array | np.ndarray, " T"], t: Int[Array, "*batch"], ndim: int
) -> Float[Array, "..."]:
    """Look up values [T] at t as float32, with trailing axes of 1 up to ndim axes.

    Raises UserError for a t that is no integer or, where its value is known, not in 0..T-1. Inside
    `jax.jit` such a t gives NaN: a wrong index must not pass for its neighbour.
    """
    table = jnp.asarray(values, jnp.float32)
    t = jnp.asarray(t)
    if not jnp.issubdtype(t.dtype, jnp.integer):
        raise UserError(f"t must be whole timesteps; got an array of {t.dtype}")
    _check_range(t, len(values))
    taken = table.at[t].get(mode="fill", fill_value=jnp.nan, wrap_negative_indices=False)
    return taken.reshape(t.shape + (1,) * (ndim - t.ndim))


def _check_range(t: Array | float, num_steps: int) -> None:
    """Raise UserError for a t whose value is known and not in 0..T-1."""
    if isinstance(t, Tracer):
        return
    wrong = np.ravel(t)[~((np.ravel(t) >= 0) & (np.ravel(t) <= num_steps - 1))]  # NaN too
    if wrong.size:
        raise UserError(f"t must be in 0..{num_steps - 1}; got {wrong[0]}")


def _checked(num_steps: int) -> int:
    if not 1 <= num_steps < np.inf or num_steps != int(num_steps):
        raise UserError(f"a schedule needs a whole number of steps, at least 1; got {num_steps}")
    return int(num_steps)


def _finite_log_snr(schedule: Schedule) -> Array:
    return jnp.asarray(np.maximum(schedule.log_snr, -80.0), jnp.float32)


def _whole(text: str, sections: str) -> int:
    if not text.strip().isdecimal():
        raise UserError(f'expected "ddim50" or whole numbers like "10,15,20"; got {sections!r}')
    return int(text)


def _frozen(array: np.ndarray) -> np.ndarray:
    array.setflags(write=False)
    return array


def _first_from_second(variance: np.ndarray, schedule: Schedule) -> np.ndarray:
    if schedule.num_steps == 1:  # there is no t = 1 to borrow from
        return schedule.betas
    return np.append(variance[1], variance[1:])
