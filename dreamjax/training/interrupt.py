"""Ctrl-C between steps, where the state is whole.

An exception in the middle of a dispatch would leave the old state donated and the new one not yet
assigned, so that nothing could be saved.
"""

import signal
import sys
import threading

SIGNALS = (signal.SIGINT, signal.SIGTERM)  # what a terminal sends, and what a cluster sends


class Interrupt:
    """A block in which Ctrl-C waits for `check`; a second Ctrl-C kills the process at once."""

    def __init__(self):
        """Begin with nothing asked."""
        self.asked = False
        self._before = {}

    def check(self) -> None:
        """Raise KeyboardInterrupt if the user asked to stop; call it between steps."""
        if self.asked:
            raise KeyboardInterrupt

    def _ask(self, number, frame) -> None:
        self.asked = True
        signal.signal(number, signal.SIG_DFL)
        print("\nstopping after this step (again: at once, unsaved)", file=sys.stderr)

    def __enter__(self):
        """Take the signals over, where this is the thread that gets them."""
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._ask) for number in SIGNALS}
        return self

    def __exit__(self, *_):
        """Give the signals back."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
