"""Output that never stops a run: whoever read it may be gone, and may not know every letter."""

import io
import os
import sys


class _Heedless(io.FileIO):
    """A stream that takes everything, also where nobody reads it any more or the disk is full."""

    def write(self, data):
        """Write what can be written."""
        try:
            return super().write(data)
        except OSError:
            return memoryview(data).nbytes


def keep_going() -> None:
    """Let stdout and stderr outlive a closed pipe or terminal, and spell out letters they lack.

    Where a process begins without them (`>&- 2>&-`), files that it opens would take their numbers
    and get what libraries print; they are led to nowhere instead.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number: this one
    sys.stdout, sys.stderr = _kept(sys.stdout, 1), _kept(sys.stderr, 2)


def _kept(stream, number: int) -> io.TextIOWrapper:
    buffer = getattr(stream, "buffer", None)
    raw = getattr(buffer, "raw", buffer)  # PYTHONUNBUFFERED leaves the buffer out
    if stream is not None and not isinstance(raw, io.FileIO):  # the console of Windows
        stream.reconfigure(errors="backslashreplace")
        return stream
    return io.TextIOWrapper(
        io.BufferedWriter(_Heedless(number, "w", closefd=False)),
        encoding=stream.encoding if stream is not None else "utf-8",
        errors="backslashreplace",
        line_buffering=True,
    )
