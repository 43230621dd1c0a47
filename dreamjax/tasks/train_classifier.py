"""`task = train_classifier`: train the noisy-image classifier that guides sampling.

It is the UNet's encoder with attention pooling (arXiv 2105.05233 section 4), trained with cross
entropy on images noised to an even t of the same schedule as the model that it is to guide.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax

from dreamjax.config import build, check_counts, check_workdir
from dreamjax.diffusion import timesteps
from dreamjax.diffusion.process import q_sample
from dreamjax.errors import UserError
from dreamjax.nets.adm import ADMConfig
from dreamjax.priors import classifier as classifiers
from dreamjax.tasks.images import Images, ImagesConfig, load, to_x
from dreamjax.tasks.train_diffusion import COUNTS, Batch, ScheduleConfig, batches_of
from dreamjax.training import parallel
from dreamjax.training.checkpoint import Checkpoints
from dreamjax.training.loop import train
from dreamjax.training.optimizer import OptimizerConfig, apply_gradients, make_optimizer
from dreamjax.training.state import PriorState, ema_update, init_prior_state

LEVELS = (0.0, 0.1, 0.25, 0.5, 0.75)


@dataclasses.dataclass(frozen=True)
class TrainClassifierConfig:
    """Everything about a training run but the network; intervals are in steps."""

    seed: int = 0
    steps: int = 1000
    batch_size: int = 64
    ema_decay: float = 0.998
    steps_per_dispatch: int = 1
    log_every: int = 50
    eval_every: int = 500
    eval_examples: int = 512
    checkpoint_every: int = 250
    data: ImagesConfig = ImagesConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    optimizer: OptimizerConfig = OptimizerConfig()

    def __post_init__(self):
        check_counts(self, *COUNTS)
        if not 0.0 <= self.ema_decay < 1.0:
            raise UserError(f"ema_decay must be in [0, 1); got {self.ema_decay}")


def run(config, workdir: str) -> None:
    """Train, from the newest checkpoint in `workdir` on, and write `classifier.safetensors`."""
    settings = dict(config)
    settings.pop("task")
    net_settings = dict(settings.pop("net", {}))
    c = build(TrainClassifierConfig, settings)
    data, held_out = load(c.data, "train"), load(c.data, "held_out")
    if not data.classes:
        raise UserError(f"the data set {c.data.name} has no classes to tell apart")
    height, _, channels = data.shape
    follow = {"image_size": height, "in_channels": channels, "num_classes": 0}
    net = build(ADMConfig, {**net_settings, **follow}, "config.net")
    model = classifiers.NoisyClassifier(net, c.schedule.make(), data.classes)
    devices = parallel.devices_for(c.batch_size)
    workdir = check_workdir(workdir, config, harmless=("log_every", "checkpoint_every"))
    tx = make_optimizer(c.optimizer, c.steps)
    checkpoints = Checkpoints(workdir / "checkpoints")
    state = init_prior_state(jax.jit(model.init)(jax.random.key(c.seed)), tx)
    state = checkpoints.restore_latest(state) or state

    step_fn = parallel.pmap(parallel.scan(make_step(model, c, tx)), devices)
    batches = batches_of(c, data, devices)
    evaluate = _evaluator(model, c, held_out)
    state, base_key = parallel.replicate((state, jax.random.key(c.seed)), devices)

    def after(done, state, bar, log):
        ema = parallel.first_copy(state.ema)
        if done % c.checkpoint_every < c.steps_per_dispatch or done == c.steps:
            classifiers.save(workdir / "classifier.safetensors", model, ema)
        if done % c.eval_every < c.steps_per_dispatch or done == c.steps:
            accuracies = evaluate(ema)
            log.scalars(done, accuracies)
            shown = "  ".join(f"{name} {value:.3f}" for name, value in accuracies.items())
            bar.note(f"step {done}: {shown}")

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
    print(f"wrote {workdir / 'classifier.safetensors'}")


def make_step(model: classifiers.NoisyClassifier, c: TrainClassifierConfig, tx):
    """One step on one device's share of the batch; example i draws from fold_in(step key, i)."""

    def draw(key, x_0):
        key_t, key_eps, key_flip = jax.random.split(key, 3)
        if c.data.flip:
            x_0 = jnp.where(jax.random.bernoulli(key_flip), x_0[:, ::-1], x_0)
        t = timesteps.uniform(key_t, (), 0, model.schedule.num_steps)
        return x_0, t, jax.random.normal(key_eps, x_0.shape)

    def step(state: PriorState, batch: Batch, base_key):
        step_key = jax.random.fold_in(base_key, state.step)
        keys = jax.vmap(jax.random.fold_in, (None, 0))(step_key, batch.index)
        x_0, t, eps = jax.vmap(draw)(keys, batch.x_0)
        x_t = q_sample(model.schedule, x_0, t, eps)
        dropout = jax.random.fold_in(keys[0], 4)

        def loss_fn(params):
            logits = model.logits(params, x_t, t, dropout)
            each = optax.softmax_cross_entropy_with_integer_labels(logits, batch.label)
            return jnp.mean(each)

        loss, grads = parallel.mean(jax.value_and_grad(loss_fn)(state.params))
        params, opt_state, metrics = apply_gradients(tx, grads, loss, state.params, state.opt_state)
        ema = ema_update(state.ema, params, c.ema_decay, state.step + 1)
        return PriorState(state.step + 1, params, ema, opt_state), {"loss": loss, **metrics}

    return step


def _evaluator(model, c: TrainClassifierConfig, data: Images):
    """Share of held-out images read right, at some levels of noise (fractions of T)."""
    rows = np.linspace(0, data.count - 1, min(c.eval_examples, data.count)).astype(int)
    images, label = data.rows(rows)
    x_0 = jnp.asarray(to_x(images, data.levels))
    eps = jax.random.normal(jax.random.key(c.seed + 1), x_0.shape)

    @jax.jit
    def accuracy(params, index):
        t = jnp.full(x_0.shape[:1], index)
        logits = model.logits(params, q_sample(model.schedule, x_0, t, eps), t)
        return jnp.mean(jnp.argmax(logits, -1) == label)

    def evaluate(params) -> dict[str, float]:
        total = model.schedule.num_steps
        at = {f"accuracy_t_{level:g}": int(level * total) for level in LEVELS}
        return {name: float(accuracy(params, index)) for name, index in at.items()}

    return evaluate
