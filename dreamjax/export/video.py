"""Video files that play everywhere."""

import subprocess
from pathlib import Path

import imageio_ffmpeg
import numpy as np
from jaxtyping import UInt8

from dreamjax.errors import UserError
from dreamjax.export.files import replacing


def write_video(
    path: str | Path, frames: UInt8[np.ndarray, "N H W 3"], fps: int = 24, min_size: int = 256
) -> None:
    """Write frames as H.264 (yuv420p, playable while it loads) in an mp4 file, whole or not at all.

    Frames whose smaller side is below `min_size` are enlarged by a whole factor; an odd side grows
    by one pixel. Raises UserError if the frames are not uint8 pictures or the file cannot be
    written.
    """
    frames = np.asarray(frames)
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3 or not frames.size:
        raise UserError(
            f"a video needs uint8 frames [N, H, W, 3], not {frames.dtype} {frames.shape}"
        )
    if Path(path).suffix.lower() != ".mp4":
        raise UserError(f"a video is written as .mp4, not as {Path(path).name}")
    height, width = frames.shape[1:3]
    factor = -(-min_size // min(height, width))
    width, height = (side * factor + side * factor % 2 for side in (width, height))
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-y", "-loglevel", "error"]
    command += ["-f", "rawvideo", "-pix_fmt", "rgb24", "-r", str(fps)]
    command += ["-s", f"{frames.shape[2]}x{frames.shape[1]}", "-i", "-", "-an"]
    command += ["-vf", f"scale={width}:{height}:flags=lanczos", "-c:v", "libx264"]
    command += ["-pix_fmt", "yuv420p", "-crf", "18", "-movflags", "+faststart"]
    with replacing(path) as temporary:
        # Not imageio's own writer: it forks, which a process that runs JAX must not.
        run = subprocess.run(
            [*command, str(temporary)], input=frames.tobytes(), capture_output=True
        )
        if run.returncode:
            reason = run.stderr.decode(errors="replace").strip().splitlines() or ["no reason given"]
            raise UserError(f"cannot write {path}: ffmpeg: {reason[-1]}")
