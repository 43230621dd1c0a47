"""The probe's scores of finished dreams, a part of `task = evaluate`.

A dream is seen from eight azimuths, in colour and textureless, twice: its field, and the mesh that
the run wrote. Kind and colours are read from the colour pictures, the kind as geometry alone shows
it from the textureless ones. The view that each side looks like is held against the one it is,
where a second face shows as a side or back that looks like a front. What the probe hardly notices
needs no probe: haze shows as pixels that are neither empty nor opaque, and a wrong shape, or one
that stands the wrong way round, as silhouettes unlike those of ground truth.
"""

import dataclasses
import sys
import textwrap
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from dreamjax.distill.step import SceneState, StepConfig, encoding_variance, field_fn
from dreamjax.errors import UserError
from dreamjax.evaluate import probe as probes
from dreamjax.evaluate import truth
from dreamjax.evaluate.prompts import PROMPTS, Meaning, parse
from dreamjax.evaluate.scores import Count, confusion, total
from dreamjax.evaluate.tables import (
    DREAM_HEADS,
    SPLITS,
    Score,
    details,
    sum_split,
    totals,
    view_table,
)
from dreamjax.export.gltf import Mesh
from dreamjax.export.mesh import read_mesh
from dreamjax.export.raster import render_mesh
from dreamjax.export.sheet import grid, write_png
from dreamjax.scene.background import Backdrop
from dreamjax.scene.camera import VIEW_WORDS, CameraConfig, middle_camera, view_index
from dreamjax.scene.render import render_image
from dreamjax.tasks import dream
from dreamjax.tasks.many import attempt, prompts_of, slug
from dreamjax.toybox.render import Picture
from dreamjax.training.metrics import Progress

# Between the azimuths where the view's name changes: two fronts, four sides, two backs.
AZIMUTHS = tuple(22.5 + 45.0 * i for i in range(8))
BACKDROP = 0.5
FRONT = VIEW_WORDS.index("front")
# Kinds whose view the probe reads from ground truth this often have sides that can be told apart.
TELLABLE = 0.75
# A pixel at least this opaque belongs to what is seen; above the second it hides what is behind it.
SEEN, SOLID = 0.1, 0.9


@dataclasses.dataclass(frozen=True)
class DreamsConfig:
    """Which runs are scored, all those in the folder `dreams` ("" for none), and how.

    `run_missing` makes those of the fixed prompts that are not there. `elevation` is in degrees,
    `size` in pixels; `truths` objects a prompt are drawn for the ceiling, and as many as
    `silhouettes` to find the one whose silhouettes are the nearest. With `clips`, folders or
    repository ids, the scores are theirs: `prompts` is the file of captions, `clip_size` in pixels.
    """

    dreams: str = ""
    run_missing: bool = False
    elevation: float = 17.5
    size: int = 64
    truths: int = 4
    silhouettes: int = 32
    prompts: str = ""
    clips: tuple[str, ...] = ()
    clip_size: int = 128


class Seen(NamedTuple):
    """Pictures from rounds of `AZIMUTHS` at the probe's size: in colour, textureless, opacity."""

    colored: Float[np.ndarray, "v s s 3"]
    bare: Float[np.ndarray, "v s s 3"]
    opacity: Float[np.ndarray, "v s s"]


def run_missing(dreams: Path, settings: dict) -> None:
    """Make the dreams of the fixed prompts that have no run yet, and finish begun ones.

    `settings` are those of `dream`, the prompt aside. Raises UserError where a run cannot be made.
    """
    for number, prompt in enumerate(PROMPTS):
        place = dreams / slug(prompt)
        done = {run for run, said in prompts_of(dreams).items() if said == prompt and _ended(run)}
        if done:
            continue
        print(f"dream {number + 1} of {len(PROMPTS)}: {prompt}", file=sys.stderr, flush=True)
        wrong = attempt(dream.run, {**settings, "prompt": prompt}, str(place))
        if wrong and not _ended(place):  # a field without a mesh is scored too
            raise UserError(wrong)


def _ended(run: Path) -> bool:
    try:
        dream.load_scene(run)
    except UserError:
        return False
    return True


def tellable(probe: probes.Shipped, kind: int) -> bool:
    """Whether the probe can tell the sides of this kind apart in ground truth."""
    right, of = probe.report["view_by_kind"][probes.CLASSES["kind"][kind]]
    return right >= TELLABLE * of


def labels_of(meanings: list[Meaning], views: Int[np.ndarray, " n"]) -> probes.Labels:
    """What the probe should read from pictures of these meanings and views."""
    return probes.Labels(*(np.array(column) for column in zip(*meanings, strict=True)), views)


def score(
    c: DreamsConfig, seed: int, dreams: Path, probe: probes.Shipped, sheet: Path
) -> tuple[list[Score], dict[str, Int[np.ndarray, "views views"]], list[str]]:
    """A score a run, [truth, look] counts of views of dreams and ceiling, and what was left out.

    `seed` draws the ground truth of the ceiling. Writes the pictures that were read to `sheet`,
    three rows a run: its field, its mesh, ground truth.
    """
    rows, kept, skipped = [], [], []
    looks = {name: np.zeros((len(VIEW_WORDS),) * 2, np.int64) for name in ("dreams", "ceiling")}
    runs = prompts_of(dreams)
    with Progress(len(runs), show=()) as bar:
        bar.note(f"scoring {len(runs)} dreams")
        for number, (place, prompt) in enumerate(runs.items()):
            meaning = parse(prompt)
            if meaning is None:
                skipped.append(f"{place.name}: no caption of the toybox with a colour: {prompt}")
                continue
            try:
                settings, scene, state = dream.load_scene(place)
                mesh = read_mesh(place / "mesh.glb") if (place / "mesh.glb").exists() else None
            except UserError as error:
                skipped.append(str(error))
                continue
            pictures = dream_pictures(settings, scene, state, c)
            meshed = mesh_pictures(mesh, scene.camera, c)
            real = truth_pictures(scene.camera, meaning, c, jax.random.key(seed))
            counts, seen = score_views(pictures, meshed, meaning, probe)
            ceiling, real_seen = score_views(real, (real.colored, real.bare), meaning, probe)
            masks = truth_silhouettes(scene.camera, meaning, c, jax.random.key(seed + 1))
            counts["silhouette"] = overlap(pictures.opacity, masks)
            rounds = real.opacity.reshape(c.truths, *masks.shape[1:])
            ceiling["silhouette"] = total(overlap(mask, masks) for mask in rounds)
            can_tell = tellable(probe, meaning.kind)
            if can_tell:
                looks["dreams"] += seen
                looks["ceiling"] += real_seen
            name = prompt if place.name == slug(prompt) else f"{prompt} ({place.name})"
            rows.append(Score(name, meaning.held_out, can_tell, counts, ceiling))
            one = slice(len(AZIMUTHS))
            kept += [pictures.colored, pictures.bare, *meshed, real.colored[one], real.bare[one]]
            bar.update(number + 1)
    if kept:
        write_png(sheet, grid(np.concatenate(kept), 2 * len(AZIMUTHS), tile=48))
    return rows, looks, skipped


@partial(jax.jit, static_argnames=("config", "elevation", "textureless"))
def _takings(config: CameraConfig, elevation: float, textureless: bool) -> truth.Taking:
    """The eight views, lit from the camera, before grey."""

    def one(azimuth):
        camera = middle_camera(config, azimuth, elevation)
        shading = dream.headlight(camera.position)._replace(textureless=jnp.float32(textureless))
        return truth.Taking(camera, shading, Backdrop(*jnp.full((2, 3), BACKDROP)))

    return jax.vmap(one)(jnp.array(AZIMUTHS))


@partial(jax.jit, static_argnames=("scene", "size"))
def _draw(scene: StepConfig, params, step, front, taking: truth.Taking, size: int):
    field = field_fn(params, scene, step, front)
    variance = encoding_variance(scene, step)
    behind = jnp.full((1, 1, 3), BACKDROP)

    def one(t):
        seen = render_image(field, t.camera, size, variance, t.shading, behind, scene.render)
        return seen.rgb, jnp.broadcast_to(seen.opacity[..., None], seen.rgb.shape)

    rgb, opacity = jax.lax.map(one, taking)
    return probes.shrink(rgb), probes.shrink(opacity)[..., 0]


def dream_pictures(
    settings: dream.DreamConfig, scene: StepConfig, state: SceneState, c: DreamsConfig
) -> Seen:
    """A finished dream's field from `AZIMUTHS`."""
    takings = (_takings(scene.camera, c.elevation, bare) for bare in (False, True))
    shown = scene, state.params, settings.steps, state.front
    draw = lambda taking: _draw(*shown, taking, c.size)  # noqa: E731
    (colored, opacity), (bare, _) = map(draw, takings)
    return Seen(*map(np.asarray, (colored, bare, opacity)))


def mesh_pictures(
    mesh: Mesh | None, config: CameraConfig, c: DreamsConfig
) -> tuple[Float[np.ndarray, "v s s 3"], Float[np.ndarray, "v s s 3"]]:
    """A mesh from `AZIMUTHS`, with its own colours and white; without a mesh, what is behind it."""
    if mesh is None:
        nothing = np.full((len(AZIMUTHS), probes.SIZE, probes.SIZE, 3), BACKDROP)
        return nothing, nothing
    distance, focal = (sum(ends) / 2 for ends in (config.distance, config.focal))

    look = (c.elevation, c.size, distance, focal, (BACKDROP,) * 3)

    def pictures(mesh):
        seen = [render_mesh(mesh, azimuth, *look) for azimuth in AZIMUTHS]
        return np.asarray(probes.shrink(np.stack(seen) / 255.0))

    return pictures(mesh), pictures(mesh._replace(colors=np.ones_like(mesh.colors)))


def truth_pictures(config: CameraConfig, meaning: Meaning, c: DreamsConfig, key) -> Seen:
    """Ground truth of the same prompt, `truths` objects, from these cameras and in this light."""
    colored, bare = (
        _truth_views(config, meaning, c.truths, c.elevation, bare, key) for bare in (False, True)
    )
    return Seen(colored.rgb, bare.rgb, colored.mask)


def truth_silhouettes(
    config: CameraConfig, meaning: Meaning, c: DreamsConfig, key
) -> Float[np.ndarray, "n views s s"]:
    """How much of each pixel as many objects of the same prompt as `silhouettes` cover."""
    masks = _truth_views(config, meaning, c.silhouettes, c.elevation, False, key).mask
    return masks.reshape(c.silhouettes, len(AZIMUTHS), *masks.shape[1:])


def _truth_views(
    config: CameraConfig, meaning: Meaning, objects: int, elevation: float, textureless: bool, key
) -> Picture:
    """Pictures of so many objects of the prompt, one object after the other from `AZIMUTHS`."""
    count = objects * len(AZIMUTHS)
    # One key an object: its eight pictures show the same proportions and shades.
    keys = jnp.repeat(jax.random.split(key, objects), len(AZIMUTHS))
    colors = np.tile([meaning.first, meaning.second], (count, 1))
    subject = truth.Subject(np.full(count, meaning.kind), colors)
    repeated = lambda leaf: jnp.concatenate([leaf] * objects)  # noqa: E731
    taking = jax.tree.map(repeated, _takings(config, elevation, textureless))
    return truth.pictures(keys, subject, taking)


def overlap(
    opacity: Float[np.ndarray, "views s s"], masks: Float[np.ndarray, "n views s s"]
) -> Count:
    """Intersection and union of the silhouettes of one object and of the nearest of `masks`.

    Both are sums over all views and pixels, the intersection of the lesser and the union of the
    greater of the two opacities, rounded to whole pixels; nearest is where their ratio is highest.
    """
    shared = np.minimum(opacity, masks).sum(axis=(1, 2, 3))
    either = np.maximum(opacity, masks).sum(axis=(1, 2, 3))
    best = np.argmax(shared / np.maximum(either, 1e-6))
    return Count(round(float(shared[best])), round(float(either[best])))


def score_views(
    seen: Seen, mesh: tuple[np.ndarray, np.ndarray], meaning: Meaning, probe: probes.Shipped
) -> tuple[dict[str, Count], Int[np.ndarray, "views views"]]:
    """Counts for pictures of rounds of `AZIMUTHS`, and [truth, look] counts of views.

    Beside the probe's heads: `geometry`, the kind read from the textureless pictures; `faces`, how
    many of the sides and backs look like a front; `solid`, how many of the pixels that the object
    covers it hides; and `mesh_object` and `mesh_geometry`, what `object` and `geometry` are of the
    `mesh_pictures`.
    """
    rounds = len(seen.colored) // len(AZIMUTHS)
    views = np.tile(np.asarray(view_index(jnp.array(AZIMUTHS), jnp.zeros(8))), rounds)
    labels = labels_of([meaning] * len(views), views)
    said = probes.read(seen.colored, probe).labels
    read = lambda pictures: probes.score(probes.read(pictures, probe).labels, labels)  # noqa: E731
    counts = probes.score(said, labels)
    counts["geometry"] = read(seen.bare)["kind"]
    away = views != FRONT
    counts["faces"] = Count(int((said.view[away] == FRONT).sum()), int(away.sum()))
    counts["solid"] = Count(int((seen.opacity > SOLID).sum()), int((seen.opacity > SEEN).sum()))
    counts["mesh_object"], counts["mesh_geometry"] = read(mesh[0])["object"], read(mesh[1])["kind"]
    return counts, confusion(said.view, views, len(VIEW_WORDS))


def page(
    c: DreamsConfig, rows: list[Score], looks: dict[str, np.ndarray], skipped: list[str]
) -> str:
    """The dreams' tables as Markdown; `skipped` are lines about runs that have no score."""
    whole = lambda head: sum(r.counts[head].right == r.counts[head].of for r in rows)  # noqa: E731
    intro = f"""
        {len(rows)} dreams from {len(AZIMUTHS)} azimuths at elevation {c.elevation:g} degrees. Kind
        and colours are read from the colour render, the kind once more from the textureless one.
        Second faces are sides and backs that look like a front: fewer is better. Solid are pixels
        more than {SOLID:g} opaque, of those above {SEEN:g}: the rest is outline or haze. Silhouette
        is intersection over union, in pixels of all sides, with the nearest of {c.silhouettes}
        ground-truth objects. The last two columns are read from the mesh instead of the field. The
        ceiling is the same for ground-truth renders of {c.truths} objects of each prompt. The
        totals of views are over kinds whose sides differ. Right in all three from all sides:
        {whole("object")} of {len(rows)} dreams, {whole("mesh_object")} of their meshes."""
    scores = [sum_split(f"{name} prompts", rows, held) for name, held in SPLITS]
    parts = [
        "### Dreams",
        textwrap.fill(" ".join(intro.split()), 100),
        totals(scores, DREAM_HEADS, "dreams"),
        details(rows, DREAM_HEADS, "dream"),
        view_table(looks["dreams"], looks["ceiling"], "dreams"),
    ]
    return "\n\n".join([*parts, *not_scored(skipped)])


def not_scored(lines: list[str]) -> list[str]:
    """A list of `lines`, of what has no score, or nothing."""
    return ["Not scored:\n\n" + "\n".join(f"- {line}" for line in lines)] if lines else []
