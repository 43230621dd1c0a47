"""Keeps compiled programs between runs, so that a run started again begins sooner."""

import hashlib
import os
import platform
import sys
import warnings
from pathlib import Path

# How JAX's warning of an entry that it cannot read begins; each such entry is compiled anew.
DAMAGED = "Error reading persistent compilation cache entry"


def keep_compiled() -> None:
    """Point JAX at a cache directory of the user's; call it before JAX is imported.

    JAX_COMPILATION_CACHE_DIR takes precedence and JAX_ENABLE_COMPILATION_CACHE=false turns it off.
    A damaged cache is emptied, or JAX, which never writes over an entry, would warn at every start.
    """
    try:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        # Code compiled for one CPU may not run on another that shares the home directory.
        directory = cache / "dreamjax" / f"compiled-{_cpu()}"
        directory.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # no home, or not writable: compile anew, as JAX does
        return
    if os.access(directory, os.W_OK):
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(directory))
    if os.environ.get("JAX_COMPILATION_CACHE_DIR") == str(directory):
        _empty_if_damaged(directory)


def _empty_if_damaged(directory: Path) -> None:
    """Turn JAX's first warning of a damaged entry into one line and an empty directory."""
    show = warnings.showwarning
    emptied = []

    def showwarning(message, category, filename, lineno, file=None, line=None):
        if not str(message).startswith(DAMAGED):
            return show(message, category, filename, lineno, file, line)
        if not emptied:
            emptied.append(directory)
            for entry in directory.iterdir():
                entry.unlink(missing_ok=True)
            print(
                f"warning: the compiled programs kept in {directory} were damaged; they are "
                "thrown away and compiled anew",
                file=sys.stderr,
            )

    warnings.showwarning = showwarning


def _cpu() -> str:
    """Return a short name of this machine's instruction set."""
    features = platform.processor()
    if (info := Path("/proc/cpuinfo")).exists():
        lines = info.read_text(errors="replace").splitlines()
        features = next((line for line in lines if line.lower().startswith(("flags", "feat"))), "")
    return hashlib.sha1(f"{platform.machine()} {features}".encode()).hexdigest()[:12]
