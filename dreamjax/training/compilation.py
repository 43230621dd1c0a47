"""Keeps compiled programs between runs, so that a run started again begins sooner."""

import hashlib
import os
import platform
from pathlib import Path


def keep_compiled() -> None:
    """Point JAX at a cache directory of the user's; call it before JAX is imported.

    JAX_COMPILATION_CACHE_DIR takes precedence and JAX_ENABLE_COMPILATION_CACHE=false turns it off.
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


def _cpu() -> str:
    """Return a short name of this machine's instruction set."""
    features = platform.processor()
    if (info := Path("/proc/cpuinfo")).exists():
        lines = info.read_text(errors="replace").splitlines()
        features = next((line for line in lines if line.lower().startswith(("flags", "feat"))), "")
    return hashlib.sha1(f"{platform.machine()} {features}".encode()).hexdigest()[:12]
