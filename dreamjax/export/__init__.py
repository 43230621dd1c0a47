"""What a finished scene leaves behind: mesh, video, contact sheet and the page a person opens.

Everything here takes arrays, files and callables; nothing knows of diffusion or priors.
"""

from dreamjax.export.glb import Glb
from dreamjax.export.mesh_sheet import MeshSheet
from dreamjax.export.obj import Obj
from dreamjax.export.ply import Ply
from dreamjax.export.report import Report
from dreamjax.export.textured_glb import TexturedGlb
from dreamjax.export.textured_obj import TexturedObj
from dreamjax.export.turntable import Turntable
from dreamjax.export.views import Views

__all__ = [
    "Glb",
    "MeshSheet",
    "Obj",
    "Ply",
    "Report",
    "TexturedGlb",
    "TexturedObj",
    "Turntable",
    "Views",
]
