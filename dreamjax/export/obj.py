"""`mesh.obj`: y up, front at +z, sRGB vertex colours."""

from pathlib import Path

from dreamjax.export.mesh import TAKING, write_mesh
from dreamjax.export.object3d import Object3D
from dreamjax.settings import settings


@settings
class Obj:
    """`mesh.obj`: the mesh as Wavefront OBJ with a colour behind each vertex."""

    doing = TAKING

    def __call__(self, result: Object3D, folder: Path) -> list[Path]:
        """Write the mesh and return its path; raises UserError where there is none."""
        path = Path(folder) / "mesh.obj"
        write_mesh(path, result.mesh)
        return [path]
