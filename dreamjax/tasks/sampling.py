"""Pictures from a prior by any sampler, with guidance of both kinds, in bounded memory."""

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key, PyTree

from dreamjax.diffusion import guidance
from dreamjax.diffusion.reverse import Parameterisation, eps_of, split_output
from dreamjax.diffusion.samplers import (
    Given,
    ancestral_sample,
    ddim_sample,
    dpm_solver_sample,
    sampling_steps,
)
from dreamjax.diffusion.schedule import Schedule
from dreamjax.errors import UserError
from dreamjax.priors.classifier import NoisyClassifier

CHUNK = 32
SAMPLERS = ("ancestral", "ddim", "dpm_solver")


@dataclasses.dataclass(frozen=True)
class SamplerConfig:
    """How pictures are drawn.

    `sampler` is one of `SAMPLERS`, `eta` is DDIM's. `steps` is how many, or "ddim50" or "10,15,20"
    as `schedule.section_steps` reads them. A `guidance_scale` of 1 is the conditional prediction
    itself; `rescale` brings a guided one that share of the way back to its spread.
    `classifier_scale` is that of a noisy-image classifier's gradient.
    """

    sampler: str = "ddim"
    steps: int | str = 50
    eta: float = 0.0
    guidance_scale: float = 1.0
    rescale: float = 0.0
    classifier_scale: float = 0.0

    def __post_init__(self):
        if self.sampler not in SAMPLERS:
            raise UserError(f"sampler is {self.sampler!r}: expected one of {', '.join(SAMPLERS)}")


def check_sampler(schedule: Schedule, c: SamplerConfig) -> None:
    """Raise UserError where the sampler cannot run on the schedule, without running it."""
    key, shape, net = jax.random.key(0), (1, 1), lambda x_t, t: x_t
    samplers = {
        "ancestral": lambda: ancestral_sample(
            net, schedule, Parameterisation(), key, shape, c.steps
        ),
        "ddim": lambda: ddim_sample(net, schedule, key, shape, c.steps, c.eta),
        "dpm_solver": lambda: dpm_solver_sample(net, schedule, key, shape, c.steps),
    }
    jax.eval_shape(samplers[c.sampler])


def guided_net(prior, params, cond, negative, c: SamplerConfig):
    """`net(x_t, t) -> output` with classifier-free guidance on the prediction.

    Guiding eps, x_0, v or the mean is the same, each being affine in the others given x_t; a
    learned variance is the conditional one.
    """
    p = prior.parameterisation
    if c.guidance_scale == 1.0:
        return lambda x_t, t: prior.output(params, x_t, t, cond)
    both = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), cond, negative)

    def net(x_t, t):
        x_2, t_2 = jnp.concatenate([x_t, x_t]), jnp.concatenate([t, t])
        prediction, raw = split_output(p, x_2, prior.output(params, x_2, t_2, both))
        wanted, other = jnp.split(prediction, 2)
        guided = guidance.classifier_free(wanted, other, c.guidance_scale)
        if c.rescale > 0.0:
            guided = guidance.rescaled(guided, wanted, c.rescale)
        return guided if raw is None else jnp.concatenate([guided, raw[: len(x_t)]], axis=-1)

    return net


@partial(jax.jit, static_argnames=("prior", "shape", "c", "classifier", "start"))
def _sample(
    prior, params, cond, negative, key, shape, c, classifier, classifier_params, given, start
):
    schedule, p = prior.schedule, prior.parameterisation
    steps = _steps_below(start, schedule.num_steps, c)
    if given is not None:
        given = given._replace(image=jnp.broadcast_to(given.image, shape))
    net = guided_net(prior, params, cond, negative, c)

    def gradient(x_t, t):
        log_p = lambda x, t: classifier.log_probability(classifier_params, x, t, cond)  # noqa: E731
        return guidance.log_probability_gradient(log_p, x_t, t)

    def predict(x_t, t):
        prediction, _ = split_output(p, x_t, net(x_t, t))
        eps_hat = eps_of(schedule, p, x_t, t, prediction)
        if classifier is None:
            return eps_hat
        return guidance.guide_eps(schedule, eps_hat, t, gradient(x_t, t), c.classifier_scale)

    def guide(x_t, t, model):
        if classifier is None:
            return model
        return guidance.guide_mean(model, gradient(x_t, t), c.classifier_scale)

    if c.sampler == "ancestral":
        x_0 = ancestral_sample(net, schedule, p, key, shape, steps, guide, given)
    elif c.sampler == "ddim":
        x_0 = ddim_sample(predict, schedule, key, shape, steps, c.eta, p.threshold, given)
    else:
        x_0 = dpm_solver_sample(predict, schedule, key, shape, steps, p.threshold, given)
    return prior.decode(params, x_0)


def _steps_below(start: float, num_steps: int, c: SamplerConfig) -> np.ndarray:
    """The timesteps of the config that lie below the fraction `start` of all."""
    steps = sampling_steps(num_steps, c.steps)
    below = steps[steps < start * num_steps]
    if not 0.0 < start <= 1.0 or not below.size:
        raise UserError(
            f"start is {start}: expected a fraction up to 1, above the first of {c.steps} steps"
        )
    return below


def sample(
    prior,
    params: PyTree,
    prompts: Sequence[str],
    key: Key[Array, ""],
    c: SamplerConfig,
    negative: str = "",
    classifier: tuple[NoisyClassifier, PyTree] | None = None,
    chunk: int = CHUNK,
    drawn: Callable[[int], None] = lambda count: None,
    given: Given | None = None,
    start: float = 1.0,
) -> Float[np.ndarray, "n h w c"]:
    """One picture in [0, 1] a prompt.

    With `classifier` its gradient guides too. `drawn` is told how many are finished. `given` is one
    picture [H, W, C] that all start from or keep a part of, `start` the fraction of T at which
    they start. Raises UserError for prompts that the prior cannot read, for a classifier that does
    not fit it and for a `start` that leaves no step.
    """
    if c.classifier_scale != 0.0:
        _check_classifier(prior, classifier)
    _steps_below(start, prior.schedule.num_steps, c)
    judge, judge_params = classifier if c.classifier_scale != 0.0 else (None, None)
    pictures = []
    for first in range(0, len(prompts), chunk):
        part = list(prompts[first : first + chunk])
        padded = part + part[-1:] * (chunk - len(part)) if len(prompts) > chunk else part
        cond = prior.embed(params, padded)
        guided = c.guidance_scale != 1.0
        other = prior.embed(params, [negative] * len(padded)) if guided else None
        rgb = _sample(
            prior,
            params,
            cond,
            other,
            jax.random.fold_in(key, first),
            (len(padded), *prior.shape),
            c,
            judge,
            judge_params,
            given,
            start,
        )
        pictures.append(np.asarray(rgb)[: len(part)])
        drawn(first + len(part))
    return np.concatenate(pictures)


def _check_classifier(prior, classifier) -> None:
    if classifier is None:
        raise UserError("classifier_scale is not 0: it needs a classifier's weights")
    judge, _ = classifier
    for name in ("schedule", "classes"):
        if getattr(judge, name) != getattr(prior, name, None):
            raise UserError(f"the classifier was trained with another {name} than the model")
