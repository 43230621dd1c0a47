"""`mesh.png`: the mesh from all sides."""

from pathlib import Path
from typing import Annotated

import numpy as np

from dreamjax.export.mesh import TAKING
from dreamjax.export.object3d import Object3D
from dreamjax.export.raster import render_mesh
from dreamjax.export.sheet import SHEET_VIEWS, grid, write_png
from dreamjax.settings import Range, settings


@settings
class MeshSheet:
    """`mesh.png`: pictures of the mesh from the nine sides of `views.png`."""

    size: Annotated[int, Range(1, 1024)] = 96  # pixels a side of each picture

    doing = TAKING

    def __call__(self, result: Object3D, folder: Path) -> list[Path]:
        """Write the pictures and return their path; raises UserError where there is no mesh."""
        path, mesh = Path(folder) / "mesh.png", result.mesh
        pictures = [
            render_mesh(mesh, azimuth, elevation, size=self.size)
            for _, azimuth, elevation in SHEET_VIEWS
        ]
        write_png(path, grid(np.stack(pictures), columns=len(SHEET_VIEWS), tile=128))
        return [path]
