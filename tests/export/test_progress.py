"""Long loops say how far they are; short ones say nothing."""

import io
import os
import pty
import time

import pytest

from dreamjax.export import progress as module
from dreamjax.export.progress import progress


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(module, "QUIET_SECONDS", 0.05)
    monkeypatch.setattr(module, "LINE_SECONDS", 0.1)


def slowly(items):
    for item in items:
        time.sleep(0.03)
        yield item


def test_a_short_loop_says_nothing():
    stream = io.StringIO()
    assert list(progress("abc", "letters", stream=stream)) == list("abc")
    assert list(progress([], "letters", stream=stream)) == []
    assert stream.getvalue() == ""


def test_a_long_loop_says_lines_where_there_is_no_terminal(impatient):
    stream = io.StringIO()
    assert list(progress(slowly(range(12)), "numbers", 12, stream)) == list(range(12))
    lines = stream.getvalue().splitlines()
    assert 2 <= len(lines) <= 5
    for line in lines:
        assert line.startswith("numbers: ") and " of 12" in line and "\r" not in line
    assert lines[-1].endswith(" s left")


def test_a_long_loop_has_a_bar_in_a_terminal(impatient):
    ours, theirs = pty.openpty()
    import fcntl
    import struct
    import termios

    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    with os.fdopen(theirs, "w") as terminal:
        assert len(list(progress(slowly(range(12)), "numbers", 12, terminal))) == 12
        terminal.flush()
        text = os.read(ours, 65536).decode()
    os.close(ours)
    assert "numbers:" in text and "/12" in text and "\r" in text


def test_what_is_left_of_a_loop_that_stops_early_is_not_asked_for():
    asked = []

    def items():
        for i in range(5):
            asked.append(i)
            yield i

    for i in progress(items(), "numbers", 5, io.StringIO()):
        if i == 1:
            break
    assert asked == [0, 1]
