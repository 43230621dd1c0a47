"""Shapes of finished dreams beside models of what they were asked for.

The nearest model of a dream's prompt is the one whose silhouettes, from eight azimuths, overlap
most with the field's. The mesh that the run wrote is compared with it: how much space they share,
and how far their surfaces are apart. A second face shows as a side or back of the field that is
nearer to the model's front than to any other of its views.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from scipy.spatial import KDTree

from dreamjax.data import meshes
from dreamjax.data.pictures import GBuffer
from dreamjax.errors import UserError
from dreamjax.evaluate import tables
from dreamjax.evaluate.r_precision import AZIMUTHS, ELEVATION, canonical
from dreamjax.evaluate.runs import FinishedRun, shots
from dreamjax.evaluate.scores import Count, total
from dreamjax.export.progress import progress
from dreamjax.scene.camera import Camera
from dreamjax.scene.mesh_distance import Triangles, lattice_inside, sample_surface
from dreamjax.scene.rays import camera_rays
from dreamjax.scene.shading import Shading, lambertian
from dreamjax.settings import Range, settings

QUERIES = 10_000  # points of a surface whose distance is measured
EXTENT = 1.1  # of the lattice, in scene units: models lie in the unit sphere
AWAY = slice(2, 7)  # of `AZIMUTHS`, those at least 90 degrees from the front, which is the first
UNLIKE = 0.005  # mean square difference of pixels from which on two views can be told apart


@settings
class Shapes:
    """Silhouettes, volumes and surfaces of dreams beside models of their prompts."""

    meshes: str = ""  # a folder of GLB or OBJ files, or an .npz file with its .csv; empty: none
    size: Annotated[int, Range(8, 1024)] = 64  # of silhouettes, in pixels
    lattice: Annotated[int, Range(8, 256)] = 64  # points along a side of what volumes are read at


class Row(NamedTuple):
    """One run beside the nearest model of its prompt.

    `silhouette` and `volume` are intersection over union in [0, 1], `chamfer` is in scene units.
    The latter two are None without a mesh; so is `volume` where neither encloses anything.
    `fronts` are how many sides and backs look like the front, of those where the model's do not.
    """

    name: str
    nearest: str
    silhouette: float
    volume: float | None
    chamfer: float | None
    fronts: Count


class Scores(NamedTuple):
    """A row for each run, and lines about runs that have none."""

    rows: list[Row]
    skipped: list[str]


Models = Mapping[str, Sequence[meshes.Mesh]]


def read_models(how: Shapes) -> Models:
    """The models by phrase; raises UserError where they cannot be read."""
    models: dict[str, list[meshes.Mesh]] = {}
    for mesh in meshes.read_meshes(how.meshes):
        models.setdefault(canonical(mesh.phrase), []).append(mesh)
    return models


def score(
    how: Shapes, models: Models, runs: Mapping[Path, str], load: Callable[[Path], FinishedRun]
) -> Scores:
    """Scores of runs, which are given as folders with their prompts.

    `load` raises UserError for one that is not finished; that and prompts of which there is no
    model are told in `skipped`.
    """
    rows, skipped = [], []
    for place, prompt in progress(runs.items(), "comparing shapes", len(runs)):
        if canonical(prompt) not in models:
            skipped.append(f"{place.name}: there is no model of {prompt!r}")
            continue
        try:
            run = load(place)
        except UserError as error:
            skipped.append(f"{place.name}: {error}")
            continue
        rows.append(score_run(how, place.name, run, models[canonical(prompt)]))
    return Scores(rows, skipped)


def score_run(how: Shapes, name: str, run: FinishedRun, models: Sequence[meshes.Mesh]) -> Row:
    """One run beside the nearest of `models`."""
    camera, shading = shots(run.cameras, AZIMUTHS, ELEVATION, False)
    field = run.render(camera, shading, jnp.ones((1, 1, 3)), how.size)
    opacity = np.asarray(field.opacity)
    seen = [model_views(model, camera, shading, how.size) for model in models]
    overlaps = [overlap(opacity, views.mask) or 0.0 for views in seen]
    best = int(np.argmax(overlaps))
    volume = chamfer = None
    if run.mesh is not None:
        own, other = (triangles(mesh) for mesh in (run.mesh, models[best]))
        inside = (lattice_inside(t, EXTENT, how.lattice) for t in (own, other))
        volume, chamfer = overlap(*inside), chamfer_distance(own, other)
    fronts = second_fronts(np.asarray(field.rgb), seen[best].rgb)
    return Row(name, models[best].name, max(overlaps), volume, chamfer, fronts)


def triangles(mesh) -> Triangles:
    """The corners of a mesh's triangles."""
    return np.asarray(mesh.vertices, np.float64)[mesh.faces]


class ModelViews(NamedTuple):
    """A model before white, from `AZIMUTHS`: rgb in [0, 1], and how much of a pixel it covers."""

    rgb: Float[np.ndarray, "views size size 3"]
    mask: Float[np.ndarray, "views size size"]


def model_views(model: meshes.Mesh, camera: Camera, shading: Shading, size: int) -> ModelViews:
    """A model by these cameras in this light."""
    found = []
    for i in range(len(AZIMUTHS)):
        at, light = jax.tree.map(lambda leaf, i=i: leaf[i], (camera, shading))
        buffers = meshes.draw_mesh(model, at, size)
        found.append((np.asarray(_lit(buffers, at, light)), buffers.mask))
    return ModelViews(*(np.stack(views) for views in zip(*found, strict=True)))


@jax.jit
def _lit(buffers: GBuffer, camera: Camera, shading: Shading) -> Float[Array, "size size 3"]:
    """What G-buffers show in a light, before white."""
    rays = camera_rays(camera, len(buffers.mask))
    point = rays.origin + buffers.depth[..., None] * rays.direction
    rgb = lambertian(buffers.albedo, buffers.normal, point, shading)
    return 1.0 + buffers.mask[..., None] * (rgb - 1.0)


def second_fronts(
    seen: Float[np.ndarray, "views size size 3"], model: Float[np.ndarray, "views size size 3"]
) -> Count:
    """How many sides and backs are nearest to the model's front, of those that are unlike it."""
    away = np.mean((seen[AWAY, None] - model) ** 2, axis=(2, 3, 4))
    can_tell = np.mean((model[AWAY] - model[0]) ** 2, axis=(1, 2, 3)) > UNLIKE
    return Count(int((can_tell & (away.argmin(1) == 0)).sum()), int(can_tell.sum()))


def overlap(one: np.ndarray, other: np.ndarray) -> float | None:
    """Intersection over union of what is in [0, 1]; None where neither is anything."""
    either = float(np.maximum(one, other).sum())
    return float(np.minimum(one, other).sum()) / either if either else None


def chamfer_distance(one: Triangles, other: Triangles) -> float:
    """Mean distance of points of one surface to the nearest of the other's, mean of both ways.

    In the triangles' unit.
    """
    here, there = (sample_surface(triangles)[0] for triangles in (one, other))

    def mean(points, surface):
        some = points[:: max(len(points) // QUERIES, 1)]
        return float(KDTree(surface).query(some)[0].mean())

    return (mean(here, there) + mean(there, here)) / 2.0


def page(scores: Scores) -> str:
    """The shapes' table as Markdown."""
    lines = [
        "| run | nearest model | silhouettes | volume | surfaces apart | second fronts |",
        "|---|---|---|---|---|---|",
    ]
    for row in scores.rows:
        lines.append(f"| {row.name} | {row.nearest} | {_cells(row[2:5])} | {_count(row.fronts)} |")
    if scores.rows:
        means = [_mean(column) for column in zip(*(row[2:5] for row in scores.rows), strict=True)]
        fronts = _count(total(row.fronts for row in scores.rows))
        lines.append(f"| mean of {len(scores.rows)} | | {_cells(means)} | {fronts} |")
    intro = f"""
        Silhouettes and volume are intersection over union with the nearest model of the prompt, the
        former from {len(AZIMUTHS)} azimuths at elevation {ELEVATION:g} degrees. Surfaces apart is
        the mean distance of points of the mesh to the model's surface and back (chamfer), in scene
        units; models have a radius of 1. Second fronts are views 90 degrees or more from the front
        that are nearer to the model's front than to its other views, of those whose own view of the
        model is unlike its front."""
    parts = ["### Shapes", "\n".join(lines), tables.filled(intro)]
    return "\n\n".join([*parts, *tables.not_scored(scores.skipped)])


def _count(count: Count) -> str:
    return f"{count.right} of {count.of}"


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def _cells(values: Sequence[float | None]) -> str:
    silhouette, volume, chamfer = values
    shares = ("-" if v is None else f"{100 * v:.1f} %" for v in (silhouette, volume))
    return " | ".join([*shares, "-" if chamfer is None else f"{chamfer:.3f}"])
