"""`views.png`: the field from all sides."""

from pathlib import Path
from typing import Annotated

import numpy as np

from dreamjax.export.object3d import Object3D
from dreamjax.export.sheet import SHEET_VIEWS, contact_sheet, write_png
from dreamjax.settings import Range, settings


@settings
class Views:
    """`views.png`: colour, normals, depth and opacity of the field from nine sides."""

    size: Annotated[int, Range(1, 1024)] = 96  # pixels a side of each rendering

    doing = "rendering the views"

    def __call__(self, result: Object3D, folder: Path) -> list[Path]:
        """Write the sheet and return its path; raises UserError if it cannot be written."""
        path = Path(folder) / "views.png"
        seen = [result.picture(a, e, self.size) for _, a, e in SHEET_VIEWS]
        rgb, normal, depth, opacity = (
            np.stack([np.asarray(getattr(view, name)) for view in seen])
            for name in ("rgb", "normal", "depth", "opacity")
        )
        write_png(path, contact_sheet(rgb, normal, depth, opacity))
        return [path]
