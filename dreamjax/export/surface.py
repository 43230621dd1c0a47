"""Settings of the mesh that is taken from a field; `export.extract` takes it."""

from typing import Annotated

from dreamjax.settings import Range, settings


@settings
class Surface:
    """How the mesh is taken from the field."""

    resolution: Annotated[int, Range(8, 512)] = 128  # grid points across the scene's sphere
    max_faces: Annotated[int, Range(100, 10**7)] = 40_000  # a mesh with more is simplified to this
    min_part: Annotated[float, Range(0.0, 0.5, below=True)] = 0.02
    """Separate parts with less than this share of the whole volume are dropped."""
