"""`task = train_diffusion`: train an ADM UNet on labelled images of any kind (`tasks.images`).

The network predicts eps, x_0, v or the posterior's mean, with a fixed or a learned variance, and is
trained by the simple, the hybrid or the whole variational loss (`diffusion.losses`). Labels are
dropped now and then for classifier-free guidance.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Int

from dreamjax.config import build, check_counts, check_workdir
from dreamjax.diffusion import losses, schedule, timesteps
from dreamjax.errors import UserError
from dreamjax.export.sheet import grid, write_png
from dreamjax.nets.adm import ADMConfig
from dreamjax.priors import classes
from dreamjax.tasks.images import Images, ImagesConfig, ahead, load, to_x
from dreamjax.tasks.sampling import SamplerConfig, check_sampler, sample
from dreamjax.training import parallel
from dreamjax.training.checkpoint import Checkpoints
from dreamjax.training.loop import train
from dreamjax.training.optimizer import OptimizerConfig, apply_gradients, make_optimizer
from dreamjax.training.state import ema_update

SCHEDULES = {
    # Made for 1000 steps; with fewer, each adds as much more noise (guided-diffusion's scaling).
    "linear": lambda steps: schedule.linear(steps, 0.1 / steps, 20.0 / steps),
    "scaled_linear": schedule.scaled_linear,
    "cosine": schedule.cosine,
}
LOSSES = ("simple", "hybrid", "vlb")
COUNTS = ("steps", "batch_size", "steps_per_dispatch")
COUNTS += ("log_every", "eval_every", "eval_examples", "checkpoint_every")


@dataclasses.dataclass(frozen=True)
class ScheduleConfig:
    """The betas: `shape` is one of `SCHEDULES`, rescaled with `zero_terminal_snr`."""

    shape: str = "linear"
    steps: int = 1000
    zero_terminal_snr: bool = False

    def make(self) -> schedule.Schedule:
        """The schedule; raises UserError for an unknown shape or a wrong number of steps."""
        if self.shape not in SCHEDULES:
            known = ", ".join(SCHEDULES)
            raise UserError(f"schedule.shape is {self.shape!r}: expected one of {known}")
        made = SCHEDULES[self.shape](self.steps)
        return schedule.zero_terminal_snr(made) if self.zero_terminal_snr else made


@dataclasses.dataclass(frozen=True)
class TrainDiffusionConfig:
    """Everything about a training run but the network; intervals are in steps.

    `min_snr_gamma` 0 is no weighting, `v_weighting` weighs any prediction's simple loss as v's;
    `by_importance` draws t by the losses seen (arXiv 2102.09672 section 3.3), else evenly.
    """

    seed: int = 0
    steps: int = 2000
    batch_size: int = 64
    prediction: str = "eps"
    variance: str = "fixed_large"
    loss: str = "simple"
    vlb_weight: float = 0.001
    min_snr_gamma: float = 0.0
    v_weighting: bool = False
    by_importance: bool = False
    class_dropout: float = 0.0
    ema_decay: float = 0.999
    steps_per_dispatch: int = 1
    log_every: int = 50
    eval_every: int = 500
    eval_examples: int = 256
    checkpoint_every: int = 250
    data: ImagesConfig = ImagesConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    sampler: SamplerConfig = SamplerConfig()
    samples_per_class: int = 8

    def __post_init__(self):
        check_counts(self, *COUNTS)
        for name in ("class_dropout", "ema_decay"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise UserError(f"{name} must be in [0, 1); got {getattr(self, name)}")
        for name in ("vlb_weight", "min_snr_gamma", "samples_per_class"):
            if getattr(self, name) < 0:
                raise UserError(f"{name} must be at least 0; got {getattr(self, name)}")
        if self.loss not in LOSSES:
            raise UserError(f"loss is {self.loss!r}: expected one of {', '.join(LOSSES)}")
        if self.loss == "hybrid" and self.variance in ("fixed_small", "fixed_large"):
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


class State(NamedTuple):
    """What a run carries from step to step; `memory` are the losses seen, by t."""

    step: Int[Array, ""]
    params: Any
    ema: Any
    opt_state: optax.OptState
    memory: timesteps.SecondMoment


class Batch(NamedTuple):
    """Examples with their number in the global batch: images in [-1, 1] and labels."""

    index: Int[Array, "*b"]
    x_0: Array
    label: Int[Array, "*b"]


def run(config, workdir: str) -> None:
    """Train, from the newest checkpoint in `workdir` on, and write `model.safetensors`."""
    settings = dict(config)
    settings.pop("task")
    net_settings = dict(settings.pop("net", {}))
    c = build(TrainDiffusionConfig, settings)
    data, held_out = load(c.data, "train"), load(c.data, "held_out")
    prior = make_prior(c, net_settings, data)
    if c.samples_per_class:
        check_sampler(prior.schedule, c.sampler)
    devices = parallel.devices_for(c.batch_size)
    workdir = check_workdir(workdir, config, harmless=("log_every", "checkpoint_every"))
    tx = make_optimizer(c.optimizer, c.steps)
    checkpoints = Checkpoints(workdir / "checkpoints")
    state = init_state(prior, tx, c.seed)
    state = checkpoints.restore_latest(state) or state

    step_fn = parallel.pmap(parallel.scan(make_step(prior, c, tx)), devices)
    batches = batches_of(c, data, devices)
    evaluate = _evaluator(prior, c, held_out)
    state, base_key = parallel.replicate((state, jax.random.key(c.seed)), devices)

    def after(done, state, bar, log):
        ema = parallel.first_copy(state.ema)
        if done % c.checkpoint_every < c.steps_per_dispatch or done == c.steps:
            classes.save(workdir / "model.safetensors", prior, ema)
        if done % c.eval_every < c.steps_per_dispatch or done == c.steps:
            loss = evaluate(ema)
            log.scalars(done, {"held_out_loss": loss})
            bar.note(f"step {done}: held_out_loss {loss:.4f}")
            _show_samples(prior, ema, c, workdir / "samples" / f"{done:07d}.png")

    train(
        lambda step, state: step_fn(state, batches(step), base_key),
        state,
        workdir,
        checkpoints,
        steps=c.steps,
        steps_per_dispatch=c.steps_per_dispatch,
        log_every=c.log_every,
        checkpoint_every=c.checkpoint_every,
        show=("loss", "grad_norm"),
        after=after,
    )
    print(f"wrote {workdir / 'model.safetensors'}")


def make_prior(c: TrainDiffusionConfig, net: dict, data: Images) -> classes.ClassPrior:
    """The model that fits the data: its size, channels and classes follow from them."""
    height, _, channels = data.shape
    follow = {
        "image_size": height,
        "in_channels": channels,
        # One more stands for any class, where labels are dropped.
        "num_classes": len(data.classes) + bool(data.classes and c.class_dropout > 0),
        "learns_variance": c.variance.startswith("learned"),
    }
    if given := sorted(set(net) & set(follow)):
        raise UserError(f"config.net.{given[0]} follows from the data and cannot be set")
    return classes.ClassPrior(
        net=build(ADMConfig, {**net, **follow}, "config.net"),
        schedule=c.schedule.make(),
        prediction=c.prediction,
        variance=c.variance,
        classes=data.classes,
        levels=data.levels,
    )


def init_state(prior: classes.ClassPrior, tx, seed: int) -> State:
    """The state before the first step; the average starts as a copy of the parameters."""
    params = jax.jit(prior.init)(jax.random.key(seed))
    ema = jax.tree.map(jnp.array, params)
    memory = timesteps.second_moment(prior.schedule.num_steps)
    return State(jnp.zeros((), jnp.int32), params, ema, tx.init(params), memory)


def batches_of(c, data: Images, devices):
    """A function from step to what `steps_per_dispatch` steps from there are fed."""
    shape = (c.steps_per_dispatch, c.batch_size)
    index = np.broadcast_to(np.arange(c.batch_size, dtype=np.int32), shape)

    def fetch(step: int):
        draws = [np.random.default_rng([c.seed, step + i]) for i in range(shape[0])]
        rows = np.stack([draw.integers(data.count, size=shape[1]) for draw in draws])
        images, labels = data.rows(rows.reshape(-1))
        x_0 = to_x(images, data.levels).reshape(*shape, *data.shape)
        batch = Batch(index, x_0, labels.reshape(shape))
        return parallel.split_batch(batch, devices, c.steps_per_dispatch)

    return ahead(fetch, c.steps_per_dispatch)


def losses_of(prior, c: TrainDiffusionConfig, net, x_0, t, eps) -> Array:
    """The configured loss of each example, before any weighting for how t was drawn."""
    p, of = prior.parameterisation, prior.schedule
    if c.loss == "hybrid":
        return losses.hybrid_loss(net, of, p, x_0, t, eps, c.vlb_weight, prior.levels)
    if c.loss == "vlb":
        return losses.vlb_loss(net, of, p, x_0, t, eps, prior.levels)
    loss = losses.prediction_loss(net, of, p, x_0, t, eps)
    if c.min_snr_gamma > 0:
        loss = loss * losses.min_snr_weight(of, c.prediction, t, c.min_snr_gamma)
    if c.v_weighting:
        loss = loss * losses.v_weight(of, c.prediction, t)
    return loss


def make_step(prior: classes.ClassPrior, c: TrainDiffusionConfig, tx):
    """One step on one device's share of the batch; example i draws from fold_in(step key, i)."""
    num_steps = prior.schedule.num_steps

    def draw(key, x_0, label, p_t):
        key_t, key_eps, key_drop, key_flip = jax.random.split(key, 4)
        if c.by_importance:
            t, weight = timesteps.by_importance(key_t, (), p_t)
        else:
            t, weight = timesteps.uniform(key_t, (), 0, num_steps), jnp.ones(())
        if c.data.flip:
            x_0 = jnp.where(jax.random.bernoulli(key_flip), x_0[:, ::-1], x_0)
        if prior.null_class is not None:
            dropped = jax.random.bernoulli(key_drop, c.class_dropout)
            label = jnp.where(dropped, prior.null_class, label)
        return x_0, label, t, weight, jax.random.normal(key_eps, x_0.shape)

    def step(state: State, batch: Batch, base_key):
        step_key = jax.random.fold_in(base_key, state.step)
        keys = jax.vmap(jax.random.fold_in, (None, 0))(step_key, batch.index)
        p_t = timesteps.probabilities(state.memory)
        drawn = jax.vmap(draw, (0, 0, 0, None))(keys, batch.x_0, batch.label, p_t)
        x_0, label, t, weight, eps = drawn
        label = label if prior.classes else None
        # Dropout's masks alone depend on how many devices share the batch.
        dropout = jax.random.fold_in(keys[0], 4)

        def loss_fn(params):
            net = lambda x_t, t: prior.output(params, x_t, t, label, dropout)  # noqa: E731
            each = losses_of(prior, c, net, x_0, t, eps)
            return jnp.mean(weight * each), each

        (loss, each), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
        loss, grads = parallel.mean((loss, grads))
        params, opt_state, metrics = apply_gradients(tx, grads, loss, state.params, state.opt_state)
        ema = ema_update(state.ema, params, c.ema_decay, state.step + 1)
        memory = state.memory
        if c.by_importance:
            memory = timesteps.remember(memory, *parallel.gather((t, each)))
        return State(state.step + 1, params, ema, opt_state, memory), {"loss": loss, **metrics}

    return step


def _evaluator(prior, c: TrainDiffusionConfig, data: Images):
    """The configured loss of the averaged weights on held-out images, fixed t and eps."""
    count = min(c.eval_examples, data.count)
    rows = np.linspace(0, data.count - 1, count).astype(int)
    images, label = data.rows(rows)
    x_0 = jnp.asarray(to_x(images, data.levels))
    label = jnp.asarray(label) if prior.classes else None
    t = jnp.arange(count) * prior.schedule.num_steps // count
    eps = jax.random.normal(jax.random.key(c.seed + 1), x_0.shape)

    @jax.jit
    def evaluate(params):
        net = lambda x_t, t: prior.output(params, x_t, t, label)  # noqa: E731
        return jnp.mean(losses_of(prior, c, net, x_0, t, eps))

    return lambda params: float(evaluate(params))


def _show_samples(prior, params, c: TrainDiffusionConfig, path) -> None:
    if c.samples_per_class:
        names = prior.classes[:10] or ("",)
        prompts = [name for name in names for _ in range(c.samples_per_class)]
        rgb = sample(prior, params, prompts, jax.random.key(c.seed), c.sampler)
        path.parent.mkdir(exist_ok=True)
        write_png(path, grid(rgb, columns=c.samples_per_class))
