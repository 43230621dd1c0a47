"""A finished object: what a run, a notebook and every exporter hold in their hands."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from jaxtyping import Array, Float, Num, UInt8

from dreamjax.errors import UserError
from dreamjax.export.chunks import in_chunks
from dreamjax.export.gltf import Mesh, TexturedMesh
from dreamjax.export.mesh import write_mesh
from dreamjax.export.progress import progress
from dreamjax.export.sheet import to_uint8, write_png
from dreamjax.export.surface import Surface
from dreamjax.export.video import write_video
from dreamjax.scene.render import Rendering
from dreamjax.settings import Count, Pixels, Range, Real, convert

PointsFn = Callable[
    [Float[np.ndarray, "N 3"]], tuple[Float[np.ndarray, "N"], Float[np.ndarray, "N 3"]]
]
PictureFn = Callable[[float, float, int], Rendering]
TextureSize = Annotated[int, Range(16, 8192)]  # pixels a side


@dataclasses.dataclass(frozen=True)
class Record:
    """How an object came about, for the report.

    `history` has a mapping from names to values for each logged step, with its `step`; `settings`
    are the run's, as `config.to_plain` gives them; `facts` are further lines of the summary.
    """

    history: Sequence[Mapping[str, float]] = ()
    settings: Mapping[str, object] = dataclasses.field(default_factory=dict)
    seconds: float = 0.0
    facts: Mapping[str, object] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, eq=False)
class Object3D:
    """A 3D object as a field: z up, front at +x (azimuth 0), inside the sphere of `radius`.

    `matter` maps float32 points [N, 3] to densities [N] per unit length and sRGB albedo [N, 3] in
    [0, 1]; it is always called with `chunks.CHUNK` points. `picture` renders (azimuth, elevation,
    size) in degrees and pixels, white behind, lit from the camera, as NumPy arrays [size, size,
    ...]. `surface` says how the mesh is taken.
    """

    prompt: str
    radius: float
    matter: PointsFn = dataclasses.field(repr=False)
    picture: PictureFn = dataclasses.field(repr=False)
    surface: Surface = Surface()
    record: Record = dataclasses.field(default=Record(), repr=False)

    def query(
        self, points: Num[Array | np.ndarray, "*batch 3"] | Sequence[Any]
    ) -> tuple[Float[np.ndarray, "*batch"], Float[np.ndarray, "*batch 3"]]:
        """Density [...] (0 outside the sphere) and sRGB albedo [..., 3] at points [..., 3].

        Raises UserError for points of another shape or that are not finite.
        """
        points = np.asarray(points, np.float32)
        if points.ndim < 1 or points.shape[-1] != 3 or not np.isfinite(points).all():
            raise UserError(f"points must be finite, of shape [..., 3], not {points.shape}")

        def matter(points):
            density, albedo = self.matter(points)
            return np.concatenate([np.asarray(density)[:, None], np.asarray(albedo)], axis=-1)

        found = in_chunks(matter, points.reshape(-1, 3)).reshape(*points.shape[:-1], 4)
        outside = np.linalg.norm(points, axis=-1) > self.radius
        return np.where(outside, np.float32(0.0), found[..., 0]), found[..., 1:]

    def render(
        self, azimuth: float = 0.0, elevation: float = 15.0, size: int = 256
    ) -> UInt8[np.ndarray, "size size 3"]:
        """A picture from angles in degrees; raises UserError for a size or angle that cannot be."""
        azimuth = convert(Real, azimuth, "azimuth")
        elevation = convert(Real, elevation, "elevation")
        return to_uint8(self.picture(azimuth, elevation, convert(Pixels, size, "size")).rgb)

    def turn(
        self, frames: int = 48, size: int = 96, elevation: float = 15.0
    ) -> Iterator[UInt8[np.ndarray, "size size 3"]]:
        """Pictures once around, from the front on, one by one; says how far it is if that is long.

        Raises UserError for numbers that cannot be.
        """
        frames = convert(Count, frames, "frames")
        for i in progress(range(frames), "the turntable"):
            yield self.render(360.0 * i / frames, elevation, size)

    @property
    def mesh(self) -> Mesh:
        """The visible surface as a closed, coloured mesh in the world's axes.

        It is taken from the field once. Raises UserError where there is no surface.
        """
        if isinstance(self._extraction, str):
            raise UserError(self._extraction)
        return self._extraction

    def textured(self, size: int = 1024) -> TexturedMesh:
        """The mesh with its colours in a picture of `size` x `size` pixels.

        It is made once for each size. Raises UserError where there is no mesh, for a size that
        cannot be, where xatlas is not installed, and where there is not the memory.
        """
        size = convert(TextureSize, size, "size")
        if size not in self._textured:
            # Here for the same reason as `extract_mesh`.
            from dreamjax.export.texture import textured

            spacing = 2.0 * self.radius / (self.surface.resolution - 1)
            self._textured[size] = textured(self.mesh, self.query, spacing, size)
        return self._textured[size]

    @functools.cached_property
    def _textured(self) -> dict[int, TexturedMesh]:
        return {}

    @property
    def no_mesh(self) -> str:
        """Why there is no mesh; empty where there is one, or where nobody has asked for it yet."""
        outcome = self.__dict__.get("_extraction")
        return outcome if isinstance(outcome, str) else ""

    @functools.cached_property
    def _extraction(self) -> Mesh | str:
        # Here, as configs are built of exporters, and SciPy takes half a second to import.
        from dreamjax.export.extract import extract_mesh

        try:
            return extract_mesh(
                lambda points: self.matter(points)[0],
                lambda points: self.matter(points)[1],
                self.radius,
                self.surface,
            )
        except UserError as error:
            return str(error)

    def save(self, path: str | Path) -> None:
        """Write the mesh (.glb, .obj, .ply), a picture (.png) or a video once around (.mp4).

        Raises UserError for another suffix, where there is no mesh, or where the file cannot be
        written.
        """
        suffix = Path(path).suffix.lower()
        if suffix in (".glb", ".obj", ".ply"):
            write_mesh(path, self.mesh)
        elif suffix == ".png":
            write_png(path, self.render())
        elif suffix == ".mp4":
            write_video(path, self.turn())
        else:
            raise UserError(f"cannot save {path}: use .glb, .obj, .ply, .png or .mp4")
