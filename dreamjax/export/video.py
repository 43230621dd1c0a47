"""Video files that play everywhere."""

import contextlib
import itertools
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterable
from pathlib import Path

import imageio_ffmpeg
import numpy as np
from jaxtyping import UInt8

from dreamjax.errors import UserError
from dreamjax.workdir import cannot_write, replacing


def write_video(
    path: str | Path,
    frames: Iterable[UInt8[np.ndarray, "H W 3"]],
    fps: int = 24,
    min_size: int = 256,
) -> None:
    """Write frames as H.264 (yuv420p, playable while it loads) in an mp4 file, whole or not at all.

    Frames go to the encoder one by one, so that a generator needs memory for one alone. Where their
    smaller side is below `min_size` they are enlarged by a whole factor; an odd side grows by one
    pixel. Raises UserError if the frames are not uint8 pictures of one size or the file cannot be
    written.
    """
    path, frames = Path(path), iter(frames)
    if path.suffix.lower() != ".mp4":
        raise UserError(f"a video is written as .mp4, not as {path.name}")
    ffmpeg = find_ffmpeg()  # before the first frame is rendered
    first = next(frames, None)
    if first is None:
        raise UserError("a video needs at least one frame")
    first = _checked(first, None)
    height, width = first.shape[:2]
    factor = -(-min_size // min(height, width))
    enlarged = [side * factor + side * factor % 2 for side in (width, height)]
    command = [ffmpeg, "-y", "-loglevel", "error"]
    command += ["-f", "rawvideo", "-pix_fmt", "rgb24", "-r", str(fps)]
    command += ["-s", f"{width}x{height}", "-i", "-", "-an"]
    command += ["-vf", f"scale={enlarged[0]}:{enlarged[1]}:flags=lanczos", "-c:v", "libx264"]
    command += ["-pix_fmt", "yuv420p", "-crf", "18", "-movflags", "+faststart"]
    with replacing(path) as temporary:
        reason = _encode(
            [*command, str(temporary)],
            (_checked(frame, first.shape) for frame in itertools.chain([first], frames)),
        )
        if reason is None and not temporary.exists():
            reason = f"{ffmpeg} wrote no file"
        if reason is not None:
            raise cannot_write(path, f"ffmpeg: {reason}")


def find_ffmpeg() -> str:
    """The program that encodes; raises UserError where there is none that could be run."""
    with contextlib.suppress(RuntimeError):
        found = imageio_ffmpeg.get_ffmpeg_exe()
        if shutil.which(found):
            return found
    named = os.environ.get("IMAGEIO_FFMPEG_EXE")
    wrong = f"IMAGEIO_FFMPEG_EXE is {named}, no program" if named else "there is no ffmpeg"
    raise UserError(
        f"cannot write a video: {wrong}; install ffmpeg, or name one in the environment variable "
        "IMAGEIO_FFMPEG_EXE"
    )


def _encode(command: list[str], frames: Iterable[np.ndarray]) -> str | None:
    """Feed frames to ffmpeg; return why it failed, None where it did not.

    Raises OSError where it is no program of this machine.
    """
    # Not imageio's own writer: it forks, which a process that runs JAX must not.
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=log, stderr=log)
        stdin = process.stdin
        assert stdin is not None
        try:
            with contextlib.suppress(BrokenPipeError):  # ffmpeg ended early; it says why
                for frame in frames:
                    stdin.write(frame.tobytes())
        except BaseException:
            process.kill()
            raise
        finally:
            with contextlib.suppress(OSError):
                stdin.close()
            code = process.wait()
        log.seek(0)
        lines = log.read().decode(errors="replace").strip().splitlines()
    return (lines or ["no reason given"])[-1] if code else None


def _checked(frame: np.ndarray, shape: tuple[int, ...] | None) -> UInt8[np.ndarray, "H W 3"]:
    """The frame, if it is a picture as bytes, of this shape where one is given."""
    frame = np.asarray(frame)
    is_picture = frame.ndim == 3 and frame.shape[-1] == 3 and frame.size
    if frame.dtype != np.uint8 or not is_picture or shape not in (None, frame.shape):
        wanted = "[H, W, 3]" if shape is None else str(shape)
        raise UserError(f"a video needs uint8 frames {wanted}, not {frame.dtype} {frame.shape}")
    return frame
