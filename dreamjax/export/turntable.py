"""`turntable.mp4`: the field once around."""

from pathlib import Path
from typing import Annotated

from dreamjax.export.object3d import Object3D
from dreamjax.export.video import write_video
from dreamjax.settings import Range, settings


@settings
class Turntable:
    """`turntable.mp4`: the field once around, as a video that browsers play."""

    frames: Annotated[int, Range(0, 10_000)] = 48  # pictures in one turn; 0 writes no video
    size: Annotated[int, Range(1, 2048)] = 96  # pixels a side of each rendering
    fps: Annotated[int, Range(1, 240)] = 24  # pictures a second

    last = True  # it takes long, and needs a program that may not be there

    @property
    def doing(self) -> str:
        """What is said first."""
        return f"rendering the turntable, {self.frames} pictures" if self.frames else ""

    def __call__(self, result: Object3D, folder: Path) -> list[Path]:
        """Write the video and return its path; raises UserError where there is no ffmpeg."""
        if not self.frames:
            return []
        path = Path(folder) / "turntable.mp4"
        write_video(path, result.turn(self.frames, self.size), self.fps)
        return [path]
