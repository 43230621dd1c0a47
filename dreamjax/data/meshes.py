"""Named meshes, and pictures of them on disk.

A mesh stands along z, faces +x, and is centred in the unit sphere, as toybox objects do. Its
pictures are G-buffers (`data.pictures`) from cameras of the distribution that dreaming uses, drawn
once into memory-mapped files; a drawing that was stopped goes on where it was.
"""

import csv
import dataclasses
import functools
import hashlib
import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib import resources
from pathlib import Path
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, UInt8
from tqdm import tqdm

from dreamjax.data.pictures import CHANNELS, GBuffer, pack
from dreamjax.errors import UserError
from dreamjax.scene.camera import Camera, Cameras, middle_camera, sample_camera
from dreamjax.settings import Pixels, Range, Seed, settings, short

FORMAT = 1  # of what is stored; raise it when pictures change
AT_ONCE = 16  # models between two marks of progress
SUFFIXES = (".glb", ".gltf", ".obj")
DOMINANT_RADIUS = 20.0  # in CIELAB with half the lightness: shades of one colour lie nearer
LIGHTNESS_WEIGHT = 0.5
GLANCES, GLANCE_SIZE = 12, 64  # views that say which colour is seen most


class Mesh(NamedTuple):
    """A mesh with its phrase ("a fire truck") and a name that is its own.

    `vertices` [V, 3] in scene units, `faces` [F, 3], `colors` [F, 3] sRGB albedo in bytes.
    """

    phrase: str
    name: str
    vertices: Float[np.ndarray, "v 3"]
    faces: np.ndarray
    colors: UInt8[np.ndarray, "f 3"]


class Dominance(NamedTuple):
    """The colour that is seen most of: its mean rgb in [0, 1] and its share of what is seen.

    `member` tells which faces have it, `shade` their brightness beside the mean.
    """

    rgb: Float[np.ndarray, "3"]
    share: float
    member: Bool[np.ndarray, " f"]
    shade: Float[np.ndarray, " f"]


@settings
class Drawing:
    """How meshes are drawn."""

    views: Annotated[int, Range(1, 100_000)] = 64  # pictures of each mesh
    size: Pixels = 64  # height and width of a picture
    seed: Seed = 0  # of the cameras
    cameras: Cameras = Cameras()  # where pictures are taken from


class PictureSet(NamedTuple):
    """Pictures of N meshes, V views each; `stored` is mapped from disk.

    `cameras` are [N, V] NumPy arrays, `rgb` [N, 3] and `share` [N] the dominant colours'.
    """

    phrases: tuple[str, ...]
    names: tuple[str, ...]
    stored: UInt8[np.ndarray, "n v s s 11"]
    cameras: Camera
    rgb: Float[np.ndarray, "n 3"]
    share: Float[np.ndarray, " n"]


def read_meshes(path: str | Path) -> list[Mesh]:
    """Meshes of an `.npz` file with a `.csv` of the same name beside it, or of a folder.

    Raises UserError where nothing can be read.
    """
    path = Path(os.path.expanduser(path))
    if os.path.isdir(path):  # False for a name that no disk can have
        npz = sorted(path.glob("*.npz"))
        if len(npz) == 1 and npz[0].with_suffix(".csv").exists():
            return _read_npz(npz[0])
        return _read_folder(path)
    if path.suffix == ".npz" and os.path.isfile(path):
        return _read_npz(path)
    raise UserError(f"no meshes at {short(str(path))}: expected a folder or an .npz file")


def _read_npz(path: Path) -> list[Mesh]:
    """Meshes of arrays `vertices`, `faces`, `colors`, `vertex_count` and `face_count`."""
    rows_path = path.with_suffix(".csv")
    try:
        with np.load(path) as arrays, rows_path.open(newline="") as file:
            rows = list(csv.DictReader(file))
            at_vertex = np.cumsum(arrays["vertex_count"])[:-1]
            at_face = np.cumsum(arrays["face_count"])[:-1]
            vertices = np.split(arrays["vertices"], at_vertex)
            faces = np.split(arrays["faces"], at_face)
            colors = np.split(arrays["colors"], at_face)
        names = [f"{row['creator']}/{row['model']}" for row in rows]
        phrases = [row["phrase"] for row in rows]
    except (OSError, KeyError, ValueError) as error:
        raise UserError(f"cannot read meshes from {path} and {rows_path}: {error}") from error
    if len(rows) != len(vertices):
        raise UserError(f"{rows_path} names {len(rows)} meshes; {path} holds {len(vertices)}")
    return [
        Mesh(phrase, name, np.asarray(v, np.float32), np.asarray(f, np.int32), c)
        for phrase, name, v, f, c in zip(phrases, names, vertices, faces, colors, strict=True)
    ]


def _read_folder(folder: Path) -> list[Mesh]:
    """GLB and OBJ files, y up and facing +z; `names.csv` (file, phrase) overrides file names."""
    try:
        import trimesh
    except ImportError as error:
        raise UserError("reading GLB and OBJ files needs trimesh: pip install trimesh") from error
    paths = sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES)
    if not paths:
        raise UserError(f"no {', '.join(SUFFIXES)} files, and no .npz with its .csv, in {folder}")
    phrases = {}
    if (folder / "names.csv").exists():
        with (folder / "names.csv").open(newline="") as file:
            phrases = {row["file"]: row["phrase"] for row in csv.DictReader(file)}
    meshes = []
    for path in paths:
        name = path.relative_to(folder).as_posix()
        try:
            scene = trimesh.load_scene(path)
            parts = [_coloured(part) for part in scene.dump()]
        except Exception as error:  # a mesh file can be broken in any way
            raise UserError(f"cannot read {path}: {error}") from error
        meshes.append(_joined(phrases.get(name, phrase_of(path.stem)), name, parts))
    return meshes


def phrase_of(stem: str) -> str:
    """What a file's name calls its object: "fire_truck-2" is "a fire truck"."""
    words = "".join(c if c.isalpha() else " " for c in stem).lower().split()
    if not words:
        raise UserError(f"the file name {stem!r} names no object: say it in names.csv")
    return " ".join(["an" if words[0][0] in "aeiou" else "a", *words])


def _coloured(part) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Vertices, faces and face colours of a trimesh part, textures taken at the vertices."""
    visual = part.visual.to_color() if hasattr(part.visual, "to_color") else part.visual
    colors = np.asarray(visual.face_colors)
    colors = np.broadcast_to(np.atleast_2d(colors)[:, :3], (len(part.faces), 3))
    return np.asarray(part.vertices), np.asarray(part.faces), colors


def _joined(phrase: str, name: str, parts) -> Mesh:
    """One mesh of its parts, turned from y up to z up, centred in the unit sphere."""
    parts = [part for part in parts if len(part[1])]
    if not parts:
        raise UserError(f"{name} has no faces")
    first = np.cumsum([0, *(len(vertices) for vertices, _, _ in parts)])
    vertices = np.concatenate([part[0] for part in parts])[:, [2, 0, 1]]
    faces = np.concatenate([part[1] + start for part, start in zip(parts, first, strict=False)])
    colors = np.concatenate([part[2] for part in parts])
    return Mesh(
        phrase,
        name,
        normalised(vertices).astype(np.float32),
        faces.astype(np.int32),
        colors.astype(np.uint8),
    )


def normalised(vertices: Float[np.ndarray, "v 3"]) -> Float[np.ndarray, "v 3"]:
    """Vertices with the bounding box centred at the origin, the farthest at distance 1."""
    centred = vertices - (vertices.min(0) + vertices.max(0)) / 2.0
    return centred / max(np.linalg.norm(centred, axis=1).max(), 1e-12)


def cielab(rgb: Float[np.ndarray, "*b 3"]) -> Float[np.ndarray, "*b 3"]:
    """CIELAB (D65) of sRGB in [0, 1], with `LIGHTNESS_WEIGHT` on the lightness."""
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    to_xyz = [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    xyz = linear @ np.array(to_xyz).T / [0.9505, 1.0, 1.089]
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16.0 / 116.0)
    lightness = LIGHTNESS_WEIGHT * (116.0 * f[..., 1] - 16.0)
    red, blue = 500.0 * (f[..., 0] - f[..., 1]), 200.0 * (f[..., 1] - f[..., 2])
    return np.stack([lightness, red, blue], axis=-1)


def dominance(colors: UInt8[np.ndarray, "f 3"], weight: Float[np.ndarray, " f"]) -> Dominance:
    """The cluster of colours with the largest share of `weight` (how much is seen of each face).

    A cluster is what lies within `DOMINANT_RADIUS` of a colour; the best is centred once more.
    """
    palette, of_face = np.unique(colors, axis=0, return_inverse=True)
    of_face = of_face.reshape(-1)
    rgb = palette / 255.0
    lab = cielab(rgb)
    weight = np.bincount(of_face, np.maximum(weight, 1e-9), len(palette))
    # A texture can have thousands of colours: those that are seen most stand for the rest.
    centres = lab[np.argsort(-weight)[:256]]
    near = np.linalg.norm(centres[:, None] - lab, axis=-1) < DOMINANT_RADIUS
    best = near[np.argmax(near @ weight)]
    centre = np.average(lab[best], axis=0, weights=weight[best])
    again = np.linalg.norm(lab - centre, axis=-1) < DOMINANT_RADIUS
    member = again if weight[again].sum() >= weight[best].sum() else best
    mean = np.average(rgb[member], axis=0, weights=weight[member])
    shade = np.clip((rgb.mean(-1) + 0.05) / (mean.mean() + 0.05), 0.5, 1.6)
    share = float(weight[member].sum() / weight.sum())
    return Dominance(mean, share, member[of_face], shade[of_face])


def dominance_of(mesh: Mesh, cameras: Cameras) -> Dominance:
    """The dominant colour of a mesh, by what is seen of it all around."""
    zbuffer = _zbuffer()
    seen = np.zeros(len(mesh.faces))
    soup = zbuffer.Soup(mesh.vertices, mesh.faces, mesh.colors)
    for position, rotation, focal in _glances(cameras):
        pose = zbuffer.Pose(position, rotation, focal)
        index = zbuffer.visible_faces(soup, pose, GLANCE_SIZE)
        seen += np.bincount(index[index >= 0], minlength=len(seen))
    return dominance(mesh.colors, seen)


@functools.cache
def _glances(cameras: Cameras) -> list[tuple[np.ndarray, np.ndarray, float]]:
    """Positions, rotations and focal lengths of cameras all around."""
    heights = (-5.0, 15.0, 40.0, 70.0)
    views = [
        middle_camera(cameras, 360.0 * i / GLANCES, heights[i % len(heights)])
        for i in range(GLANCES)
    ]
    return [(np.asarray(v.position), np.asarray(v.rotation), float(v.focal)) for v in views]


def _zbuffer():
    """The compiled part, which needs an optional package."""
    try:
        from dreamjax.data import zbuffer
    except ImportError as error:
        raise UserError("drawing meshes needs numba: pip install numba") from error
    return zbuffer


def draw_mesh(mesh: Mesh, camera: Camera, size: int, dominant: Dominance | None = None) -> GBuffer:
    """G-buffers of a mesh, `size` pixels square, from one camera; runs on the host.

    Without `dominant`, `cover` and `shade` are 0. Raises UserError without numba.
    """
    zbuffer = _zbuffer()
    soup = zbuffer.Soup(mesh.vertices, mesh.faces, mesh.colors)
    parts = None if dominant is None else zbuffer.Dominant(dominant.member, dominant.shade)
    position, rotation = np.asarray(camera.position), np.asarray(camera.rotation)
    pose = zbuffer.Pose(position, rotation, float(camera.focal))
    return zbuffer.draw(soup, pose, size, parts)


def sample_cameras(drawing: Drawing, count: int) -> Camera:
    """Cameras [count, views] in NumPy: each from the seed, its mesh and its view alone."""

    def one(mesh, view):
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(drawing.seed), mesh), view)
        return sample_camera(key, drawing.cameras)

    over_views = jax.vmap(one, (None, 0))
    both = jax.jit(jax.vmap(over_views, (0, None)))(jnp.arange(count), jnp.arange(drawing.views))
    return Camera._make(np.asarray(values) for values in both)


def fingerprint(meshes: Sequence[Mesh], drawing: Drawing) -> str:
    """Twelve digits that stand for the meshes' shapes and colours and how they are drawn."""
    digest = hashlib.sha256(json.dumps([FORMAT, dataclasses.asdict(drawing)]).encode())
    for mesh in meshes:
        for array in (mesh.vertices, mesh.faces, mesh.colors):
            digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()[:12]


def draw_meshes(meshes: Sequence[Mesh], drawing: Drawing, cache: str | Path) -> PictureSet:
    """Pictures of all meshes, from `cache` where they are there; draws what is missing.

    The files are in `cache`/meshes-<fingerprint>. Raises UserError for no meshes, for a disk that
    refuses, and without numba.
    """
    if not meshes:
        raise UserError("there are no meshes to draw")
    _zbuffer()  # before anything is written
    folder = Path(cache).expanduser() / f"meshes-{fingerprint(meshes, drawing)}"
    size = drawing.size
    shape = (len(meshes), drawing.views, size, size, CHANNELS)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        stored = mapped(folder / "pictures.npy", shape, np.uint8)
        done = mapped(folder / "done.npy", shape[:1], np.uint8)
        colour = mapped(folder / "dominant.npy", (len(meshes), 4), np.float32)
    except OSError as error:
        raise UserError(f"cannot draw pictures in {folder}: {error}") from error
    cameras = sample_cameras(drawing, len(meshes))

    def draw(i: int) -> None:
        mesh = meshes[i]
        dominant = dominance_of(mesh, drawing.cameras)
        colour[i] = [*dominant.rgb, dominant.share]
        for view in range(drawing.views):
            at = Camera._make(values[i, view] for values in cameras)
            stored[i, view] = pack(draw_mesh(mesh, at, size, dominant))

    missing = np.flatnonzero(done == 0)
    bar = tqdm(total=len(meshes), initial=len(meshes) - len(missing), desc="drawing", unit="mesh")
    with bar, ThreadPoolExecutor(os.cpu_count()) as pool:
        for start in range(0, len(missing), AT_ONCE):
            chunk = missing[start : start + AT_ONCE]
            for _ in pool.map(draw, chunk):
                bar.update()
            stored.flush()
            colour.flush()
            done[chunk] = 1
            done.flush()
    return PictureSet(
        tuple(mesh.phrase for mesh in meshes),
        tuple(mesh.name for mesh in meshes),
        stored,
        cameras,
        np.array(colour[:, :3]),
        np.array(colour[:, 3]),
    )


def mapped(path: Path, shape: tuple[int, ...], dtype) -> np.memmap:
    """An array on disk, zeros where it is new; one of another shape is begun anew."""
    if path.exists():
        try:
            found = np.lib.format.open_memmap(path, mode="r+")
            if found.shape == shape and found.dtype == np.dtype(dtype):
                return found
        except ValueError:  # cut off while it was made
            pass
    return np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)


def left_out() -> frozenset[str]:
    """Names of meshes that look wrong: lost textures, other things than their phrase says."""
    file = Path(str(resources.files("dreamjax.data") / "left_out.csv"))
    with file.open(newline="") as lines:
        return frozenset(row["name"] for row in csv.DictReader(lines))
