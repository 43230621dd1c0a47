"""The probe's scores of finished dreams of the toybox's captions.

A dream is seen from eight azimuths, in colour and textureless, twice: its field, and the mesh that
the run wrote. Kind and colours are read from the colour pictures, the kind as geometry alone shows
it from the textureless ones. The view that each side looks like is compared with the one it is: a
second face shows as a side or back that looks like a front. Two faults are measured without the
probe, which hardly notices them. Haze shows as pixels that are neither empty nor opaque. A wrong
shape, or one that stands the wrong way round, shows as silhouettes unlike those of ground truth.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from dreamjax.errors import UserError
from dreamjax.evaluate import probe as probes
from dreamjax.evaluate import tables, truth
from dreamjax.evaluate.prompts import Meaning, parse
from dreamjax.evaluate.runs import FinishedRun, shots
from dreamjax.evaluate.scores import Count, confusion, total
from dreamjax.evaluate.tables import Score
from dreamjax.export.gltf import Mesh
from dreamjax.export.progress import progress
from dreamjax.export.raster import render_mesh
from dreamjax.export.sheet import grid
from dreamjax.scene.backgrounds.backdrops import Backdrop
from dreamjax.scene.camera import Cameras
from dreamjax.scene.views import VIEW_WORDS, view_index
from dreamjax.settings import Range, settings
from dreamjax.toybox.render import Picture
from dreamjax.workdir import slug

# Between the azimuths where the view's name changes: two fronts, four sides, two backs.
AZIMUTHS = tuple(22.5 + 45.0 * i for i in range(8))
BACKDROP = 0.5
FRONT = VIEW_WORDS.index("front")
# A pixel at least this opaque belongs to what is seen; above the second it hides what is behind it.
SEEN, SOLID = 0.1, 0.9


@settings
class Dreams:
    """Which finished dreams are scored, and how they are seen."""

    folder: str = ""  # all dreams in its subfolders are scored; empty: none
    run_missing: bool = False  # make the dreams of the 20 prompts that are not there, first
    elevation: Annotated[float, Range(0.0, 60.0, above=True, below=True)] = 17.5  # degrees
    size: Annotated[int, Range(1, 1024)] = 64  # of renderings, in pixels
    truths: Annotated[int, Range(1, 256)] = 4  # ground-truth objects a prompt, for the ceiling
    silhouettes: Annotated[int, Range(1, 4096)] = 32  # ground-truth outlines to find the nearest of

    def __post_init__(self):
        if self.run_missing and not self.folder:
            raise UserError("run_missing is set, but folder, where the dreams would go, is empty")


class Seen(NamedTuple):
    """Pictures from rounds of `AZIMUTHS` at the probe's size: in colour, textureless, opacity."""

    colored: Float[np.ndarray, "v s s 3"]
    textureless: Float[np.ndarray, "v s s 3"]
    opacity: Float[np.ndarray, "v s s"]


class Scores(NamedTuple):
    """What is found of the dreams in a folder.

    `rows` are a score a run; `views` are [truth, look] counts of views of "dreams" and "ceiling";
    `skipped` are lines about runs that have no score. `sheet` holds the pictures that were read,
    three rows a run: its field, its mesh, ground truth; None where no run has a score.
    """

    rows: list[Score]
    views: dict[str, Int[np.ndarray, "views views"]]
    skipped: list[str]
    sheet: np.ndarray | None


def score(
    how: Dreams,
    seed: int,
    runs: Mapping[Path, str],
    load: Callable[[Path], FinishedRun],
    probe: probes.Shipped,
) -> Scores:
    """Scores of runs, which are given as folders with their prompts.

    `seed` draws the ground truth of the ceiling. `load` raises UserError for a run that is not
    finished; that and prompts that are no captions of the toybox are told in `skipped`.
    """
    rows, pictures, skipped = [], [], []
    views = {name: np.zeros((len(VIEW_WORDS),) * 2, np.int64) for name in ("dreams", "ceiling")}
    for place, prompt in progress(runs.items(), "scoring dreams", len(runs)):
        meaning = parse(prompt)
        if meaning is None:
            skipped.append(f"{place.name}: no caption of the toybox with a colour: {prompt}")
            continue
        try:
            run = load(place)
        except UserError as error:
            skipped.append(str(error))
            continue
        name = prompt if place.name == slug(prompt) else f"{prompt} ({place.name})"
        row, counts, shown = score_run(how, seed, name, run, meaning, probe)
        rows.append(row)
        pictures += shown
        if row.tellable:
            views["dreams"] += counts[0]
            views["ceiling"] += counts[1]
    sheet = grid(np.concatenate(pictures), 2 * len(AZIMUTHS), tile=48) if pictures else None
    return Scores(rows, views, skipped, sheet)


def score_run(
    how: Dreams, seed: int, name: str, run: FinishedRun, meaning: Meaning, probe: probes.Shipped
) -> tuple[Score, tuple[np.ndarray, np.ndarray], list[np.ndarray]]:
    """One run's score, its [truth, look] counts of views with the ceiling's, and its pictures."""
    field = field_pictures(run, how)
    mesh = mesh_pictures(run.mesh, run.cameras, how)
    real = truth_pictures(run.cameras, meaning, how, jax.random.key(seed))
    counts, views = score_views(field, mesh, meaning, probe)
    real_mesh = real.colored, real.textureless
    ceiling, real_views = score_views(real, real_mesh, meaning, probe)
    masks = truth_silhouettes(run.cameras, meaning, how, jax.random.key(seed + 1))
    counts["silhouette"] = overlap(field.opacity, masks)
    rounds = real.opacity.reshape(how.truths, *masks.shape[1:])
    ceiling["silhouette"] = total(overlap(mask, masks) for mask in rounds)
    can_tell = probes.tellable(probe, meaning.kind)
    row = Score(name, meaning.held_out, can_tell, counts, ceiling)
    one = slice(len(AZIMUTHS))
    truths = (real.colored[one], real.textureless[one])
    return row, (views, real_views), [field.colored, field.textureless, *mesh, *truths]


def field_pictures(run: FinishedRun, how: Dreams) -> Seen:
    """A finished dream's field from `AZIMUTHS`."""
    behind = jnp.full((1, 1, 3), BACKDROP)

    def take(textureless: bool) -> tuple[np.ndarray, np.ndarray]:
        camera, shading = shots(run.cameras, AZIMUTHS, how.elevation, textureless)
        seen = run.render(camera, shading, behind, how.size)
        opacity = jnp.broadcast_to(jnp.asarray(seen.opacity)[..., None], seen.rgb.shape)
        return np.asarray(probes.shrink(seen.rgb)), np.asarray(probes.shrink(opacity))[..., 0]

    colored, opacity = take(False)
    return Seen(colored, take(True)[0], opacity)


def mesh_pictures(
    mesh: Mesh | None, cameras: Cameras, how: Dreams
) -> tuple[Float[np.ndarray, "v s s 3"], Float[np.ndarray, "v s s 3"]]:
    """A mesh from `AZIMUTHS`, with its own colours and white; without a mesh, what is behind it."""
    if mesh is None:
        nothing = np.full((len(AZIMUTHS), probes.SIZE, probes.SIZE, 3), BACKDROP)
        return nothing, nothing
    distance, focal = (sum(ends) / 2 for ends in (cameras.distance, cameras.focal))
    look = (how.elevation, how.size, distance, focal, (BACKDROP, BACKDROP, BACKDROP))

    def pictures(mesh):
        seen = [render_mesh(mesh, azimuth, *look) for azimuth in AZIMUTHS]
        return np.asarray(probes.shrink(np.stack(seen) / 255.0))

    return pictures(mesh), pictures(mesh._replace(colors=np.ones_like(mesh.colors)))


def truth_pictures(cameras: Cameras, meaning: Meaning, how: Dreams, key: Key[Array, ""]) -> Seen:
    """Ground truth of the same prompt, `truths` objects, from these cameras and in this light."""
    colored, textureless = (
        _truth_views(cameras, meaning, how.truths, how.elevation, textureless, key)
        for textureless in (False, True)
    )
    return Seen(*(np.asarray(v) for v in (colored.rgb, textureless.rgb, colored.mask)))


def truth_silhouettes(
    cameras: Cameras, meaning: Meaning, how: Dreams, key: Key[Array, ""]
) -> Float[np.ndarray, "n views s s"]:
    """How much of each pixel as many objects of the same prompt as `silhouettes` cover."""
    masks = _truth_views(cameras, meaning, how.silhouettes, how.elevation, False, key).mask
    return np.asarray(masks).reshape(how.silhouettes, len(AZIMUTHS), *masks.shape[1:])


def _truth_views(
    cameras: Cameras,
    meaning: Meaning,
    objects: int,
    elevation: float,
    textureless: bool,
    key: Key[Array, ""],
) -> Picture:
    """Pictures of so many objects of the prompt, one object after the other from `AZIMUTHS`."""
    count = objects * len(AZIMUTHS)
    # One key an object: its eight pictures show the same proportions and shades.
    keys = jnp.repeat(jax.random.split(key, objects), len(AZIMUTHS))
    colors = np.tile([meaning.first, meaning.second], (count, 1))
    subject = truth.Subject(np.full(count, meaning.kind), colors)
    backdrop = Backdrop(*jnp.full((2, len(AZIMUTHS), 3), BACKDROP))
    camera, shading = shots(cameras, AZIMUTHS, elevation, textureless)
    taking = truth.Taking(camera, shading, backdrop)
    taking = jax.tree.map(lambda leaf: jnp.concatenate([leaf] * objects), taking)
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
    labels = probes.labels_of([meaning] * len(views), views)

    def read(pictures: np.ndarray) -> dict[str, Count]:
        return probes.score(probes.read(pictures, probe).labels, labels)

    found = probes.read(seen.colored, probe).labels
    counts = probes.score(found, labels)
    counts["geometry"] = read(seen.textureless)["kind"]
    away = views != FRONT
    counts["faces"] = Count(int((found.view[away] == FRONT).sum()), int(away.sum()))
    counts["solid"] = Count(int((seen.opacity > SOLID).sum()), int((seen.opacity > SEEN).sum()))
    counts["mesh_object"], counts["mesh_geometry"] = read(mesh[0])["object"], read(mesh[1])["kind"]
    return counts, confusion(found.view, views, len(VIEW_WORDS))


def page(how: Dreams, scores: Scores) -> str:
    """The dreams' tables as Markdown."""
    rows = scores.rows

    def all_right(head: str) -> int:
        return sum(row.counts[head].right == row.counts[head].of for row in rows)

    intro = f"""
        {len(rows)} dreams from {len(AZIMUTHS)} azimuths at elevation {how.elevation:g} degrees.
        Kind and colours are read from the colour render, the kind once more from the textureless
        one. Second faces are sides and backs that look like a front: fewer is better. Solid are
        pixels more than {SOLID:g} opaque, of those above {SEEN:g}: the rest is outline or haze.
        Silhouette is intersection over union, in pixels of all sides, with the nearest of
        {how.silhouettes} ground-truth objects. The last two columns are read from the mesh instead
        of the field. The ceiling is the same for ground-truth renders of {how.truths} objects of
        each prompt. The totals of views are over kinds whose sides differ. Right in all three from
        all sides: {all_right("object")} of {len(rows)} dreams, {all_right("mesh_object")} of their
        meshes."""
    splits = [tables.sum_split(f"{name} prompts", rows, held) for name, held in tables.SPLITS]
    parts = [
        "### Dreams",
        tables.filled(intro),
        tables.totals(splits, tables.DREAM_HEADS, "dreams"),
        tables.details(rows, tables.DREAM_HEADS, "dream"),
        tables.view_table(scores.views["dreams"], scores.views["ceiling"], "dreams"),
    ]
    return "\n\n".join([*parts, *tables.not_scored(scores.skipped)])
