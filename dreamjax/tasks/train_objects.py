"""Train the prior of named things (`priors.objects`) on pictures of meshes and of the toybox.

Pictures come from disk as G-buffers; inside the step they are recoloured, lit and put before a
backdrop. First the text, the view and their mean picture learn alone (`learn_means`), then
all does. The loss is v-prediction's mean square, late t drawn more often, and the mean picture's.
For guidance, text and camera are dropped together at times, and the camera alone at others.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key, PyTree
from PIL import Image, ImageDraw

from dreamjax.data.captions import vocabulary
from dreamjax.data.meshes import Drawing, Mesh, draw_meshes, left_out, read_meshes
from dreamjax.data.mixture import Mixing, Mixture, Pictures
from dreamjax.data.pictures import LIT, Composed, compose
from dreamjax.data.toybox import draw_toybox
from dreamjax.diffusion.losses import prediction_loss
from dreamjax.diffusion.reverse import predicted_eps
from dreamjax.diffusion.samplers import ddim_sample
from dreamjax.diffusion.timesteps import late
from dreamjax.errors import UserError
from dreamjax.export.progress import progress
from dreamjax.nets.text import Text, TextConfig
from dreamjax.priors import objects, toybox
from dreamjax.priors.objects import ObjectsNet
from dreamjax.priors.sampling import Sampler, guided_net
from dreamjax.scene.camera import Cameras, middle_camera
from dreamjax.scene.shading import Light
from dreamjax.settings import NonNegative, Range, Share, settings, short
from dreamjax.tasks.train_prior import UNetSize
from dreamjax.training.fit import Problem, Seen, Training, fit
from dreamjax.training.optimizer import Adam
from dreamjax.workdir import claim, replacing, resolved

EVAL_CHUNK = SAMPLE_CHUNK = 32
TEXT_LENGTH = 24  # pieces of the longest caption
VALIDATION_KEY = 1
# What a sheet of samples is seen from: azimuth and elevation in degrees.
SHEET_CAMERAS = ((0.0, 15.0), (60.0, 20.0), (180.0, 15.0), (290.0, 35.0))


@settings
class NamedThings:
    """The pictures that the prior is trained on."""

    meshes: str = ""  # a folder of GLB or OBJ files, or an .npz file with its .csv
    phrases: tuple[str, ...] = ()  # of the meshes that are taken; (): all
    dir: str = "~/.cache/dreamjax"  # where drawn pictures are kept
    drawing: Drawing = Drawing()  # how meshes are drawn
    toybox_pictures: Annotated[int, Range(0, 10**7)] = 12_288  # that are drawn beside; 0: none
    mixing: Mixing = Mixing()  # which pictures are trained on, and how often
    light: Light = Light(shaded=0.55, textureless=0.25)  # drawn anew each time

    def read(self) -> list[Mesh]:
        """What is drawn; raises UserError where nothing can be read, and for unknown phrases."""
        meshes, phrases = read_meshes(self.meshes), self.phrases
        missing = set(phrases) - {mesh.phrase for mesh in meshes}
        if missing:
            raise UserError(f"data.phrases: no mesh is named {short(sorted(missing))}")
        return [mesh for mesh in meshes if mesh.phrase in phrases] if phrases else meshes

    def mix(self, meshes: Sequence[Mesh], tokenise: Callable[[str], np.ndarray]) -> Mixture:
        """What batches are drawn from; its pictures are drawn first where they are missing."""
        cache, toybox = resolved(self.dir), None
        pictures = draw_meshes(meshes, self.drawing, cache)
        if self.toybox_pictures:
            toybox = draw_toybox(self.toybox_pictures, self.drawing.size, cache)
        return Mixture(pictures, toybox, tokenise, self.mixing, self.light, left_out())


@settings
class TrainObjects(Training):
    """Train the prior of named things; writes prior.safetensors."""

    data: NamedThings = NamedThings()  # what is trained on
    size: Annotated[int, Range(8, 512)] = 32  # pixels of the pictures; the weights fit any size
    text_dropout: Share = 0.1  # share of pictures told neither text nor camera, for guidance
    camera_dropout: Share = 0.1  # share of pictures told the text alone
    mean_steps: Annotated[int, Range(0, 10**7)] = 4000
    """steps that text, view and mean picture learn alone, before all else"""
    mean_batch: Annotated[int, Range(1, 65_536)] = 256  # pictures in each of them
    late_t: NonNegative = 1.0  # t is drawn with density (1 + late_t) u^late_t over u = t / T
    warm_start: str = ""  # a safetensors file with weights to begin with, of any picture size
    from_toybox: bool = False  # begin with the shipped prior's UNet and words, no warm_start
    eval_pictures: Annotated[int, Range(EVAL_CHUNK, 10**6)] = 512  # of each kind
    unet: UNetSize = UNetSize()  # the network
    text_dim: Annotated[int, Range(8, 1024)] = 128  # channels of a token
    text_layers: Annotated[int, Range(0, 64)] = 2  # transformer blocks
    sample_captions: tuple[str, ...] = ()  # of pictures drawn with each evaluation
    sampler: Sampler = Sampler(steps=30, guidance_scale=3.0)  # of those pictures

    def __post_init__(self):
        if self.text_dropout + self.camera_dropout > 1.0:
            raise UserError(
                f"text_dropout is {self.text_dropout} and camera_dropout {self.camera_dropout}: "
                "expected at most 1 together"
            )
        if self.data.drawing.size % self.size:
            raise UserError(
                f"size is {self.size}: expected a divisor of data.drawing.size, "
                f"{self.data.drawing.size}"
            )
        check_ddim(self.sampler)

    @functools.cached_property
    def meshes(self) -> list[Mesh]:
        """What is drawn; raises UserError where nothing can be read."""
        return self.data.read()

    @functools.cached_property
    def net(self) -> ObjectsNet:
        """The network that is trained; its words are those of the captions."""
        pieces = ("", objects.PLURAL, *vocabulary(mesh.phrase for mesh in self.meshes))
        text = TextConfig(len(pieces), TEXT_LENGTH, self.text_dim, self.text_layers)
        return ObjectsNet(self.unet.make(self.text_dim), text, pieces, image_size=self.size)

    @functools.cached_property
    def mixture(self) -> Mixture:
        """What batches are drawn from; its pictures are drawn first where they are missing."""
        return self.data.mix(self.meshes, self.net.tokenise)

    def run(self, workdir: str | Path) -> None:
        """Train, from the newest checkpoint in `workdir` on, and write `prior.safetensors`."""
        net, start = self.net, first_params(self)
        workdir = claim(workdir, self, self.HARMLESS)
        measure = make_evaluator(net, self, told_and_misled(self.mixture, self.eval_pictures))

        def save(params: PyTree) -> Path:
            objects.save(workdir / "prior.safetensors", net, params)
            return workdir / "prior.safetensors"

        def evaluate(params: PyTree, done: int) -> dict[str, float]:
            if self.sample_captions:
                path = workdir / "samples" / f"{done:07d}.png"
                sample_sheet(path, net, params, self.sample_captions, self.sampler)
            return measure(params)

        fit(
            self,
            workdir,
            make_problem(net, self),
            init=lambda: start,
            prepare=lambda params: learn_means(self, params, workdir / "means"),
            data=lambda: lambda step: self.mixture.batch((self.seed, step), self.batch_size),
            save=save,
            evaluate=evaluate,
        )


def check_ddim(sampler: Sampler) -> None:
    """Raise UserError for a sampler that `sample_views` does not draw by."""
    if sampler.method != "ddim":
        raise UserError(f"sampler.method is {sampler.method!r}: only ddim is drawn by")


class Said(NamedTuple):
    """Pictures, and of which pictures the network is told."""

    shown: Pictures
    told: Pictures


def told_and_misled(mixture: Mixture, count: int) -> dict[str, Said]:
    """`count` pictures of each kind that are not trained on.

    Views once more with another one's caption, and with cameras a quarter turn away: a network that
    does not listen has no higher loss on them.
    """
    batches = mixture.validation(count)
    found = {kind: Said(batch, batch) for kind, batch in batches.items()}
    if "views" in batches:
        views = batches["views"]
        turned = views.camera._replace(azimuth=views.camera.azimuth + np.float32(90.0))
        other = views._replace(ids=np.roll(views.ids, 1, axis=0))
        found["wrong_text"] = Said(views, other)
        found["wrong_camera"] = Said(views, views._replace(camera=turned))
    return found


def first_params(task: TrainObjects) -> PyTree:
    """Fresh parameters, or those of `warm_start`, whose words may be others.

    Raises UserError where it is of a net of other sizes.
    """
    net = task.net
    if not task.warm_start:
        params = jax.jit(net.init)(jax.random.key(task.seed))
        return with_toybox(net, params) if task.from_toybox else params
    found, params = objects.load(resolved(task.warm_start))
    text = dataclasses.replace(found.text, vocabulary_size=net.text.vocabulary_size)
    same = {"text": text, "vocabulary": net.vocabulary, "image_size": net.image_size}
    if dataclasses.replace(found, **same) != net:
        raise UserError(f"warm_start={task.warm_start} is of a network of other sizes")
    if found.vocabulary == net.vocabulary:
        return params
    fresh = jax.jit(net.init)(jax.random.key(task.seed))["text"]
    return params | {"text": with_words(net, fresh, found.vocabulary, params["text"])}


def with_words(net: ObjectsNet, fresh: PyTree, vocabulary: Sequence[str], known: PyTree) -> PyTree:
    """A text encoder's parameters, with fresh embeddings of words that are not in `vocabulary`."""
    rows = {word: row for row, word in enumerate(vocabulary)}
    words = np.array(fresh["word"]["embedding"])
    for row, word in enumerate(net.vocabulary):
        if word in rows:
            words[row] = known["word"]["embedding"][rows[word]]
    return known | {"word": {"embedding": jnp.asarray(words)}}


def with_toybox(net: ObjectsNet, params: PyTree) -> PyTree:
    """Parameters with the UNet, the text encoder and the words of the toybox's prior.

    It can draw things from all sides already, and listens to colours and to "with"; it has not been
    told cameras, nor shown mean pictures. Raises UserError where the networks' sizes differ.
    """
    shipped, known = toybox.load("")
    text = dataclasses.replace(net.text, vocabulary_size=shipped.text.vocabulary_size)
    unet = dataclasses.replace(net.unet, dtype=shipped.unet.dtype)
    if (shipped.unet, shipped.text) != (unet, text):
        raise UserError(
            "from_toybox is true, but the prior that ships has a network of other sizes"
        )
    learnt = with_words(net, params["text"], shipped.vocabulary, known["text"])
    # Nothing comes of the mean picture at first.
    conv, seen = params["unet"]["conv_in"]["kernel"], known["unet"]["conv_in"]["kernel"]
    split = (*conv.shape[:2], net.unet.patch**2, -1, conv.shape[-1])  # places, then channels
    seen = seen.reshape(split)
    wider = jnp.zeros(conv.shape).reshape(split).at[:, :, :, : seen.shape[3]].set(seen)
    conv_in = known["unet"]["conv_in"] | {"kernel": wider.reshape(conv.shape)}
    return params | {"unet": known["unet"] | {"conv_in": conv_in}, "text": learnt}


def make_problem(net: ObjectsNet, task: TrainObjects) -> Problem:
    """What `fit` trains: v-prediction, given words, camera and kind of picture; and their means."""

    def draw(key):
        key_t, key_eps, key_drop, key_picture = jax.random.split(key, 4)
        t = late(key_t, (), 0, net.schedule.num_steps, task.late_t)
        eps = jax.random.normal(key_eps, net.shape)
        return t, eps, jax.random.uniform(key_drop), key_picture

    def loss(params, data: Pictures, keys, memory) -> Seen:
        t, eps, u, picture_keys = jax.vmap(draw)(keys)
        seen = composed(data, picture_keys, task.data.light, net.image_size)
        condition = dropped(net, params, data, u, task)
        v = jnp.mean(v_loss(net, params, condition, 2.0 * seen.rgb - 1.0, t, eps))
        mean = jnp.mean(mean_loss(net, params, condition, seen.matter))
        return Seen(v + mean, {"loss": v, "mean_loss": mean})

    return Problem(loss)


def learn_means(task: TrainObjects, params: PyTree, workdir: Path) -> PyTree:
    """Parameters whose text, view and mean picture have learnt alone, in a run of their own.

    They see seven times as many pictures a second as all together do, and no noise.
    """
    if not task.mean_steps:
        return params
    net, learnt = task.net, {name: params[name] for name in ("text", "view", "mean")}

    def loss(params, data: Pictures, keys, memory) -> Seen:
        seen = composed(data, keys, task.data.light, net.image_size)
        u = jax.vmap(jax.random.uniform)(keys)
        condition = dropped(net, params, data, u, task)
        mean = jnp.mean(mean_loss(net, params, condition, seen.matter))
        return Seen(mean, {"loss": mean})

    alone = dataclasses.replace(
        task,
        steps=task.mean_steps,
        batch_size=task.mean_batch,
        optimizer=Adam(learning_rate=2e-3, final_learning_rate=2e-5, b2=0.99, clip_norm=1.0),
    )
    workdir.mkdir(exist_ok=True)
    print("text, view and their mean pictures learn first")
    state = fit(
        alone,
        workdir,
        Problem(loss),
        init=lambda: learnt,
        data=lambda: lambda step: task.mixture.batch((task.seed, 1, step), task.mean_batch),
    )
    return params | jax.device_get(state.ema)


def composed(data: Pictures, keys: Key[Array, " b"], light: Light, size: int) -> Composed:
    """Pictures, light and backdrop drawn from each one's key."""

    def one(stored, camera, recolor, look, key):
        return compose(stored, camera, recolor, look, key, light, size)

    return jax.vmap(one)(data.stored, data.camera, data.recolor, data.look, keys)


def dropped(
    net: ObjectsNet, params: PyTree, data: Pictures, u: Float[Array, " b"], task: TrainObjects
) -> Text:
    """What the network is told; `u`, even in [0, 1], says what is left out of it."""
    ids = jnp.where(u[:, None] < task.text_dropout, 0, data.ids)
    return told(net, params, data._replace(ids=ids), u >= task.text_dropout + task.camera_dropout)


def told(net: ObjectsNet, params: PyTree, data: Pictures, camera_too: Bool[Array, " b"]) -> Text:
    """What `data` says of each picture, and the camera where it is told."""
    camera = jax.tree.map(jnp.asarray, data.camera)
    view = objects.tell(camera, jnp.asarray(data.look), camera_too)
    return net.condition(params, jnp.asarray(data.ids), view)


def v_loss(
    net: ObjectsNet,
    params: PyTree,
    condition: Text,
    x_0: Float[Array, "b h w 3"],
    t: Int[Array, " b"],
    eps: Float[Array, "b h w 3"],
) -> Float[Array, " b"]:
    """Mean square error of v."""

    def predict(x_t, t):
        return net.predict(params, x_t, t, condition)

    return prediction_loss(predict, net.schedule, net.parameterisation, x_0, t, eps)


def mean_loss(
    net: ObjectsNet, params: PyTree, condition: Text, matter: Float[Array, "b h w 4"]
) -> Float[Array, " b"]:
    """Mean square error of the mean picture."""
    mean = net.mean_picture(params, condition)
    seen = jax.image.resize(matter, mean.shape, "bilinear")  # smoothed, as it shrinks
    return jnp.mean((mean - seen) ** 2, axis=(1, 2, 3))


def make_evaluator(
    net: ObjectsNet, task: TrainObjects, batches: dict[str, Said]
) -> Callable[[PyTree], dict[str, float]]:
    """v-loss on fixed pictures, lights, t (evenly spread) and eps, by kind of picture."""

    @jax.jit
    def chunk_loss(params, said: Said, start):
        index = start + jnp.arange(EVAL_CHUNK)
        keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(VALIDATION_KEY), index)
        t = index * 7919 % net.schedule.num_steps
        eps = jax.vmap(lambda key: jax.random.normal(key, net.shape))(keys)
        x_0 = 2.0 * composed(said.shown, keys, task.data.light, net.image_size).rgb - 1.0
        condition = told(net, params, said.told, jnp.ones(EVAL_CHUNK, bool))
        return jnp.mean(v_loss(net, params, condition, x_0, t, eps))

    def loss(params, said: Said) -> float:
        count = len(said.shown.look) // EVAL_CHUNK * EVAL_CHUNK
        parts = (
            (jax.tree.map(lambda x, i=i: x[i : i + EVAL_CHUNK], said), i)
            for i in range(0, count, EVAL_CHUNK)
        )
        return float(np.mean([chunk_loss(params, *part) for part in parts]))

    return lambda params: {f"{kind}_loss": loss(params, said) for kind, said in batches.items()}


@functools.partial(jax.jit, static_argnames=("net", "sampler"))
def _draw(net: ObjectsNet, params, ids, azimuth, elevation, look, key, sampler: Sampler):
    camera = jax.vmap(functools.partial(middle_camera, Cameras()))(azimuth, elevation)
    cond = net.condition(params, ids, objects.tell(camera, look, look >= 0))
    uncond = net.condition(params, jnp.zeros_like(ids), objects.untold(look))
    predict = guided_net(net, params, cond, uncond, sampler)

    def eps_hat(x_t, t):
        return predicted_eps(net.schedule, net.parameterisation, x_t, t, predict(x_t, t))

    shape = (len(ids), *net.shape)
    x_0 = ddim_sample(eps_hat, net.schedule, key, shape, sampler.steps, sampler.eta)
    assert isinstance(x_0, jax.Array)  # no frames were asked for
    return net.decode(params, x_0)


def sample_views(
    net: ObjectsNet,
    params: PyTree,
    captions: Sequence[str],
    cameras: Float[np.ndarray, "n 2"],
    looks: Int[np.ndarray, " n"],
    key: Key[Array, ""],
    sampler: Sampler,
) -> Float[np.ndarray, "n h w 3"]:
    """A picture in [0, 1] for each caption, camera (azimuth, elevation in degrees) and look.

    Raises UserError for captions that the network cannot read.
    """
    ids = np.asarray(net.ids(captions))
    cameras, looks = np.asarray(cameras, np.float32), np.asarray(looks, np.int32)
    count = len(ids)
    rows = np.minimum(np.arange(-(-count // SAMPLE_CHUNK) * SAMPLE_CHUNK), count - 1)
    pictures = []
    starts = range(0, len(rows), SAMPLE_CHUNK)
    for start in progress(starts, "drawing pictures", len(starts)):
        part = rows[start : start + SAMPLE_CHUNK]
        what = ids[part], cameras[part, 0], cameras[part, 1], looks[part]
        pictures.append(_draw(net, params, *what, jax.random.fold_in(key, start), sampler))
    return np.concatenate(pictures)[:count]


def sample_sheet(
    path: Path,
    net: ObjectsNet,
    params: PyTree,
    captions: Sequence[str],
    sampler: Sampler,
    columns: int = 3,
) -> None:
    """Write a sheet of lit pictures of captions, each from `SHEET_CAMERAS`.

    A caption that this network cannot read is left out.
    """
    captions = [text for text in captions if _readable(net, text)]
    if not captions:
        return
    views = len(SHEET_CAMERAS)
    repeated = [text for text in captions for _ in range(views)]
    cameras = np.tile(np.array(SHEET_CAMERAS), (len(captions), 1))
    looks = np.full(len(repeated), LIT)
    rgb = sample_views(net, params, repeated, cameras, looks, jax.random.key(0), sampler)
    scale = max(1, 64 // net.image_size)
    side, label = net.image_size * scale, 12
    rows = -(-len(captions) // columns)
    sheet = Image.new("RGB", (columns * (views * side + 8), rows * (side + label)), "white")
    pen = ImageDraw.Draw(sheet)
    for i, caption in enumerate(captions):
        left, top = i % columns * (views * side + 8), i // columns * (side + label)
        pen.text((left, top), caption, fill="black")
        for j in range(views):
            pixels = np.rint(rgb[i * views + j] * 255).astype(np.uint8).repeat(scale, 0)
            picture = Image.fromarray(pixels.repeat(scale, 1))
            sheet.paste(picture, (left + j * side, top + label))
    with replacing(path) as temporary:
        sheet.save(temporary)


def _readable(net: ObjectsNet, text: str) -> bool:
    try:
        net.tokenise(text)
    except UserError:
        return False
    return True
