"""Train an ADM UNet on labelled images of any kind (`dreamjax.data`).

The network predicts eps, x_0, v or the posterior's mean, with a fixed or a learned variance, and is
trained by the simple, the hybrid or the whole variational loss (`diffusion.losses`). Labels are
dropped now and then for classifier-free guidance.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from dreamjax.data.base import Pictures
from dreamjax.data.digits import Digits
from dreamjax.data.images import Images, to_x
from dreamjax.diffusion import losses, schedule, timesteps
from dreamjax.errors import UserError
from dreamjax.export.sheet import grid, write_png
from dreamjax.nets.adm import ADMConfig
from dreamjax.priors import classes
from dreamjax.priors.classes import ClassNet
from dreamjax.priors.sampling import Sampler, check_sampler, sample
from dreamjax.settings import Count, Dtype, Home, NonNegative, Range, settings
from dreamjax.training.fit import Problem, Seen, Training, fit
from dreamjax.training.optimizer import Decay

Channels = Annotated[int, Range(1, 4096)]
Blocks = Annotated[int, Range(1, 32)]
Side = Annotated[int, Range(1, 1024)]


@settings
class NoiseSchedule:
    """The betas of the diffusion process."""

    shape: Literal["linear", "scaled_linear", "cosine"] = "linear"  # how they grow
    steps: Annotated[int, Range(1, 100_000)] = 1000  # timesteps T
    zero_terminal_snr: bool = False  # rescale them so that nothing of x_0 is left at T-1

    def __post_init__(self):
        self.make()

    def make(self) -> schedule.Schedule:
        """Return the schedule; raises UserError for too few steps."""
        if self.shape == "linear":
            # Made for 1000 steps; with fewer, each adds as much more noise (guided-diffusion).
            made = schedule.linear(self.steps, 0.1 / self.steps, 20.0 / self.steps)
        elif self.shape == "scaled_linear":
            made = schedule.scaled_linear(self.steps)
        else:
            made = schedule.cosine(self.steps)
        return schedule.zero_terminal_snr(made) if self.zero_terminal_snr else made


@settings
class Adm:
    """The layout of an ADM UNet (arXiv 2105.05233), but for what follows from the data."""

    channels: Channels = ADMConfig.channels  # at the finest level, times its factor
    channel_mults: tuple[Blocks, ...] = ADMConfig.channel_mults  # a factor a level
    res_blocks: Blocks = ADMConfig.res_blocks  # a level on the way down, one more on the way up
    attention_sizes: tuple[Side, ...] = ADMConfig.attention_sizes  # sides in pixels with attention
    heads: Annotated[int, Range(1, 256)] = ADMConfig.heads  # of attention, where head_dim is 0
    head_dim: Annotated[int, Range(0, 1024)] = ADMConfig.head_dim  # channels a head; 0: by heads
    split_qkv_first: bool = ADMConfig.split_qkv_first  # the order of q, k and v
    resblock_updown: bool = ADMConfig.resblock_updown  # blocks change the size, else convolutions
    scale_shift_norm: bool = ADMConfig.scale_shift_norm  # time and class scale and shift a norm
    dropout: Decay = ADMConfig.dropout  # share of activations dropped in a block in training
    dtype: Dtype = "float32"  # of the network's activations

    def __post_init__(self):
        if not 1 <= len(self.channel_mults) <= 8:
            raise UserError(f"channel_mults is {self.channel_mults}: expected 1 to 8 factors")

    def make(self, **follow) -> ADMConfig:
        """Return the whole layout; raises UserError for sizes that do not fit together."""
        return ADMConfig(
            **{f.name: getattr(self, f.name) for f in dataclasses.fields(self)}, **follow
        )


@settings
class TrainDiffusion(Training):
    """Train a diffusion model of labelled images; writes model.safetensors."""

    prediction: Literal["eps", "x0", "v", "mean"] = "eps"  # what the network gives
    variance: Literal["fixed_small", "fixed_large", "learned", "learned_range"] = "fixed_large"
    """of p(x_{t-1} | x_t): beta-tilde, beta, any, or between the two"""
    loss: Literal["simple", "hybrid", "vlb"] = "simple"  # hybrid is simple + vlb_weight * vlb
    vlb_weight: NonNegative = 0.001  # of the variational bound in the hybrid loss
    min_snr_gamma: NonNegative = 0.0  # of the min-SNR weighting (arXiv 2303.09556); 0: none
    v_weighting: bool = False  # weigh any prediction's simple loss as v's
    by_importance: bool = False  # draw t by the losses seen (arXiv 2102.09672 section 3.3)
    class_dropout: Decay = 0.0  # share of labels dropped, for classifier-free guidance
    eval_examples: Count = 256  # held-out images that the loss is measured on
    data: Annotated[Pictures, Home("dreamjax.data")] = Digits()  # what is trained on
    schedule: NoiseSchedule = NoiseSchedule()  # the diffusion process
    net: Adm = Adm()  # the network
    sampler: Sampler = Sampler()  # of the pictures drawn with each evaluation
    samples_per_class: Annotated[int, Range(0, 100)] = 8  # pictures of each of ten classes; 0: none

    def __post_init__(self):
        if self.loss == "hybrid" and not self.variance.startswith("learned"):
            raise UserError(
                f"loss is 'hybrid', which needs a learned variance: it is {self.variance!r}"
            )
        for name in ("min_snr_gamma", "v_weighting"):
            if getattr(self, name) and (self.loss != "simple" or self.by_importance):
                raise UserError(f"{name} weighs the simple loss with t drawn evenly, no other")
        if self.schedule.zero_terminal_snr and self.prediction == "eps":
            raise UserError(
                "schedule.zero_terminal_snr leaves nothing of x_0 at T-1, where eps does not "
                "determine it: prediction is 'eps', it must be v, x0 or mean"
            )
        if self.min_snr_gamma and self.v_weighting:
            raise UserError("min_snr_gamma and v_weighting are two weightings: set one")

    def run(self, workdir: str | Path) -> None:
        """Train, from the newest checkpoint in `workdir` on, and write `model.safetensors`."""
        data, held_out = self.data.load("train"), self.data.load("held_out")
        net = make_net(self, data)
        if self.samples_per_class:
            check_sampler(net, self.sampler)
        workdir = self.claim(workdir)
        measure = _evaluator(net, self, held_out)

        def save(params) -> Path:
            classes.save(workdir / "model.safetensors", net, params)
            return workdir / "model.safetensors"

        def evaluate(params, done: int) -> dict[str, float]:
            if self.samples_per_class:
                _write_samples(net, params, self, workdir / "samples" / f"{done:07d}.png")
            return {"held_out_loss": measure(params)}

        fit(
            self,
            workdir,
            make_problem(net, self, data.flip),
            init=lambda: jax.jit(net.init)(jax.random.key(self.seed)),
            data=lambda: fetcher(data, self.seed, self.batch_size),
            save=save,
            evaluate=evaluate,
        )


class Labelled(NamedTuple):
    """Images in [-1, 1] and their labels."""

    x_0: Float[Array | np.ndarray, "b h w c"]
    label: Int[Array | np.ndarray, " b"]


def make_net(task: TrainDiffusion, data: Images) -> ClassNet:
    """The model that fits the data: its size, channels and classes follow from them."""
    height, _, channels = data.shape
    net = task.net.make(
        image_size=height,
        in_channels=channels,
        # One more stands for any class, where labels are dropped.
        num_classes=len(data.classes) + bool(data.classes and task.class_dropout > 0),
        learns_variance=task.variance.startswith("learned"),
    )
    schedule = task.schedule.make()
    return ClassNet(net, schedule, task.prediction, task.variance, data.classes, data.levels)


def fetcher(data: Images, seed: int, batch_size: int) -> Callable[[int], Labelled]:
    """A function from a step to its batch, rows drawn evenly from (seed, step)."""

    def fetch(step: int) -> Labelled:
        rows = np.random.default_rng([seed, step]).integers(data.count, size=batch_size)
        images, labels = data.rows(rows)
        return Labelled(to_x(images, data.levels), labels)

    return fetch


def losses_of(net: ClassNet, task: TrainDiffusion, predict: Callable, x_0, t, eps) -> Array:
    """The task's loss of each example, before any weighting for how t was drawn."""
    p, of = net.parameterisation, net.schedule
    if task.loss == "hybrid":
        return losses.hybrid_loss(predict, of, p, x_0, t, eps, task.vlb_weight, net.levels)
    if task.loss == "vlb":
        return losses.vlb_loss(predict, of, p, x_0, t, eps, net.levels)
    loss = losses.prediction_loss(predict, of, p, x_0, t, eps)
    if task.min_snr_gamma > 0:
        loss = loss * losses.min_snr_weight(of, task.prediction, t, task.min_snr_gamma)
    if task.v_weighting:
        loss = loss * losses.v_weight(of, task.prediction, t)
    return loss


def make_problem(net: ClassNet, task: TrainDiffusion, flip: bool) -> Problem:
    """What `fit` trains; with `by_importance` it remembers the losses seen, by t."""
    num_steps = net.schedule.num_steps

    def draw(key: Key[Array, ""], x_0: Any, label: Any, memory) -> tuple[Any, Any, Any, Any, Array]:
        key_t, key_eps, key_drop, key_flip = jax.random.split(key, 4)
        if task.by_importance:
            t, weight = timesteps.by_importance(key_t, (), timesteps.probabilities(memory))
        else:
            t, weight = timesteps.uniform(key_t, (), 0, num_steps), jnp.ones(())
        if flip:
            x_0 = jnp.where(jax.random.bernoulli(key_flip), x_0[:, ::-1], x_0)
        if net.null_class is not None:
            dropped = jax.random.bernoulli(key_drop, task.class_dropout)
            label = jnp.where(dropped, net.null_class, label)
        return x_0, label, t, weight, jax.random.normal(key_eps, x_0.shape)

    def loss(params, data: Labelled, keys, memory) -> Seen:
        drawn = jax.vmap(draw, (0, 0, 0, None))(keys, data.x_0, data.label, memory)
        x_0, label, t, weight, eps = drawn
        label = label if net.classes else None
        # Dropout's masks alone depend on how many devices share the batch.
        dropout = jax.random.fold_in(keys[0], 4)

        def predict(x_t, t):
            return net.predict(params, x_t, t, label, dropout)

        each = losses_of(net, task, predict, x_0, t, eps)
        mean = jnp.mean(weight * each)
        return Seen(mean, {"loss": mean}, (t, each) if task.by_importance else ())

    if not task.by_importance:
        return Problem(loss)

    def remember(memory, seen):
        return timesteps.remember(memory, *seen)

    return Problem(loss, timesteps.second_moment(num_steps), remember)


def _evaluator(net: ClassNet, task: TrainDiffusion, data: Images) -> Callable:
    """The task's loss of given weights on held-out images, fixed t and eps."""
    count = min(task.eval_examples, data.count)
    rows = np.linspace(0, data.count - 1, count).astype(int)
    images, label = data.rows(rows)
    x_0 = jnp.asarray(to_x(images, data.levels))
    label = jnp.asarray(label) if net.classes else None
    t = jnp.arange(count) * net.schedule.num_steps // count
    eps = jax.random.normal(jax.random.key(task.seed + 1), x_0.shape)

    @jax.jit
    def evaluate(params):
        def predict(x_t, t):
            return net.predict(params, x_t, t, label)

        return jnp.mean(losses_of(net, task, predict, x_0, t, eps))

    return lambda params: float(evaluate(params))


def _write_samples(net: ClassNet, params, task: TrainDiffusion, path: Path) -> None:
    names = net.classes[:10] or ("",)
    prompts = [name for name in names for _ in range(task.samples_per_class)]
    rgb = sample(net, params, prompts, jax.random.key(task.seed), task.sampler)
    write_png(path, grid(rgb, columns=task.samples_per_class))
