"""Pictures from a prior by any sampler, with guidance of both kinds, in bounded memory."""

import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import Annotated, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key, PyTree

from dreamjax.diffusion import guidance
from dreamjax.diffusion.reverse import Parameterisation, eps_of, split_output, x0_of
from dreamjax.diffusion.samplers import (
    Estimates,
    Given,
    ancestral_sample,
    ddim_sample,
    dpm_solver_sample,
    steps_on,
)
from dreamjax.diffusion.schedule import Schedule
from dreamjax.errors import UserError
from dreamjax.priors.base import Model, NetPrior, Sampled
from dreamjax.priors.classifier import ClassifierNet, NetClassifier, NoisyClassifier
from dreamjax.settings import Range, Share, settings

CHUNK = 32
NUMBER = r"\s*0*[1-9]\d{0,6}\s*"
Scale = Annotated[float, Range(-1e4, 1e4)]


@settings
class Sampler:
    """How pictures are drawn."""

    method: Literal["ancestral", "ddim", "dpm_solver"] = "ddim"  # DPM-Solver++ needs fewest steps
    steps: str | int = "50"  # how many, or which, as "ddim50" or by sections, "10,15,20"
    eta: Share = 0.0  # noise that DDIM adds: 0 none, 1 as much as DDPM
    guidance_scale: Scale = 1.0  # s in uncond + s (cond - uncond); 1 is the condition alone
    rescale: Share = 0.0  # share of the way back to the condition's spread after guidance
    classifier_scale: Annotated[float, Range(0.0, 1e4)] = 0.0  # of the classifier's gradient

    def __post_init__(self):
        steps = str(self.steps)
        if not re.fullmatch(rf"(ddim)?{NUMBER}|{NUMBER}(,{NUMBER})*", steps):
            raise UserError(
                f"steps is {steps[:40]!r}: expected how many, as 50, or which, as ddim50 or "
                "10,15,20"
            )
        object.__setattr__(self, "steps", steps)


def check_sampler(model: Model, sampler: Sampler, start: float = 1.0) -> None:
    """Raise UserError where the sampler cannot run on the model's schedule, without running it."""
    schedule, prediction = model.schedule, model.parameterisation.prediction
    key, shape = jax.random.key(0), (1, 1)
    steps = _steps_below(start, schedule, sampler)

    def net(x_t, t):
        return x_t

    def predict(x_t, t):
        return x_t if prediction == "eps" else Estimates(x_t, x_t)

    if sampler.method == "ancestral":
        run = partial(ancestral_sample, net, schedule, Parameterisation(), key, shape, steps)
    elif sampler.method == "ddim":
        run = partial(ddim_sample, predict, schedule, key, shape, steps, sampler.eta)
    else:
        run = partial(dpm_solver_sample, predict, schedule, key, shape, steps)
    jax.eval_shape(run)


def guided_net(
    prior: Sampled, params: PyTree, cond: PyTree, negative: PyTree, sampler: Sampler
) -> Callable[[Array, Array], Array]:
    """`net(x_t, t) -> output` with classifier-free guidance on the prediction.

    Guiding eps, x_0, v or the mean is the same, each being affine in the others given x_t; a
    learned variance is the conditional one.
    """
    p, scale = prior.parameterisation, sampler.guidance_scale

    def conditional(x_t, t):
        return prior.predict(params, x_t, t, cond)

    def guided(x_t, t):
        both = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), cond, negative)
        x_2, t_2 = jnp.concatenate([x_t, x_t]), jnp.concatenate([t, t])
        prediction, raw = split_output(p, x_2, prior.predict(params, x_2, t_2, both))
        wanted, other = jnp.split(prediction, 2)
        found = guidance.classifier_free(wanted, other, scale)
        if sampler.rescale > 0.0:
            found = guidance.rescaled(found, wanted, sampler.rescale)
        return found if raw is None else jnp.concatenate([found, raw[: len(x_t)]], axis=-1)

    return conditional if scale == 1.0 else guided


@partial(jax.jit, static_argnames=("prior", "shape", "sampler", "classifier", "start"))
def _sample(
    prior, params, cond, negative, key, shape, sampler, classifier, classifier_params, given, start
):
    schedule, p = prior.schedule, prior.parameterisation
    steps = _steps_below(start, schedule, sampler)
    if given is not None:
        given = given._replace(image=jnp.broadcast_to(given.image, shape))
    net = guided_net(prior, params, cond, negative, sampler)
    scale = sampler.classifier_scale

    def log_probability(x_t, t):
        return classifier.log_probability(classifier_params, x_t, t, cond)

    def predict(x_t, t):
        prediction, _ = split_output(p, x_t, net(x_t, t))
        eps_hat = eps_of(schedule, p, x_t, t, prediction)
        if classifier is not None:
            gradient = guidance.log_probability_gradient(log_probability, x_t, t)
            eps_hat = guidance.guide_eps(schedule, eps_hat, t, gradient, scale)
        if p.prediction == "eps":
            return eps_hat
        return Estimates(x0_of(schedule, p, x_t, t, prediction), eps_hat)

    def guide(x_t, t, model):
        if classifier is None:
            return model
        gradient = guidance.log_probability_gradient(log_probability, x_t, t)
        return guidance.guide_mean(model, gradient, scale)

    if sampler.method == "ancestral":
        x_0 = ancestral_sample(net, schedule, p, key, shape, steps, guide, given)
    elif sampler.method == "ddim":
        x_0 = ddim_sample(predict, schedule, key, shape, steps, sampler.eta, p.threshold, given)
    else:
        x_0 = dpm_solver_sample(predict, schedule, key, shape, steps, p.threshold, given)
    return prior.decode(params, x_0)


def _steps_below(start: float, schedule: Schedule, sampler: Sampler) -> list[int]:
    """The sampler's timesteps that lie below the fraction `start` of all."""
    steps = steps_on(schedule, sampler.steps)
    below = steps[steps < start * schedule.num_steps]
    if not 0.0 < start <= 1.0 or not below.size:
        raise UserError(
            f"start is {start}: expected a fraction up to 1, above the first of {sampler.steps} "
            "steps"
        )
    return below.tolist()


def sample(
    prior: Sampled,
    params: PyTree,
    prompts: Sequence[str],
    key: Key[Array, ""],
    sampler: Sampler,
    negative: str = "",
    classifier: tuple[NoisyClassifier | ClassifierNet, PyTree] | None = None,
    chunk: int = CHUNK,
    drawn: Callable[[int], None] | None = None,
    given: Given | None = None,
    start: float = 1.0,
) -> Float[np.ndarray, "n h w c"]:
    """One picture in [0, 1] a prompt, `chunk` of them at a time.

    With `classifier` its gradient guides too. `drawn` is called with how many are finished. `given`
    is one picture [H, W, C] that all start from or keep a part of, `start` the fraction of T at
    which they start. Raises UserError for prompts that the prior cannot read, for a classifier that
    does not fit it and for a `start` that leaves no step.
    """
    # Descriptions of networks are equal where they compute the same; settings only name files.
    net = prior.net if isinstance(prior, NetPrior) else prior
    judge, judge_params = classifier or (None, None)
    check_classifier(net, judge, sampler)
    if sampler.classifier_scale == 0.0:
        judge, judge_params = None, None
    elif isinstance(judge, NetClassifier):
        judge = judge.net
    _steps_below(start, net.schedule, sampler)
    guided = sampler.guidance_scale != 1.0
    pictures = []
    for first in range(0, len(prompts), chunk):
        part = list(prompts[first : first + chunk])
        padded = part + part[-1:] * (chunk - len(part)) if len(prompts) > chunk else part
        rgb = _sample(
            net,
            params,
            net.embed_texts(params, padded),
            net.embed_texts(params, [negative] * len(padded)) if guided else None,
            jax.random.fold_in(key, first),
            (len(padded), *net.shape),
            sampler,
            judge,
            judge_params,
            given,
            start,
        )
        pictures.append(np.asarray(rgb)[: len(part)])
        if drawn is not None:
            drawn(first + len(part))
    return np.concatenate(pictures)


def check_classifier(
    prior: Sampled, classifier: NoisyClassifier | ClassifierNet | None, sampler: Sampler
) -> None:
    """Raise UserError where the sampler needs a classifier and this one does not go with it."""
    if sampler.classifier_scale == 0.0:
        return
    if classifier is None:
        raise UserError("classifier_scale is not 0: it needs a classifier")
    for name in ("schedule", "classes"):
        if getattr(classifier, name) != getattr(prior, name, None):
            raise UserError(f"the classifier was trained with another {name} than the model")
