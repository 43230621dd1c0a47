"""`textured.obj`: y up, front at +z, the colours in `textured.png`."""

from pathlib import Path

from dreamjax.export.mesh import BAKING, write_textured_obj
from dreamjax.export.object3d import Object3D, TextureSize
from dreamjax.settings import settings


@settings
class TexturedObj:
    """`textured.obj`, `.mtl` and `.png`: the mesh as Wavefront OBJ with a texture."""

    size: TextureSize = 1024  # pixels a side of the texture

    doing = BAKING

    def __call__(self, result: Object3D, folder: Path) -> list[Path]:
        """Write the three files and return their paths; raises UserError where there is no mesh."""
        return write_textured_obj(Path(folder) / "textured.obj", result.textured(self.size))
