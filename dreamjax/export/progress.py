"""How far a long loop is: a bar in a terminal, plain lines elsewhere, nothing if it is short."""

import os
import sys
import time
from collections.abc import Iterable, Iterator, Sized
from typing import TextIO, TypeVar, cast

Item = TypeVar("Item")

QUIET_SECONDS = 2.0  # a loop that is shorter shows nothing
LINE_SECONDS = 10.0  # between lines where the output is no terminal


def progress(
    items: Iterable[Item], name: str, total: int | None = None, stream: TextIO | None = None
) -> Iterator[Item]:
    """Yields the items; says on `stream` (stderr) how many of them are done.

    `total` is needed where `items` has no length.
    """
    out: TextIO = stream or sys.stderr
    total = len(cast(Sized, items)) if total is None else total
    if _is_terminal(out):
        from tqdm import tqdm

        yield from tqdm(
            items,
            total=total,
            desc=name,
            file=out,
            dynamic_ncols=True,
            leave=False,
            delay=QUIET_SECONDS,
        )
        return
    began = time.monotonic()
    next_line, after_first = began + QUIET_SECONDS, began
    for done, item in enumerate(items):
        now = time.monotonic()
        if done == 1:
            after_first = now  # the first may have waited for a compiler
        if done and now >= next_line:
            text = f"{name}: {done} of {total}"
            if done > 1:
                text += f", {(now - after_first) / (done - 1) * (total - done):.0f} s left"
            print(text, file=out, flush=True)
            next_line = now + LINE_SECONDS
        yield item


def _is_terminal(stream: TextIO) -> bool:
    """Whether a bar can be drawn; some terminals (in containers) say that they have no columns."""
    try:
        return stream.isatty() and os.get_terminal_size(stream.fileno()).columns > 0
    except (OSError, ValueError, AttributeError):
        return False
