"""Train the text-conditional UNet and its text encoder on the toybox.

The text encoder first learns to read captions (`toybox.reading`), then all is trained together. The
loss is v-prediction's mean square (arXiv 2202.00512), late t drawn more often by `late_t`, and
`reading_weight` times the loss of reading, which keeps apart what pictures alone may merge;
captions are dropped for classifier-free guidance. Batches come from the data set on disk, or, with
`data.on_device`, straight from the renderer inside the step.
"""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array, Float, Int, PyTree, UInt8

from dreamjax.diffusion.losses import prediction_loss
from dreamjax.diffusion.timesteps import late
from dreamjax.errors import UserError
from dreamjax.export.sheet import grid, write_png
from dreamjax.nets.text import TextConfig, TextEncoder
from dreamjax.nets.unet import GroupNorm, UNetConfig
from dreamjax.priors import toybox as toybox_prior
from dreamjax.priors.sampling import Sampler, check_sampler, sample
from dreamjax.priors.toybox import ToyboxNet
from dreamjax.settings import Dtype, NonNegative, Positive, Range, Share, settings
from dreamjax.toybox.captions import MAX_WORDS, VIEW_NAMES, VOCABULARY
from dreamjax.toybox.draw import (
    AS_USUAL,
    TEXTURELESS,
    Draws,
    Emphasis,
    draw_example,
    kind_factors,
    more_textureless,
)
from dreamjax.toybox.pictures import SEEDS
from dreamjax.toybox.pictures import draw as draw_pictures
from dreamjax.toybox.reading import draw_reading, init_heads, learn_to_read, reading_loss
from dreamjax.training.fit import Problem, Seen, Training, fit
from dreamjax.training.metrics import Progress
from dreamjax.workdir import resolved

EVAL_CHUNK = 64
Drawn = Annotated[int, Range(1, 10**7)]
Channels = Annotated[int, Range(4, 4096)]
Blocks = Annotated[int, Range(1, 32)]


@settings
class Captioned:
    """The captioned pictures that the prior is trained on."""

    size: Annotated[int, Range(4, 512)] = 32  # height and width, in pixels
    dir: str = "~/.cache/dreamjax"  # where drawn pictures are kept
    counts: tuple[Drawn, Drawn, Drawn] = (65_536, 2048, 2048)  # of train, validation and held_out
    on_device: bool = False  # draw each batch inside the step, nothing from disk
    emphasis: Emphasis = ()  # kinds to train on more often, as (("house", 4.0), ("car", 3.0))
    textureless: Positive = 1.0  # how many times as often to train on textureless pictures

    def __post_init__(self):
        kind_factors(self.emphasis)  # names what is wrong before anything is written

    @property
    def draws(self) -> Draws:
        """How pictures are drawn inside the step."""
        light = more_textureless(AS_USUAL.light, self.textureless)
        return Draws(light=light, emphasis=self.emphasis)


@settings
class TextSize:
    """Sizes of the text encoder."""

    dim: Annotated[int, Range(1, 4096)] = TextConfig.dim  # channels of a token
    layers: Annotated[int, Range(0, 64)] = TextConfig.layers  # transformer blocks
    heads: Annotated[int, Range(1, 256)] = TextConfig.heads  # of attention

    def __post_init__(self):
        if self.dim % self.heads:
            raise UserError(f"dim is {self.dim}: expected a multiple of heads, {self.heads}")

    def make(self) -> TextConfig:
        """The encoder of the toybox's words."""
        return TextConfig(len(VOCABULARY), MAX_WORDS, **vars(self))


@settings
class UNetSize:
    """Layout of the UNet; a level has half the resolution of the one before."""

    patch: Annotated[int, Range(1, 16)] = UNetConfig.patch  # pixels to a side of the finest level
    channels: Channels = UNetConfig.channels  # of the finest level, times its factor
    channel_mults: tuple[Blocks, ...] = UNetConfig.channel_mults  # a factor a level
    down_blocks: tuple[Blocks, ...] = UNetConfig.down_blocks  # by level, but the lowest
    middle_blocks: Blocks = UNetConfig.middle_blocks  # of the lowest level
    up_blocks: tuple[Blocks, ...] = UNetConfig.up_blocks  # by level, but the lowest
    attention_levels: tuple[Annotated[int, Range(0, 7)], ...] = UNetConfig.attention_levels
    """levels with attention, 0 the finest"""
    head_dim: Annotated[int, Range(1, 1024)] = UNetConfig.head_dim  # channels of a head
    dtype: Dtype = "float32"  # of the network's activations

    def __post_init__(self):
        levels = len(self.channel_mults)
        if not 1 <= levels <= 8:
            raise UserError(f"channel_mults is {self.channel_mults}: expected 1 to 8 factors")
        if self.channels % GroupNorm.group_size:
            raise UserError(
                f"channels is {self.channels}: expected a multiple of {GroupNorm.group_size}"
            )
        for name in ("down_blocks", "up_blocks"):
            if len(getattr(self, name)) < levels - 1:
                raise UserError(
                    f"{name} is {getattr(self, name)}: expected one number for each of "
                    f"{levels - 1} levels above the lowest"
                )
        for level in self.attention_levels:
            width = self.channels * self.channel_mults[min(level, levels - 1)]
            if level >= levels or width % self.head_dim:
                raise UserError(
                    f"attention_levels has {level}: expected levels below {levels} whose channels "
                    f"are a multiple of head_dim, {self.head_dim}"
                )

    def make(self, text_dim: int) -> UNetConfig:
        """The network for tokens of `text_dim` channels."""
        return UNetConfig(text_dim=text_dim, **vars(self))


@settings
class TrainPrior(Training):
    """Train the prior of toybox pictures; writes prior.safetensors."""

    caption_dropout: Share = 0.1  # share of captions dropped, for classifier-free guidance
    late_t: NonNegative = 1.0  # t is drawn with density (1 + late_t) u^late_t over u = t / T
    warm_start: str = ""  # weights to begin with: "shipped", or the path of a safetensors file
    reading_steps: Annotated[int, Range(0, 10**7)] = 0  # on captions alone, before any picture
    reading_anchor: NonNegative = 0.0  # of the squared distance from the text as it was, meanwhile
    reading_weight: NonNegative = 0.01  # of the loss of reading, beside the pictures'
    eval_examples: Annotated[int, Range(EVAL_CHUNK, 10**6)] = 512  # of each split
    schedule_steps: Annotated[int, Range(2, 100_000)] = 1000  # T of the cosine schedule
    data: Captioned = Captioned()  # what is trained on
    unet: UNetSize = UNetSize()  # the network
    text: TextSize = TextSize()  # the text encoder
    sample_captions: tuple[str, ...] = ()  # of pictures drawn with each evaluation
    sampler: Sampler = Sampler(steps=30, guidance_scale=4.0)  # of those pictures

    def __post_init__(self):
        multiple = self.net.unet.multiple
        if self.data.size % multiple:
            raise UserError(
                f"data.size is {self.data.size}: expected a multiple of {multiple}, the pixels "
                "that the lowest level of unet sees as one"
            )
        if self.sample_captions:
            check_sampler(self.net, self.sampler)

    @functools.cached_property
    def net(self) -> ToyboxNet:
        """The network that is trained."""
        return ToyboxNet(
            unet=self.unet.make(self.text.dim),
            text=self.text.make(),
            vocabulary=VOCABULARY,
            image_size=self.data.size,
            schedule_steps=self.schedule_steps,
            view_names=VIEW_NAMES,
        )

    def run(self, workdir: str | Path) -> None:
        """Train, from the newest checkpoint in `workdir` on, and write `prior.safetensors`."""
        start = _start(self.net, self)
        workdir = self.claim(workdir)
        measure = _evaluator(self.net, self)

        def save(params) -> Path:
            kept = {name: params[name] for name in ("text", "unet")}
            toybox_prior.save(workdir / "prior.safetensors", self.net, kept)
            return workdir / "prior.safetensors"

        def evaluate(params, done: int) -> dict[str, float]:
            if self.sample_captions:
                _write_samples(self.net, params, self, workdir / "samples" / f"{done:07d}.png")
            return measure(params)

        fit(
            self,
            workdir,
            make_problem(self.net, self),
            init=lambda: start | {"heads": init_heads(self.text.dim)},
            prepare=lambda params: _prepared(self.net, self, params),
            data=lambda: _fetcher(self),
            save=save,
            evaluate=evaluate,
            show=("loss", "reading_loss", "grad_norm"),
        )


class Pictures(NamedTuple):
    """Pictures as bytes and the words of their captions; None where they are drawn in the step."""

    rgb: UInt8[Array | np.ndarray, "b h w 3"] | None
    tokens: Int[Array | np.ndarray, "b l"] | None


def encoder(config: TextConfig) -> Callable:
    """The text encoder as a function of its parameters and of word numbers."""

    def encode(params, tokens):
        return TextEncoder(config).apply({"params": params}, tokens)

    return encode


def _start(net: ToyboxNet, task: TrainPrior) -> PyTree:
    """Fresh parameters, or those of a weights file, which may lack some blocks.

    A fresh block is the identity, so a network that has grown by some begins as good as it was.
    Raises UserError for weights that the network has no place for.
    """
    params = jax.jit(net.init)(jax.random.key(task.seed))
    if not task.warm_start:
        return params
    path = "" if task.warm_start == "shipped" else resolved(task.warm_start)
    fresh: dict[str, Any] = flatten_dict(params, sep=".")
    loaded: dict[str, Any] = flatten_dict(toybox_prior.load(path)[1], sep=".")
    if any(name not in fresh or fresh[name].shape != x.shape for name, x in loaded.items()):
        raise UserError(
            f"warm_start={task.warm_start} is of another architecture than the config's"
        )
    return unflatten_dict({**fresh, **loaded}, sep=".")


def _prepared(net: ToyboxNet, task: TrainPrior, params: PyTree) -> PyTree:
    """Parameters whose text encoder has learnt to read, where the task asks for that."""
    if not task.reading_steps:
        return params
    reader = {name: params[name] for name in ("text", "heads")}
    key = jax.random.key(task.seed)
    with Progress(task.reading_steps, 0, show=("loss", "moved")) as bar:
        bar.note("teaching the text encoder to read captions")
        bar.compiling(0)
        read = learn_to_read(
            encoder(net.text),
            reader,
            key,
            task.reading_steps,
            task.reading_anchor,
            progress=bar.update,
        )
    return params | read


def _fetcher(task: TrainPrior) -> Callable[[int], Pictures]:
    """A function from a step to its batch."""
    if task.data.on_device:
        return lambda step: Pictures(None, None)
    # Not needed where batches are drawn on the device, and slow to import.
    from dreamjax.toybox.dataset import load

    source = task.data
    data = load(str(resolved(source.dir)), "train", source.size, source.counts)
    factors = kind_factors(source.emphasis)[data.kind]
    factors[data.look == TEXTURELESS] *= source.textureless
    bounds = np.cumsum(factors, dtype=np.float64)

    def fetch(step: int) -> Pictures:
        rows = draw_rows((task.seed, step), bounds, task.batch_size)
        return Pictures(data.rgb[rows], data.tokens[rows])

    return fetch


def draw_rows(
    seed: tuple[int, ...], bounds: Float[np.ndarray, " rows"], count: int
) -> Int[np.ndarray, " count"]:
    """`count` row numbers, the same for the same `seed`.

    `bounds` are the running sums of how likely each row is; they need not end at 1.
    """
    u = np.random.default_rng(seed).random(count)
    return np.searchsorted(bounds, u * bounds[-1], side="right")


def make_problem(net: ToyboxNet, task: TrainPrior) -> Problem:
    """What `fit` trains: v-prediction given the caption, and reading."""
    draws, size = task.data.draws, net.image_size
    encode = encoder(net.text)

    def fetch(data: Pictures, keys) -> tuple[Float[Array, "b h w 3"], Int[Array, "b l"]]:
        if data.rgb is not None and data.tokens is not None:
            return jnp.asarray(data.rgb, jnp.float32) / 127.5 - 1.0, jnp.asarray(data.tokens)
        example = jax.vmap(lambda key: draw_example(key, size, draws=draws))(keys)
        return 2.0 * example.picture.rgb - 1.0, example.tokens

    def draw(key):
        key_t, key_eps, key_drop, key_example, key_reading = jax.random.split(key, 5)
        t = late(key_t, (), 0, net.schedule.num_steps, task.late_t)
        dropped = jax.random.bernoulli(key_drop, task.caption_dropout)
        eps = jax.random.normal(key_eps, net.shape)
        return t, eps, dropped, key_example, draw_reading(key_reading)

    def loss(params, data: Pictures, keys, memory) -> Seen:
        t, eps, dropped, example_keys, captions = jax.vmap(draw)(keys)
        x_0, tokens = fetch(data, example_keys)
        text = net.embed_ids(params, jnp.where(dropped[:, None], 0, tokens))
        seen = jnp.mean(_v_loss(net, params, x_0, t, eps, text))
        reading = reading_loss(encode, params, captions)
        metrics = {"loss": seen, "reading_loss": reading}
        return Seen(seen + task.reading_weight * reading, metrics)

    return Problem(loss)


def _v_loss(net: ToyboxNet, params, x_0, t, eps, text) -> Float[Array, " b"]:
    def predict(x_t, t):
        return net.predict(params, x_t, t, text)

    return prediction_loss(predict, net.schedule, net.parameterisation, x_0, t, eps)


def _evaluator(net: ToyboxNet, task: TrainPrior) -> Callable[[PyTree], dict[str, float]]:
    """v-loss of given weights on fixed pictures, t and eps, by split."""
    chunk = EVAL_CHUNK
    count = task.eval_examples // chunk * chunk

    @functools.cache
    def pictures(split: str):
        return draw_pictures(split, count, net.image_size)

    @jax.jit
    def chunk_loss(params, rgb, tokens, start):
        keys = jax.vmap(jax.random.fold_in, (None, 0))(
            jax.random.key(SEEDS["validation"]), start + jnp.arange(chunk)
        )
        t = (start + jnp.arange(chunk)) * 7919 % net.schedule.num_steps
        eps = jax.vmap(lambda key: jax.random.normal(key, rgb.shape[1:]))(keys)
        x_0 = rgb.astype(jnp.float32) / 127.5 - 1.0
        return jnp.mean(_v_loss(net, params, x_0, t, eps, net.embed_ids(params, tokens)))

    def mean_loss(params, split: str) -> float:
        rows = pictures(split)
        starts = range(0, count, chunk)
        cuts = ((rows.rgb[i : i + chunk], rows.tokens[i : i + chunk], i) for i in starts)
        return float(np.mean([chunk_loss(params, *cut) for cut in cuts]))

    splits = ("validation", "held_out")
    return lambda params: {f"{split}_loss": mean_loss(params, split) for split in splits}


def _write_samples(net: ToyboxNet, params, task: TrainPrior, path: Path) -> None:
    captions = task.sample_captions
    rgb = sample(net, params, captions, jax.random.key(task.seed), task.sampler)
    write_png(path, grid(rgb, columns=4, captions=captions))
