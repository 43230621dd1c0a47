"""The video as another program reads it."""

import subprocess

import imageio_ffmpeg
import numpy as np
import pytest

from dreamjax.errors import UserError
from dreamjax.export.video import write_video


def decode(path, height, width):
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-loglevel", "error", "-i", str(path)]
    command += ["-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    raw = subprocess.run(command, check=True, capture_output=True).stdout
    return np.frombuffer(raw, np.uint8).reshape(-1, height, width, 3)


def test_frames_come_back_in_number_size_order_and_colour(tmp_path):
    colors = np.array([[200, 40, 40], [40, 180, 60], [50, 60, 210], [120, 120, 120]], np.uint8)
    frames = np.broadcast_to(colors[:, None, None], (4, 64, 64, 3))
    write_video(tmp_path / "a.mp4", frames, fps=10)
    again = decode(tmp_path / "a.mp4", 256, 256)
    assert len(again) == 4
    np.testing.assert_allclose(again.mean((1, 2)), colors, atol=6)
    content = (tmp_path / "a.mp4").read_bytes()
    assert 0 < content.index(b"moov") < content.index(b"mdat")
    assert b"avc1" in content


def test_odd_and_large_frames(tmp_path):
    write_video(tmp_path / "a.mp4", np.full((3, 301, 257, 3), 90, np.uint8))
    assert decode(tmp_path / "a.mp4", 302, 258).shape[0] == 3


def test_what_is_no_video_is_a_clear_error(tmp_path):
    with pytest.raises(UserError, match="uint8 frames"):
        write_video(tmp_path / "a.mp4", np.zeros((2, 8, 8, 3)))
    with pytest.raises(UserError, match=".mp4"):
        write_video(tmp_path / "a.gif", np.zeros((2, 8, 8, 3), np.uint8))
    (tmp_path / "a.mp4").mkdir()
    with pytest.raises(UserError, match="cannot write"):
        write_video(tmp_path / "a.mp4", np.zeros((2, 8, 8, 3), np.uint8))
