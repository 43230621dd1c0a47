"""The video as another program reads it."""

import numpy as np
import pytest

from dreamjax.errors import UserError
from dreamjax.export.video import write_video


def test_frames_come_back_in_number_size_order_and_colour(tmp_path, decode):
    colors = np.array([[200, 40, 40], [40, 180, 60], [50, 60, 210], [120, 120, 120]], np.uint8)
    frames = np.broadcast_to(colors[:, None, None], (4, 64, 64, 3))
    write_video(tmp_path / "a.mp4", frames, fps=10)
    again = decode(tmp_path / "a.mp4", 256, 256)
    assert len(again) == 4
    np.testing.assert_allclose(again.mean((1, 2)), colors, atol=6)
    content = (tmp_path / "a.mp4").read_bytes()
    assert 0 < content.index(b"moov") < content.index(b"mdat")
    assert b"avc1" in content


def test_odd_and_large_frames(tmp_path, decode):
    write_video(tmp_path / "a.mp4", np.full((3, 301, 257, 3), 90, np.uint8))
    assert decode(tmp_path / "a.mp4", 302, 258).shape[0] == 3


def test_frames_are_taken_one_by_one(tmp_path, decode):
    made = []

    def frames():
        for i in range(5):
            made.append(i)
            yield np.full((32, 32, 3), 40 * i, np.uint8)

    write_video(tmp_path / "a.mp4", frames())
    assert made == list(range(5))
    again = decode(tmp_path / "a.mp4", 256, 256).mean((1, 2, 3))
    np.testing.assert_allclose(again, [0, 40, 80, 120, 160], atol=6)


@pytest.mark.usefixtures("unchecked")
def test_what_is_no_video_is_a_clear_error(tmp_path):
    with pytest.raises(UserError, match="uint8 frames"):
        write_video(tmp_path / "a.mp4", np.zeros((2, 8, 8, 3)))
    with pytest.raises(UserError, match="uint8 frames"):
        write_video(tmp_path / "a.mp4", np.zeros((2, 8, 8), np.uint8))
    with pytest.raises(UserError, match="at least one frame"):
        write_video(tmp_path / "a.mp4", [])
    sizes = [np.zeros((8, 8, 3), np.uint8), np.zeros((9, 8, 3), np.uint8)]
    with pytest.raises(UserError, match=r"frames \(8, 8, 3\), not uint8 \(9, 8, 3\)"):
        write_video(tmp_path / "a.mp4", sizes)
    with pytest.raises(UserError, match=".mp4"):
        write_video(tmp_path / "a.gif", np.zeros((2, 8, 8, 3), np.uint8))
    assert not list(tmp_path.iterdir())
    (tmp_path / "a.mp4").mkdir()
    with pytest.raises(UserError, match="cannot write"):
        write_video(tmp_path / "a.mp4", np.zeros((2, 8, 8, 3), np.uint8))


def test_a_failing_source_of_frames_keeps_the_old_file(tmp_path):
    def frames():
        yield np.zeros((32, 32, 3), np.uint8)
        raise RuntimeError("no more")

    (tmp_path / "a.mp4").write_text("old")
    with pytest.raises(RuntimeError, match="no more"):
        write_video(tmp_path / "a.mp4", frames())
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("a.mp4", "old")]


def test_no_ffmpeg_and_what_it_says_are_clear_errors(tmp_path, monkeypatch):
    frames = np.zeros((60, 64, 64, 3), np.uint8)
    failing = tmp_path / "ffmpeg"
    failing.write_text("#!/bin/sh\necho 'line one' >&2\necho 'no such codec' >&2\nexit 3\n")
    failing.chmod(0o755)
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(failing))
    with pytest.raises(UserError, match="ffmpeg: no such codec$"):
        write_video(tmp_path / "a.mp4", frames)
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(tmp_path / "absent"))
    with pytest.raises(UserError, match="IMAGEIO_FFMPEG_EXE is .*absent, no program; install"):
        write_video(tmp_path / "a.mp4", (1 / 0 for _ in range(2)))  # no frame is rendered
    failing.write_text("no program\n")
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(failing))
    with pytest.raises(UserError, match="cannot write .*a.mp4: Exec format error"):
        write_video(tmp_path / "a.mp4", frames)
    failing.write_text("#!/bin/sh\nexit 0\n")
    with pytest.raises(UserError, match="wrote no file"):
        write_video(tmp_path / "a.mp4", frames)
    monkeypatch.delenv("IMAGEIO_FFMPEG_EXE")
    monkeypatch.setattr("imageio_ffmpeg._utils._get_ffmpeg_exe", lambda: None)
    with pytest.raises(UserError, match="cannot write a video: there is no ffmpeg; install"):
        write_video(tmp_path / "a.mp4", frames)
    assert [p.name for p in tmp_path.iterdir()] == ["ffmpeg"]
