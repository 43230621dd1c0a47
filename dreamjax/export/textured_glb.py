"""`textured.glb`: y up, front at +z, the colours in a picture that lies in the file."""

from pathlib import Path

from dreamjax.export.gltf import encode_glb
from dreamjax.export.mesh import BAKING
from dreamjax.export.object3d import Object3D, TextureSize
from dreamjax.settings import settings
from dreamjax.workdir import write_bytes


@settings
class TexturedGlb:
    """`textured.glb`: the mesh as binary glTF with a texture, finer than colours at vertices."""

    size: TextureSize = 1024  # pixels a side of the texture

    doing = BAKING

    def __call__(self, result: Object3D, folder: Path) -> list[Path]:
        """Write the mesh and return its path; raises UserError where there is none."""
        path = Path(folder) / "textured.glb"
        write_bytes(path, encode_glb(result.textured(self.size)))
        return [path]
