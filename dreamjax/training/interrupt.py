"""Signals that ask a run to stop: Ctrl-C, a cluster's SIGTERM, a closed terminal's SIGHUP.

Between steps the state is whole. An exception in the middle of a dispatch would leave the old state
donated and the new one not yet assigned, so that nothing could be saved. Before and after training
there is nothing to save, and the exception only makes files go that are half-written.
"""

import contextlib
import signal
import sys
import threading
from collections.abc import Callable, Iterator

SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
)


class Stopped(KeyboardInterrupt):
    """Raised where one of `SIGNALS` asks the process to stop; its argument is the number."""


def _take_over(handler: Callable) -> dict[int, object]:
    """Handle the signals in the thread that gets them; returns the handlers before.

    SIGHUP stays ignored where it is, as under nohup.
    """
    if threading.current_thread() is not threading.main_thread():
        return {}
    before: dict[int, object] = {n: signal.getsignal(n) for n in SIGNALS}
    taken = [n for n in SIGNALS if n == signal.SIGINT or before[n] is not signal.SIG_IGN]
    for number in taken:
        signal.signal(number, handler)
    return {number: before[number] for number in taken}


def _give_back(before: dict) -> None:
    for number, handler in before.items():
        signal.signal(number, handler)


@contextlib.contextmanager
def stoppable() -> Iterator[None]:
    """A block in which a signal raises Stopped at once; the second kills the process."""

    def stop(number, frame):
        signal.signal(number, signal.SIG_DFL)
        raise Stopped(number)

    before = _take_over(stop)
    try:
        yield
    finally:
        _give_back(before)


class Interrupt:
    """A block in which a signal waits for `check`; the second kills the process at once."""

    def __init__(self):
        """Begin with nothing asked."""
        self.asked = 0  # the signal's number
        self._before = {}

    def check(self) -> None:
        """Raise Stopped if the user asked to stop; call it between steps."""
        if self.asked:
            raise Stopped(self.asked)

    def _ask(self, number, frame) -> None:
        self.asked = number
        signal.signal(number, signal.SIG_DFL)
        # It may have come in the middle of another print, or because the terminal is gone.
        with contextlib.suppress(OSError, RuntimeError):
            print("\nstopping after this step (again: at once, unsaved)", file=sys.stderr)

    def __enter__(self):
        """Take the signals over, where this is the thread that gets them."""
        self._before = _take_over(self._ask)
        return self

    def __exit__(self, *_):
        """Give the signals back."""
        _give_back(self._before)
