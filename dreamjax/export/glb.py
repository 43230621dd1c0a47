"""`mesh.glb`: y up, front at +z, linear vertex colours."""

from pathlib import Path

from dreamjax.export.mesh import TAKING, write_mesh
from dreamjax.export.object3d import Object3D
from dreamjax.settings import settings


@settings
class Glb:
    """`mesh.glb`: the mesh as binary glTF, which Blender, Godot and browsers open."""

    doing = TAKING

    def __call__(self, result: Object3D, folder: Path) -> list[Path]:
        """Write the mesh and return its path; raises UserError where there is none."""
        path = Path(folder) / "mesh.glb"
        write_mesh(path, result.mesh)
        return [path]
