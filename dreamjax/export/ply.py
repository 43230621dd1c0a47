"""`mesh.ply`: z up, front at +x, sRGB vertex colours."""

from pathlib import Path

from dreamjax.export.mesh import TAKING, write_mesh
from dreamjax.export.object3d import Object3D
from dreamjax.settings import settings


@settings
class Ply:
    """`mesh.ply`: the mesh as binary PLY, for MeshLab, trimesh and Open3D."""

    doing = TAKING

    def __call__(self, result: Object3D, folder: Path) -> list[Path]:
        """Write the mesh and return its path; raises UserError where there is none."""
        path = Path(folder) / "mesh.ply"
        write_mesh(path, result.mesh)
        return [path]
