"""`task = train_prior`: train the text-conditional UNet and its text encoder on the toybox.

The text encoder first learns to read captions (`tasks.reading`), then all is trained together. The
loss is v-prediction's mean square (arXiv 2202.00512), late t drawn more often by `late_t`, and
`reading_weight` times the loss of reading, which keeps apart what pictures alone may merge;
captions are dropped for classifier-free guidance. Batches come from the data set on disk, or, with
`data.on_device`, straight from the renderer inside the step.
"""

import dataclasses
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array, Float, Int

from dreamjax.config import build, check_workdir
from dreamjax.diffusion.losses import prediction_loss
from dreamjax.diffusion.timesteps import late
from dreamjax.errors import UserError
from dreamjax.export.sheet import grid, write_png
from dreamjax.nets.text import TextConfig
from dreamjax.nets.unet import UNetConfig
from dreamjax.priors import toybox as toybox_prior
from dreamjax.tasks.reading import draw_reading, init_heads, learn_to_read, reading_loss
from dreamjax.tasks.sampling import SamplerConfig, sample
from dreamjax.toybox.captions import MAX_WORDS, VIEW_NAMES, VOCABULARY
from dreamjax.toybox.draw import (
    TEXTURELESS,
    ToyboxConfig,
    draw_example,
    kind_factors,
    more_textureless,
)
from dreamjax.toybox.pictures import SEEDS, Labelled
from dreamjax.toybox.pictures import draw as draw_pictures
from dreamjax.training import parallel
from dreamjax.training.checkpoint import Checkpoints
from dreamjax.training.loop import train
from dreamjax.training.optimizer import OptimizerConfig, apply_gradients, make_optimizer
from dreamjax.training.state import PriorState, ema_update, init_prior_state


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Where pictures come from: `counts` of train, validation and held_out under `dir`.

    `emphasis` names kinds to train on more often than on the others, each with its factor;
    textureless pictures come `textureless` times as often as they are drawn.
    """

    size: int = 32
    dir: str = "~/.cache/dreamjax"
    counts: tuple[int, int, int] = (65536, 2048, 2048)
    on_device: bool = False
    emphasis: tuple[tuple[str, float], ...] = ()
    textureless: float = 1.0

    def __post_init__(self):
        kind_factors(self.emphasis)  # names what is wrong before anything is written
        more_textureless(ToyboxConfig().shading, self.textureless)


@dataclasses.dataclass(frozen=True)
class TrainPriorConfig:
    """Everything about a training run; intervals are in steps."""

    seed: int = 0
    steps: int = 10000
    batch_size: int = 64
    caption_dropout: float = 0.1
    late_t: float = 1.0  # t is drawn with density (1 + late_t) u^late_t over u = t / T
    ema_decay: float = 0.999
    warm_start: str = ""  # "shipped", or the path of a safetensors file
    reading_steps: int = 0  # on captions alone, before the first picture
    reading_anchor: float = 0.0  # of the squared distance from the text as it was, meanwhile
    reading_weight: float = 0.01  # of the loss of reading, beside the pictures'
    steps_per_dispatch: int = 10
    log_every: int = 50
    eval_every: int = 1000
    eval_examples: int = 512
    checkpoint_every: int = 500
    schedule_steps: int = 1000
    data: DataConfig = DataConfig()
    unet: UNetConfig = UNetConfig()
    text: TextConfig = TextConfig(vocabulary_size=len(VOCABULARY), length=MAX_WORDS)
    optimizer: OptimizerConfig = OptimizerConfig()
    sample_captions: tuple[str, ...] = ()
    sample_guidance: float = 4.0
    sample_steps: int = 30


class Batch(NamedTuple):
    """Examples with their number in the global batch; pictures only where they are not drawn."""

    index: Int[Array, "*b"]
    rgb: Array | None
    tokens: Array | None


def run(config, workdir: str) -> None:
    """Train, from the newest checkpoint in `workdir` on, and write `prior.safetensors`."""
    settings = dict(config)
    settings.pop("task")
    c = build(TrainPriorConfig, settings)
    if c.checkpoint_every % c.steps_per_dispatch or c.steps % c.steps_per_dispatch:
        raise UserError("steps and checkpoint_every must be multiples of steps_per_dispatch")
    prior = toybox_prior.ToyboxPrior(
        unet=c.unet,
        text=c.text,
        vocabulary=VOCABULARY,
        image_size=c.data.size,
        schedule_steps=c.schedule_steps,
        view_names=VIEW_NAMES,
    )
    params = _start(prior, c) | {"heads": init_heads(c.text)}
    devices = parallel.devices_for(c.batch_size)
    workdir = check_workdir(workdir, config, harmless=("log_every", "checkpoint_every"))
    tx = make_optimizer(c.optimizer, c.steps)
    checkpoints = Checkpoints(workdir / "checkpoints")
    state = checkpoints.restore_latest(init_prior_state(params, tx))
    if state is None:
        if c.reading_steps:
            key = jax.random.key(c.seed)
            reader = {name: params[name] for name in ("text", "heads")}
            params |= learn_to_read(c.text, reader, key, c.reading_steps, c.reading_anchor)
        state = init_prior_state(params, tx)

    step_fn = parallel.pmap(parallel.scan(make_step(prior, c, tx)), devices)
    batches = _batches(c, devices)
    evaluate = _evaluator(prior, c)
    state, base_key = parallel.replicate((state, jax.random.key(c.seed)), devices)

    def after(done, state, bar, log):
        ema = parallel.first_copy(state.ema)
        if done % c.checkpoint_every == 0 or done == c.steps:
            kept = {name: ema[name] for name in ("text", "unet")}
            toybox_prior.save(workdir / "prior.safetensors", prior, kept)
        if done % c.eval_every == 0 or done == c.steps:
            losses = evaluate(ema)
            log.scalars(done, losses)
            bar.note(f"step {done}: " + "  ".join(f"{k} {v:.4f}" for k, v in losses.items()))
            _show_samples(prior, ema, c, workdir, done)

    train(
        lambda step, state: step_fn(state, batches(step), base_key),
        state,
        workdir,
        checkpoints,
        steps=c.steps,
        steps_per_dispatch=c.steps_per_dispatch,
        log_every=c.log_every,
        checkpoint_every=c.checkpoint_every,
        show=("loss", "reading_loss", "grad_norm"),
        after=after,
    )
    print(f"wrote {workdir / 'prior.safetensors'}")


def _start(prior, c: TrainPriorConfig):
    """Fresh parameters, or those of a weights file, which may lack some blocks.

    A fresh block is the identity, so a network that has grown by some begins as good as it was.
    Raises UserError for weights that the network has no place for.
    """
    params = jax.jit(prior.init)(jax.random.key(c.seed))
    if not c.warm_start:
        return params
    path = None if c.warm_start == "shipped" else Path(c.warm_start)
    flat = lambda tree: flatten_dict(tree, sep=".")  # noqa: E731
    fresh, loaded = flat(params), flat(toybox_prior.load(path)[1])
    if any(name not in fresh or fresh[name].shape != x.shape for name, x in loaded.items()):
        raise UserError(f"warm_start={c.warm_start} is of another architecture than the config's")
    return unflatten_dict({**fresh, **loaded}, sep=".")


def _load(data: DataConfig, split: str) -> Labelled:
    """A split of the data set on disk, drawn first if it is not there."""
    # Not needed where batches are drawn on the device, and slow to import.
    from dreamjax.toybox.dataset import load

    return load(str(Path(data.dir).expanduser()), split, data.size, data.counts)


def _batches(c: TrainPriorConfig, devices):
    """A function from step to what `steps_per_dispatch` steps from there are fed."""
    shape = (c.steps_per_dispatch, c.batch_size)
    index = np.broadcast_to(np.arange(c.batch_size, dtype=np.int32), shape)
    if c.data.on_device:
        fed = parallel.split_batch(Batch(index, None, None), devices, c.steps_per_dispatch)
        return lambda step: fed
    data = _load(c.data, "train")
    factors = kind_factors(c.data.emphasis)[data.kind]
    factors[data.look == TEXTURELESS] *= c.data.textureless
    bounds = np.cumsum(factors, dtype=np.float64)

    def batches(step: int):
        rows = np.stack(
            [draw_rows((c.seed, step + i), bounds, c.batch_size) for i in range(shape[0])]
        )
        batch = Batch(index, data.rgb[rows], data.tokens[rows])
        return parallel.split_batch(batch, devices, c.steps_per_dispatch)

    return batches


def draw_rows(
    seed: tuple[int, ...], bounds: Float[np.ndarray, " rows"], count: int
) -> Int[np.ndarray, " count"]:
    """`count` row numbers, the same for the same `seed`.

    `bounds` are the running sums of how likely each row is; they need not end at 1.
    """
    u = np.random.default_rng(seed).random(count)
    return np.searchsorted(bounds, u * bounds[-1], side="right")


def make_step(prior, c: TrainPriorConfig, tx):
    """One step on one device's share of the batch; example i draws from fold_in(step key, i)."""

    def fetch(batch: Batch, keys) -> tuple[Float[Array, "b h w 3"], Int[Array, "b l"]]:
        if not c.data.on_device:
            return batch.rgb.astype(jnp.float32) / 127.5 - 1.0, batch.tokens
        shading = more_textureless(ToyboxConfig().shading, c.data.textureless)
        draws = ToyboxConfig(shading=shading, emphasis=c.data.emphasis)
        example = jax.vmap(lambda k: draw_example(k, c.data.size, config=draws))(keys)
        return 2.0 * example.picture.rgb - 1.0, example.tokens

    def draw(key):
        key_t, key_eps, key_drop, key_example, key_reading = jax.random.split(key, 5)
        shape = (c.data.size, c.data.size, 3)
        t = late(key_t, (), 0, prior.schedule.num_steps, c.late_t)
        dropped = jax.random.bernoulli(key_drop, c.caption_dropout)
        eps = jax.random.normal(key_eps, shape)
        return t, eps, dropped, key_example, draw_reading(key_reading)

    def step(state: PriorState, batch: Batch, base_key):
        step_key = jax.random.fold_in(base_key, state.step)
        keys = jax.vmap(jax.random.fold_in, (None, 0))(step_key, batch.index)
        t, eps, dropped, example_keys, captions = jax.vmap(draw)(keys)
        x_0, tokens = fetch(batch, example_keys)
        tokens = jnp.where(dropped[:, None], 0, tokens)

        def loss_fn(params):
            text = prior.embed_ids(params, tokens)
            net = lambda x_t, t: prior.output(params, x_t, t, text)  # noqa: E731
            p = prior.parameterisation
            loss = jnp.mean(prediction_loss(net, prior.schedule, p, x_0, t, eps))
            reading = reading_loss(c.text, params, captions)
            return loss + c.reading_weight * reading, {"loss": loss, "reading_loss": reading}

        grad_fn = jax.value_and_grad(loss_fn, has_aux=True)
        (total, losses), grads = parallel.mean(grad_fn(state.params))
        params, opt_state, metrics = apply_gradients(
            tx, grads, total, state.params, state.opt_state
        )
        ema = ema_update(state.ema, params, c.ema_decay, state.step + 1)
        return PriorState(state.step + 1, params, ema, opt_state), {**losses, **metrics}

    return step


def _evaluator(prior, c: TrainPriorConfig):
    """v-loss of the averaged weights on fixed pictures, t and eps, by split."""
    chunk = 64
    count = c.eval_examples // chunk * chunk
    data = {split: draw_pictures(split, count, c.data.size) for split in ("validation", "held_out")}

    @jax.jit
    def chunk_loss(params, rgb, tokens, start):
        keys = jax.vmap(jax.random.fold_in, (None, 0))(
            jax.random.key(SEEDS["validation"]), start + jnp.arange(chunk)
        )
        t = (start + jnp.arange(chunk)) * 7919 % prior.schedule.num_steps
        eps = jax.vmap(lambda k: jax.random.normal(k, rgb.shape[1:]))(keys)
        text = prior.embed_ids(params, tokens)
        net = lambda x_t, t: prior.output(params, x_t, t, text)  # noqa: E731
        x_0 = rgb.astype(jnp.float32) / 127.5 - 1.0
        p = prior.parameterisation
        return jnp.mean(prediction_loss(net, prior.schedule, p, x_0, t, eps))

    def evaluate(params) -> dict[str, float]:
        return {
            f"{split}_loss": float(
                np.mean(
                    [
                        chunk_loss(params, rows.rgb[i : i + chunk], rows.tokens[i : i + chunk], i)
                        for i in range(0, count, chunk)
                    ]
                )
            )
            for split, rows in data.items()
        }

    return evaluate


def _show_samples(prior, params, c: TrainPriorConfig, workdir: Path, step: int) -> None:
    if c.sample_captions:
        sampler = SamplerConfig(steps=c.sample_steps, guidance_scale=c.sample_guidance)
        rgb = sample(prior, params, c.sample_captions, jax.random.key(c.seed), sampler)
        path = workdir / "samples" / f"{step:07d}.png"
        path.parent.mkdir(exist_ok=True)
        write_png(path, grid(rgb, columns=4, captions=c.sample_captions))
