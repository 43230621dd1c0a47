"""Train the prior of named things (`priors.objects`) on pictures of meshes and of the toybox.

Pictures come from disk as G-buffers; inside the step they are recoloured, lit and put before a
backdrop. The loss is v-prediction's mean square, late t drawn more often. For guidance, text and
camera are dropped together at times, and the camera alone at others.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key, PyTree
from PIL import Image, ImageDraw

from dreamjax.data.captions import vocabulary
from dreamjax.data.meshes import Drawing, Mesh, draw_meshes, left_out, read_meshes
from dreamjax.data.mixture import Mixing, Mixture, Pictures
from dreamjax.data.pictures import LIT, compose
from dreamjax.data.toybox import draw_toybox
from dreamjax.diffusion.losses import prediction_loss
from dreamjax.diffusion.reverse import predicted_eps
from dreamjax.diffusion.samplers import ddim_sample
from dreamjax.diffusion.timesteps import late
from dreamjax.errors import UserError
from dreamjax.export.progress import progress
from dreamjax.nets.text import TextConfig
from dreamjax.priors import objects, toybox
from dreamjax.priors.objects import ObjectsNet
from dreamjax.priors.sampling import Sampler, guided_net
from dreamjax.scene.shading import Light
from dreamjax.settings import NonNegative, Range, Share, settings, short
from dreamjax.tasks.train_prior import UNetSize
from dreamjax.training.fit import Problem, Seen, Training, fit
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
    late_t: NonNegative = 1.0  # t is drawn with density (1 + late_t) u^late_t over u = t / T
    warm_start: str = ""  # a safetensors file with weights to begin with, of any picture size
    from_toybox: bool = (
        False  # begin with the shipped prior's UNet and its words, without warm_start
    )
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
        batches = self.mixture.validation(self.eval_pictures)
        batches |= misled(batches["views"]) if "views" in batches else {}
        measure = make_evaluator(net, self, batches)

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
            data=lambda: lambda step: self.mixture.batch((self.seed, step), self.batch_size),
            save=save,
            evaluate=evaluate,
        )


def check_ddim(sampler: Sampler) -> None:
    """Raise UserError for a sampler that `sample_views` does not draw by."""
    if sampler.method != "ddim":
        raise UserError(f"sampler.method is {sampler.method!r}: only ddim is drawn by")


def misled(views: Pictures) -> dict[str, Pictures]:
    """Pictures told another one's caption, and a camera a quarter turn away.

    A network that does not listen has no higher loss on them.
    """
    azimuth = views.camera.azimuth + np.float32(90.0)
    return {
        "wrong_text": views._replace(ids=np.roll(views.ids, 1, axis=0)),
        "wrong_camera": views._replace(camera=views.camera._replace(azimuth=azimuth)),
    }


def first_params(task: TrainObjects) -> PyTree:
    """Fresh parameters, or those of `warm_start`; raises UserError where it is of another net."""
    net = task.net
    if not task.warm_start:
        params = jax.jit(net.init)(jax.random.key(task.seed))
        return with_toybox(net, params) if task.from_toybox else params
    found, params = objects.load(resolved(task.warm_start))
    if dataclasses.replace(found, image_size=net.image_size) != net:
        other = "words" if found.vocabulary != net.vocabulary else "sizes"
        raise UserError(f"warm_start={task.warm_start} is of a network of other {other}")
    return params


def with_toybox(net: ObjectsNet, params: PyTree) -> PyTree:
    """Parameters with the UNet, the text encoder and the words of the prior that ships.

    It can draw things from all sides already, and listens to colours and to "with"; it has not been
    told cameras. Raises UserError where the networks' sizes differ.
    """
    shipped, known = toybox.load("")
    sizes = dataclasses.replace(net.text, vocabulary_size=shipped.text.vocabulary_size)
    if (shipped.unet, shipped.text) != (
        dataclasses.replace(net.unet, dtype=shipped.unet.dtype),
        sizes,
    ):
        raise UserError(
            "from_toybox is true, but the prior that ships has a network of other sizes"
        )
    rows = {word: row for row, word in enumerate(shipped.vocabulary)}
    words = np.array(params["text"]["word"]["embedding"])
    for row, word in enumerate(net.vocabulary):
        if word in rows:
            words[row] = known["text"]["word"]["embedding"][rows[word]]
    text = known["text"] | {"word": {"embedding": jnp.asarray(words)}}
    return params | {"unet": known["unet"], "text": text}


def make_problem(net: ObjectsNet, task: TrainObjects) -> Problem:
    """What `fit` trains: v-prediction, given words, camera and kind of picture."""

    def draw(key):
        key_t, key_eps, key_drop, key_picture = jax.random.split(key, 4)
        t = late(key_t, (), 0, net.schedule.num_steps, task.late_t)
        eps = jax.random.normal(key_eps, net.shape)
        return t, eps, jax.random.uniform(key_drop), key_picture

    def loss(params, data: Pictures, keys, memory) -> Seen:
        t, eps, u, picture_keys = jax.vmap(draw)(keys)
        x_0 = x_of(data, picture_keys, task.data.light, net.image_size)
        ids = jnp.where(u[:, None] < task.text_dropout, 0, data.ids)
        told = u >= task.text_dropout + task.camera_dropout
        seen = jnp.mean(v_loss(net, params, data._replace(ids=ids), told, x_0, t, eps))
        return Seen(seen, {"loss": seen})

    return Problem(loss)


def x_of(
    data: Pictures, keys: Key[Array, " b"], light: Light, size: int
) -> Float[Array, "b size size 3"]:
    """Pictures in [-1, 1], light and backdrop drawn from each one's key."""

    def one(stored, camera, recolor, look, key):
        return compose(stored, camera, recolor, look, key, light, size)

    return 2.0 * jax.vmap(one)(data.stored, data.camera, data.recolor, data.look, keys) - 1.0


def v_loss(
    net: ObjectsNet,
    params: PyTree,
    data: Pictures,
    told: Bool[Array, " b"],
    x_0: Float[Array, "b h w 3"],
    t: Int[Array, " b"],
    eps: Float[Array, "b h w 3"],
) -> Float[Array, " b"]:
    """Mean square error of v, given what `data` says and the camera where it is told."""
    camera = data.camera
    ids, look = jnp.asarray(data.ids), jnp.asarray(data.look)
    condition = net.condition(params, ids, camera.azimuth, camera.elevation, look, told)

    def predict(x_t, t):
        return net.predict(params, x_t, t, condition)

    return prediction_loss(predict, net.schedule, net.parameterisation, x_0, t, eps)


def make_evaluator(
    net: ObjectsNet, task: TrainObjects, batches: dict[str, Pictures]
) -> Callable[[PyTree], dict[str, float]]:
    """v-loss on fixed pictures, lights, t (evenly spread) and eps, by kind of picture."""

    @jax.jit
    def chunk_loss(params, data: Pictures, start):
        index = start + jnp.arange(EVAL_CHUNK)
        keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(VALIDATION_KEY), index)
        t = index * 7919 % net.schedule.num_steps
        eps = jax.vmap(lambda key: jax.random.normal(key, net.shape))(keys)
        x_0 = x_of(data, keys, task.data.light, net.image_size)
        told = jnp.ones(EVAL_CHUNK, bool)
        return jnp.mean(v_loss(net, params, data, told, x_0, t, eps))

    def mean_loss(params, batch: Pictures) -> float:
        count = len(batch.look) // EVAL_CHUNK * EVAL_CHUNK
        parts = (
            (jax.tree.map(lambda x, i=i: x[i : i + EVAL_CHUNK], batch), i)
            for i in range(0, count, EVAL_CHUNK)
        )
        return float(np.mean([chunk_loss(params, *part) for part in parts]))

    return lambda params: {f"{kind}_loss": mean_loss(params, b) for kind, b in batches.items()}


@functools.partial(jax.jit, static_argnames=("net", "sampler"))
def _draw(net: ObjectsNet, params, ids, azimuth, elevation, look, key, sampler: Sampler):
    told = jnp.ones(len(ids), bool)
    view = (azimuth, elevation, look)
    cond = net.condition(params, ids, *view, told)
    uncond = net.condition(params, jnp.zeros_like(ids), *view, ~told)
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
